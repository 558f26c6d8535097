"""From updates to the ring and from their sum to the weighted mean; what must not be encoded or released."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import BadAggregate, CodecError, PlanError

MANIFEST = TensorManifest((TensorSpec("conv", "float32", (2, 3)), TensorSpec("bias", "float32", (4,))))
CODEC = UpdateCodec(CodecSpec(clip=1.0, bits=20, ring_bits=24), MANIFEST, max_weight=1000)


def entropy_of(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def ring_sum(vectors: list[RingVector], ring_bits: int) -> RingVector:
    total = np.zeros(len(vectors[0]), np.uint64)
    for vector in vectors:
        total = (total + vector) & np.uint64((1 << ring_bits) - 1)
    return total.astype(vectors[0].dtype)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 2**32 - 1)), min_size=1, max_size=15))
def test_the_decoded_sum_is_the_weighted_mean_of_the_clipped_updates(sites: list[tuple[int, int]]) -> None:
    updates = [np.random.default_rng(seed).normal(0, 0.6, MANIFEST.size).astype(np.float32) for _, seed in sites]
    weights = [weight for weight, _ in sites]
    uploads = [CODEC.encode(u, w, entropy_of(i)) for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
    decoded = CODEC.decode_sum(ring_sum(uploads, 24), len(sites))
    mean = sum(w * np.clip(u, -1, 1).astype(np.float64) for u, w in zip(updates, weights, strict=True)) / sum(weights)
    assert decoded.total_weight == sum(weights)
    # Each site is off by less than one level, 2 / (2**20 - 1), of its scaled update.
    bound = len(sites) * 2 / (2**20 - 1) * 1000 / sum(weights)
    assert np.abs(decoded.mean_update - mean).max() <= bound + 1e-6


def test_an_upload_begins_with_weight_and_one() -> None:
    upload = CODEC.encode(np.zeros(10, np.float32), 7, entropy_of(0))
    assert len(upload) == CODEC.length == 12
    assert upload.dtype == np.uint32
    assert upload[:2].tolist() == [7, 1]
    assert upload.max() < 1 << 20


def test_the_same_entropy_gives_the_same_upload_and_other_entropy_another() -> None:
    update = np.full(10, 0.123, np.float32)
    same = [CODEC.encode(update, 333, entropy_of(seed)).tobytes() for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("size", [1 << 16, (1 << 18) + 5])
def test_a_large_update_is_encoded_block_by_block_without_a_seam(size: int) -> None:
    codec = UpdateCodec(CodecSpec(1.0, 20, 24), TensorManifest((TensorSpec("w", "float32", (size,)),)), 10)
    update = np.random.default_rng(3).uniform(-1, 1, size).astype(np.float32)
    decoded = codec.decode_sum(codec.encode(update, 10, entropy_of(4)), 1)
    assert np.abs(decoded.mean_update - update).max() < 2 / (2**20 - 1) + 1e-6


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
def test_the_lane_is_the_one_of_the_ring(ring_bits: int) -> None:
    codec = UpdateCodec(CodecSpec(1.0, 4, ring_bits), MANIFEST, 15)
    assert codec.encode(np.zeros(10, np.float32), 15, entropy_of(0)).dtype.itemsize * 8 == ring_bits


@pytest.mark.parametrize("weight", [0, -1, 1001])
def test_a_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(CodecError, match="1 to 1000 samples"):
        CODEC.encode(np.zeros(10, np.float32), weight, entropy_of(0))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_coordinate_that_is_not_finite_is_refused_by_the_name_of_its_tensor(wrong: float) -> None:
    update = np.zeros(10, np.float32)
    update[7] = wrong
    with pytest.raises(CodecError, match=r"'bias'.*coordinate 7"):
        CODEC.encode(update, 1, entropy_of(0))


def test_an_update_of_another_length_is_refused() -> None:
    with pytest.raises(CodecError, match=r"\(10,\).*\(9,\)"):
        CODEC.encode(np.zeros(9, np.float32), 1, entropy_of(0))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [(1, 3, "count"), (1, 0, "count"), (0, 0, "weight"), (0, 2001, "weight"), (5, 2 * (2**20 - 1) + 1, "own check")],
)
def test_a_sum_that_cannot_be_one_is_not_released(place: int, value: int, words: str) -> None:
    total = ring_sum([CODEC.encode(np.zeros(10, np.float32), 5, entropy_of(seed)) for seed in (0, 1)], 24)
    CODEC.decode_sum(total, 2)
    total[place] = value
    with pytest.raises(BadAggregate, match=words):
        CODEC.decode_sum(total, 2)


def test_a_sum_of_another_length_is_not_released() -> None:
    with pytest.raises(BadAggregate, match="length"):
        CODEC.decode_sum(np.ones(11, np.uint32), 1)


def test_a_codec_whose_numbers_do_not_fit_is_refused() -> None:
    with pytest.raises(CodecError, match="max_weight"):
        UpdateCodec(CodecSpec(1.0, 8, 24), MANIFEST, 0)
    with pytest.raises(CodecError, match="seed"):
        UpdateCodec(CodecSpec(1.0, 8, 24), MANIFEST, 1, seed=b"short")
    with pytest.raises(CodecError, match="ring"):
        UpdateCodec(CodecSpec(1.0, 20, 16), MANIFEST, 10)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf"), 1e31, 1e-31])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    with pytest.raises(PlanError, match="clip"):
        CodecSpec(clip, 8, 16)


def test_a_cohort_that_could_overflow_the_ring_is_refused() -> None:
    CodecSpec(1.0, 16, 24).check_cohort(256)
    with pytest.raises(PlanError, match="raise ring_bits"):
        CodecSpec(1.0, 16, 24).check_cohort(257)


def test_a_decoded_sum_does_not_show_the_update() -> None:
    decoded = CODEC.decode_sum(CODEC.encode(np.full(10, 0.5, np.float32), 1000, entropy_of(0)), 1)
    assert "0.5" not in repr(decoded)
