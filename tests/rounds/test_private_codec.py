"""The private codec: the bound of one site holds in integers, and a noised sum comes back as it was sent."""

import os
from math import sqrt

import numpy as np
import pytest

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.errors import BadAggregate, CodecError, PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.events import Noise
from fl_core.rounds.privacy_terms import PRIVATE_HEADER, Mechanism, PrivacyTerms, default_levels, norm_bound
from fl_core.rounds.private_codec import PrivateCodec
from fl_core.secagg.noise_seeds import parts_needed

SIZE = 700
BUDGET = PrivacyBudget(4.0, 1e-5)


COHORT, FEWEST = 10, 7


def _codec(mechanism: Mechanism, *, multiplier: float = 1.0, quantile: float = 0.0, size: int = SIZE, **terms: int):
    levels = default_levels(size, multiplier)
    agreed = PrivacyTerms(mechanism, BUDGET, 0.5, multiplier, levels, quantile=quantile, **terms)
    manifest = TensorManifest((TensorSpec("w", "float32", (size,)),))
    return PrivateCodec(agreed, manifest, 24, COHORT, FEWEST, rotation_key=bytes(range(16)))


def _signed(vector: np.ndarray, ring_bits: int = 24) -> np.ndarray:
    half = 1 << (ring_bits - 1)
    return (vector.astype(np.int64) + half) % (2 * half) - half


def _update(scale: float, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=SIZE) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("quantile", [0.0, 0.5])
def test_no_update_is_longer_than_the_sensitivity_that_is_accounted(scale: float, quantile: float) -> None:
    codec = _codec(Mechanism.CENTRAL, quantile=quantile)
    for seed in range(5):
        body = _signed(codec.encode(_update(scale, seed), 1, os.urandom)[PRIVATE_HEADER:])
        assert float(body @ body) <= codec.terms.sensitivity(codec.coordinates) ** 2 * (1 + 1e-12)


def test_a_rounding_that_is_too_long_is_drawn_again() -> None:
    # Every coordinate sits half-way between two levels, where roundings are longest.
    codec = _codec(Mechanism.CENTRAL, size=SIZE)
    half = np.full(SIZE, 0.5 * codec.terms.clip / codec.terms.levels, np.float32)
    for _ in range(20):
        body = _signed(codec.encode(half, 1, os.urandom)[PRIVATE_HEADER:])
        assert int(body @ body) <= norm_bound(codec.terms.levels, SIZE)


def test_rounding_is_nearly_free() -> None:
    for size in (100, 10_000, 1_000_000):
        levels = default_levels(size, 1.0)
        assert sqrt(norm_bound(levels, size)) <= 1.01 * levels


def test_the_sum_of_central_uploads_is_the_clipped_mean() -> None:
    codec = _codec(Mechanism.CENTRAL)
    updates = [_update(0.01, seed) for seed in range(8)]
    total = sum(codec.encode(update, 1, os.urandom).astype(np.uint64) for update in updates) % (1 << 24)
    decoded = codec.open_sum(total[:PRIVATE_HEADER], 8)
    mean = decoded.expand(decoded.decode(total[PRIVATE_HEADER:]))
    clipped = [update * min(1, 0.5 / np.linalg.norm(update)) for update in updates]
    np.testing.assert_allclose(mean, np.mean(clipped, axis=0), atol=0.5 / codec.terms.levels)


def _noise_of_sum(codec: PrivateCodec, survivors: int, withheld: int = 0) -> np.ndarray:
    """The noise of a sum of empty updates, once what is not needed is taken away; the last sites withhold theirs."""
    keys = [[os.urandom(16) for _ in codec.parts] for _ in range(survivors)]
    silent = np.zeros(codec.manifest.size, np.float32)
    total = np.sum([codec.encode(silent, 1, os.urandom, own) for own in keys], axis=0, dtype=np.uint32)
    needed = parts_needed(codec.terms.noise_tiers(codec.cohort, codec.min_survivors), survivors)
    mask = np.zeros_like(total)
    codec.add_parts(mask[PRIVATE_HEADER:], [own[needed:] for own in keys[: survivors - withheld]], 0)
    np.testing.assert_array_equal((total - mask)[:PRIVATE_HEADER], survivors)
    return _signed((total - mask)[PRIVATE_HEADER:] % (1 << 24))


def _noise_over_target(codec: PrivateCodec, rounds: int, survivors: int, withheld: int = 0) -> float:
    sums = (_noise_of_sum(codec, survivors, withheld) for _ in range(rounds))
    seen = sum(float(noise @ noise) for noise in sums) / (rounds * codec.coordinates)
    return seen / codec.terms.variance(codec.coordinates)


@pytest.mark.parametrize("survivors", [7, 9, 10])
def test_distributed_noise_has_the_planned_variance_and_never_less(survivors: int) -> None:
    # 10 sites planned, 7 of them at least survive. 1,000 rounds of 128 coordinates: the standard error is 0.4%, and a
    # false alarm at 2.5% has a chance below 1e-9.
    codec = _codec(Mechanism.DISTRIBUTED, multiplier=0.8, size=120)
    assert _noise_over_target(codec, 1_000, survivors) == pytest.approx(1.0, rel=0.025)


def test_a_site_that_goes_before_it_reveals_its_seed_leaves_more_noise_and_never_less() -> None:
    # It leaves what stands for 7 survivors: 1/7 instead of the 1/10 that is needed. 200 rounds of 1,024 coordinates:
    # the standard error is 0.3%.
    codec = _codec(Mechanism.DISTRIBUTED, multiplier=0.8)
    assert _noise_over_target(codec, 200, 10, withheld=2) == pytest.approx(1 + 2 * (1 / 7 - 1 / 10), rel=0.02)


