"""Attack: the key server unmasks one session twice, the second time with the victim declared dropped.

The first answer gives it the victim's seed, the second its mask key: together they take the mask off one upload. What
stops it: a phase of a site moves once, so that a site signs one survivor set and reveals once.
"""

import copy
from typing import Any

import numpy as np
import pytest

from fl_core.crypto.mask_prg import RingVector, reduce_ring
from fl_core.errors import LocalProtocolError
from fl_core.secagg import client
from fl_core.secagg.masks import expand_terms, pair_term, self_term
from fl_core.secagg.messages import ConsistencyProof, SurvivorSet
from fl_core.secagg.phase import Turn
from fl_core.secagg.unmasking import CollectingReveals, RebuiltSeeds, SharesRelayed
from fl_core.simulation import stages

SIZE, VICTIM = 7, 3


def unmask(stage: stages.Uploaded, asked: list[int], survivors: tuple[int, ...]) -> RebuiltSeeds:
    """Rounds 3 and 4 with these sites, by a key server that keeps no rule of its own."""
    server = SharesRelayed(
        stage.sites[0].directory, stage.cohort.verifier, tuple(range(SIZE)), stage.server.commitments
    )
    survivor_set = SurvivorSet(survivors)
    signatures = server.freeze(survivor_set)
    proofs: dict[int, client.AwaitingProof] = {}
    for index in asked:
        proofs[index], message = stage.sites[index].step(survivor_set)
        signatures.receive(message)
    reveals, proof = signatures.close()
    return answer(reveals, proofs, proof)


def answer(
    reveals: CollectingReveals, proofs: dict[int, client.AwaitingProof], proof: ConsistencyProof
) -> RebuiltSeeds:
    for phase in proofs.values():
        reveals.receive(phase.step(proof)[1])
    return reveals.close()


def unmask_twice(cohort: stages.Cohort) -> RingVector:
    """The attack: what the key server, together with the aggregator, learns of the victim's vector."""
    stage = stages.upload(stages.share(stages.advertise(cohort)))
    others = [index for index in range(SIZE) if index != VICTIM]
    seed = unmask(stage, list(range(SIZE)), tuple(range(SIZE))).self_seeds[VICTIM]
    key = unmask(stage, others, tuple(others)).mask_keys[VICTIM]
    known = stage.sites[0].directory
    pairs = [pair_term(known, VICTIM, peer, key) for peer in others]
    stripped = stage.uploads[VICTIM].vector - expand_terms([self_term(known, VICTIM, seed), *pairs], cohort.context)
    reduce_ring(stripped, cohort.context.ring_bits)
    return stripped


def test_a_second_unmasking_of_one_session_is_refused_by_every_site() -> None:
    with pytest.raises(LocalProtocolError, match="stepped twice"):
        unmask_twice(stages.make_cohort(SIZE))


def test_without_one_shot_phases_it_reads_the_victims_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turn, "__enter__", lambda turn: turn)
    cohort = stages.make_cohort(SIZE)
    assert np.array_equal(unmask_twice(cohort), cohort.vectors[VICTIM])


def test_a_phase_that_was_unmasked_cannot_be_brought_back_from_a_copy() -> None:
    stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE)))))
    phase: Any = stage.sites[0]
    phase.step(stage.proof)
    with pytest.raises(LocalProtocolError, match="stepped twice"):
        copy.copy(phase).step(stage.proof)


def test_a_retry_has_nothing_in_common_with_the_attempt_before() -> None:
    """The same site, the same vector, another attempt: no key, commitment, share or masked word comes back."""
    messages = []
    for attempt in (1, 2):
        cohort = stages.make_cohort(SIZE, attempt=attempt)
        advertised = stages.advertise(cohort)
        own = advertised.directory.advertisements[0]
        shared = stages.share(advertised)
        sealed = {share.ciphertext for relayed in shared.relayed.values() for share in relayed.shares}
        messages.append({own.cipher_public_key, own.mask_public_key, own.self_seed_commitment, *sealed})
    assert not messages[0] & messages[1]
    assert len(messages[0]) == 3 + SIZE * (SIZE - 1)
