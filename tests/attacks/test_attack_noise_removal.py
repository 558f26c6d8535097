"""Attack: the servers get more noise taken away than the survivors can spare.

Sites with `distributed` noise reveal the seeds of what is not needed, and that depends on how many survived. Who makes
a site believe in more survivors than there are gets more of its noise.

What stops it: a site works it out itself, from the one set of survivors that a threshold of sites signed; whoever
stands in that set and did not upload has masks that nobody can take off. The noise of sites that work together with
the servers is not counted on.
"""

from collections.abc import Collection, Sequence
from fractions import Fraction

import numpy as np
import pytest

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.crypto.mask_prg import RingVector, reduce_ring
from fl_core.errors import BadSignature
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.sampler import NoiseDraw, add_draws
from fl_core.rounds.privacy_terms import Mechanism, PrivacyTerms
from fl_core.rounds.private_codec import PrivateCodec
from fl_core.secagg import client
from fl_core.secagg.messages import ConsistencyProof, RevealedShares, SurvivorSet
from fl_core.secagg.noise_seeds import part_keys, parts_needed
from fl_core.simulation import stages

SIZE, THRESHOLD, SMALLEST, RING_BITS = 12, 7, 8, 32
EVERYBODY, UPLOADED = tuple(range(SIZE)), tuple(range(10))
TOLD_THE_TRUTH, DECEIVED = UPLOADED[:THRESHOLD], UPLOADED[THRESHOLD:]


def codec_of(colluders: int) -> PrivateCodec:
    terms = PrivacyTerms(Mechanism.DISTRIBUTED, PrivacyBudget(4.0, 1e-5), 1.0, 1.0, 64, colluders=colluders)
    manifest = TensorManifest((TensorSpec("w", "float32", (16,)),))
    return PrivateCodec(terms, manifest, RING_BITS, SIZE, SMALLEST)


def uploaded(codec: PrivateCodec) -> stages.Uploaded:
    """Ten of twelve sites have uploaded nothing but their noise."""
    tiers = codec.terms.noise_tiers(SIZE, SMALLEST)
    cohort = stages.make_cohort(
        SIZE, threshold=THRESHOLD, min_survivors=SMALLEST, ring_bits=RING_BITS, length=codec.length, noise_tiers=tiers
    )
    silent = np.zeros(codec.manifest.size, np.float32)

    def noised(_: RingVector, keys: Sequence[bytes]) -> RingVector:
        return codec.encode(silent, 1, cohort.entropy, keys)

    return stages.upload(stages.share(stages.advertise(cohort)), UPLOADED, noised)


def variance_left(codec: PrivateCodec, kept: Collection[int]) -> Fraction:
    """Over what is needed, of a sum in which each site kept so many parts of its noise."""
    parts = codec.terms.part_variances(codec.coordinates, codec.terms.noise_tiers(SIZE, SMALLEST))
    left = sum((sum(map(Fraction, parts[:count])) for count in kept), Fraction(0))
    return left / Fraction(codec.terms.variance(codec.coordinates))


def noise_of(codec: PrivateCodec, keys: Sequence[Sequence[bytes]]) -> RingVector:
    vector: RingVector = np.zeros(codec.length, np.uint32)
    codec.add_parts(vector[codec.header_length :], keys, 0)
    return vector


def deceive(stage: stages.Uploaded) -> tuple[RingVector, dict[int, RevealedShares]]:
    """Three of the ten are told that all twelve uploaded; the sum of the ten, and what the three reveal."""
    own = {index: stage.sites[index].noise_keys for index in UPLOADED}
    assert all(own.values())
    signing = stage.server.freeze(stage.survivor_set)
    honest = {index: stage.sites[index].step(stage.survivor_set) for index in TOLD_THE_TRUTH}
    deceived = {index: stage.sites[index].step(SurvivorSet(EVERYBODY, b"r" * 32)) for index in DECEIVED}
    for _, signature in honest.values():
        signing.receive(signature)
    revealing, proof = signing.close()
    for waiting, _ in honest.values():
        revealing.receive(waiting.step(proof)[1])
    signatures = tuple(signature for _, signature in (*honest.values(), *deceived.values()))
    revealed = {index: waiting.step(ConsistencyProof(signatures))[1] for index, (waiting, _) in deceived.items()}
    total = sum(stage.uploads[index].vector for index in UPLOADED) - revealing.close().combined_mask()
    reduce_ring(total, RING_BITS)
    return total, revealed


def test_a_site_that_is_told_of_survivors_whom_nobody_else_signed_keeps_its_noise() -> None:
    with pytest.raises(BadSignature):
        deceive(uploaded(codec_of(0)))


def test_without_that_check_a_sum_of_ten_has_less_noise_than_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.AwaitingProof, "_check", lambda *_: None)
    codec = codec_of(0)
    stage = uploaded(codec)
    keys = {index: stage.sites[index].noise_keys for index in UPLOADED}
    total, revealed = deceive(stage)
    context, tiers = stage.cohort.context, stage.cohort.context.noise_tiers
    truth, lie = parts_needed(tiers, len(UPLOADED)), parts_needed(tiers, SIZE)
    taken = [keys[index][truth:] for index in TOLD_THE_TRUTH]
    taken += [part_keys(context, index, sent.excess_seed, lie) for index, sent in revealed.items()]
    left = total - noise_of(codec, taken)
    # Bit for bit, what is left is the first part of the deceived and the needed parts of the others.
    kept = {index: lie if index in DECEIVED else truth for index in UPLOADED}
    expected: RingVector = np.zeros(codec.length - 2, np.uint32)
    for index, count in kept.items():
        add_draws(expected, [NoiseDraw(*draw) for draw in zip(codec.parts[:count], keys[index], strict=False)])
    np.testing.assert_array_equal(left[2:], expected)
    assert variance_left(codec, kept.values()) < Fraction(96, 100)
    assert variance_left(codec, [truth] * len(UPLOADED)) >= 1


@pytest.mark.parametrize("colluders", [0, 2])
def test_noise_of_sites_that_only_claim_to_have_survived_is_counted_on_unless_they_are_colluders(
    colluders: int,
) -> None:
    """All sites believe in twelve survivors, of whom two sent nothing. Honest ones cannot be made up: see below."""
    codec = codec_of(colluders)
    needed = parts_needed(codec.terms.noise_tiers(SIZE, SMALLEST), SIZE)
    assert (variance_left(codec, [needed] * len(UPLOADED)) >= 1) == (colluders == 2)


def test_a_sum_cannot_be_unmasked_for_honest_sites_that_did_not_upload() -> None:
    codec = codec_of(0)
    stage = uploaded(codec)
    secrets = {index: stage.sites[index].noise_keys for index in UPLOADED}
    lie = SurvivorSet(EVERYBODY, stage.survivor_set.uploads_root)
    signing = stage.server.freeze(lie)
    waiting = {}
    for index in UPLOADED:
        waiting[index], signature = stage.sites[index].step(lie)
        signing.receive(signature)
    revealing, proof = signing.close()
    for phase in waiting.values():
        revealing.receive(phase.step(proof)[1])
    rebuilt = revealing.close()
    # They did reveal what twelve survivors do not need, and the sum stays hidden: two sites' pairwise masks are on it.
    assert len(rebuilt.excess_keys()) == len(UPLOADED)
    assert not rebuilt.mask_keys
    total = sum(stage.uploads[index].vector for index in UPLOADED) - rebuilt.combined_mask()
    noise = noise_of(codec, list(secrets.values()))
    assert np.abs((total - noise)[2:].astype(np.int32).astype(np.int64)).max() > 1 << 16