def test_nothing_can_be_taken_away_from_noise_without_keys() -> None:
    codec = _codec(Mechanism.DISTRIBUTED, multiplier=0.8)
    silent = np.zeros(SIZE, np.float32)
    noise = np.array([_signed(codec.encode(silent, 1, os.urandom)[PRIVATE_HEADER:]) for _ in range(200)])
    # All parts together are sized for 7 survivors. 204,800 samples: a false alarm at 3% has a chance below 1e-15.
    assert float((noise**2).mean()) == pytest.approx(codec.terms.share_variance(codec.coordinates, 7), rel=0.03)


def test_a_share_of_noise_has_one_key_for_each_part() -> None:
    codec = _codec(Mechanism.DISTRIBUTED)
    for count in (1, len(codec.parts) - 1, len(codec.parts) + 1):
        with pytest.raises(CodecError, match="one key for each part"):
            codec.encode(np.zeros(SIZE, np.float32), 1, os.urandom, [bytes(16)] * count)


def test_any_cut_of_a_vector_gets_the_same_noise() -> None:
    codec = _codec(Mechanism.DISTRIBUTED)
    keys = [[os.urandom(16) for _ in codec.parts[1:]] for _ in range(3)]
    whole, cut = np.zeros(1000, np.uint32), np.zeros(1000, np.uint32)
    codec.add_parts(whole, keys, 0)
    for start, stop in ((0, 1), (1, 600), (600, 1000)):
        codec.add_parts(cut[start:stop], keys, start)
    np.testing.assert_array_equal(whole, cut)


def test_distributed_noise_is_rotated_back_and_averages_out() -> None:
    codec = _codec(Mechanism.DISTRIBUTED, multiplier=0.01)
    update = _update(0.01)
    total = sum(codec.encode(update, 1, os.urandom).astype(np.uint64) for _ in range(9)) % (1 << 24)
    decoded = codec.open_sum(total[:PRIVATE_HEADER], 9)
    mean = decoded.expand(decoded.decode(total[PRIVATE_HEADER:]))
    np.testing.assert_allclose(mean, update * min(1, 0.5 / np.linalg.norm(update)), atol=0.01)


def test_colluders_do_not_weaken_the_noise_of_the_others() -> None:
    plain, guarded = _codec(Mechanism.DISTRIBUTED), _codec(Mechanism.DISTRIBUTED, colluders=3)
    count = plain.coordinates
    assert guarded.terms.share_variance(count, 7) * (7 - 3) == pytest.approx(guarded.terms.variance(count))
    assert guarded.terms.share_variance(count, 7) > plain.terms.share_variance(count, 7)
    with pytest.raises(PlanError, match="colluders"):
        guarded.terms.share_variance(count, 3)


def test_the_clip_follows_the_quantile() -> None:
    codec = _codec(Mechanism.CENTRAL, quantile=0.5)
    sums = []
    for norm in (0.1, 10.0):
        update = _update(1.0)
        update *= norm / np.linalg.norm(update)
        sums.append(sum(codec.encode(update, 1, os.urandom).astype(np.uint64) for _ in range(8)) % (1 << 24))
    lower, higher = (codec.open_sum(total[:PRIVATE_HEADER], 8).next_clip(int(_signed(total)[-1])) for total in sums)
    assert lower < codec.terms.clip < higher


def test_a_private_site_cannot_choose_its_weight() -> None:
    with pytest.raises(CodecError, match="weigh the same"):
        _codec(Mechanism.CENTRAL).encode(_update(1.0), 2, os.urandom)


def test_a_header_that_does_not_count_the_survivors_releases_nothing() -> None:
    with pytest.raises(BadAggregate):
        _codec(Mechanism.CENTRAL).open_sum(np.array([8, 8], np.uint32), 9)


def test_a_ring_without_room_for_the_noise_is_refused() -> None:
    codec = _codec(Mechanism.DISTRIBUTED, multiplier=4.0)
    codec.terms.check_room(codec.coordinates, 100, 70, 24)
    with pytest.raises(PlanError, match=r"raise codec\.ring_bits"):
        codec.terms.check_room(codec.coordinates, 100, 70, 12)


def test_the_ring_has_room_for_the_noise_before_any_of_it_is_taken_away() -> None:
    # 20 sites of noise that is enough for one: what is left has a twentieth of the variance of what must fit.
    codec = _codec(Mechanism.DISTRIBUTED, multiplier=40.0, colluders=9)
    needed = 20 * codec.terms.sensitivity(SIZE) + 12 * sqrt(20 * codec.terms.share_variance(SIZE, 10))
    bits = int(needed).bit_length() + 1
    codec.terms.check_room(SIZE, 20, 10, bits)
    with pytest.raises(PlanError, match=r"raise codec\.ring_bits"):
        codec.terms.check_room(SIZE, 20, 10, bits - 1)


@pytest.mark.parametrize("mechanism", [Mechanism.CENTRAL, Mechanism.DISTRIBUTED])
def test_what_is_accounted_is_the_rounded_sensitivity(mechanism: Mechanism) -> None:
    codec = _codec(mechanism)
    event = codec.terms.event(codec.coordinates)
    assert event.noise is (Noise.SKELLAM if mechanism is Mechanism.DISTRIBUTED else Noise.DISCRETE_GAUSSIAN)
    assert event.sensitivity > codec.terms.levels
    assert event.noise_multiplier == pytest.approx(codec.terms.noise_multiplier)
