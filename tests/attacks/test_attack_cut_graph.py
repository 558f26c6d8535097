"""Attack: servers that know a sparse graph choose who drops out, so that the ring falls apart.

The masks of each part cancel within it: the sum over a few sites is released though many more survived.

What stops it: every site looks for two gaps among the missing sites (the audit); and it waits for the witnesses, the
same for all, to agree on one set of survivors. Agreement among neighbours is not enough: two halves of the ring can be
shown two sets with one gap each, and no site has both gaps before its eyes.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pytest

from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import NotEnough, TacitError
from fl_core.secagg import client
from fl_core.secagg.directory import check_reach
from fl_core.secagg.messages import (
    ConsistencyProof,
    RevealedShare,
    RevealedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.simulation import stages
from fl_core.simulation.ring_attacks import cut_the_ring, rebuilt, ring_of, sum_of_part


def test_survivors_that_cut_the_ring_are_not_even_signed() -> None:
    with pytest.raises(NotEnough, match="cut the graph"):
        cut_the_ring()


def test_without_the_audit_four_sites_are_summed_instead_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "check_gaps", lambda *_: None)
    assert cut_the_ring()


SIZE, THRESHOLD = 24, 3


class TwoSets:
    """The half of the ring around place 0 is told of a gap there, the other half of one at place 12.

    In each gap of two, one site is called gone and the other works for the servers, as does one between the halves that
    are to be parted: 2t > k + C and a need of 1 hold for one corrupt site in each neighbourhood.
    """

    def __init__(self) -> None:
        cohort = stages.make_cohort(SIZE, threshold=THRESHOLD, min_survivors=23, sparse=stages.Sparse(4, (1,)))
        advertised = stages.advertise(cohort)
        keys = {index: site.secrets.mask_secret_key for index, site in advertised.sites.items()}
        self.stage = stages.upload(stages.share(advertised))
        self.ring = ring_of(self.stage)
        self.corrupt = (self.ring[1], self.ring[6], self.ring[13])
        self.corrupt_keys = {index: keys[index] for index in self.corrupt}
        near, far = self.ring[0], self.ring[12]
        self.gone = {index: near if place < 6 or place >= 18 else far for place, index in enumerate(self.ring)}
        # Who is called gone near by is told the other set, in which it stands.
        self.gone[near], self.gone[far] = far, near

    def play(self, known: Callable[[client.AwaitingProof], Collection[int]]) -> dict[int, RevealedShares]:
        """What the honest sites reveal when each is given all signatures that it can use."""
        waiting: dict[int, client.AwaitingProof] = {}
        signatures: list[tuple[int, SurvivorSignature]] = []
        for index, gone in self.gone.items():
            if index not in self.corrupt:
                view = SurvivorSet(tuple(other for other in range(SIZE) if other != gone))
                waiting[index], signature = self.stage.sites[index].step(view)
                signatures.append((gone, signature))
        reveals = {}
        for index, phase in waiting.items():
            agreeing = [one for gone, one in signatures if gone == self.gone[index]] + self._forged(phase)
            usable = sorted((one for one in agreeing if one.index in known(phase)), key=lambda one: one.index)
            try:
                reveals[index] = phase.step(ConsistencyProof(tuple(usable)))[1]
            except TacitError:
                continue
        return reveals

    def _forged(self, phase: client.AwaitingProof) -> list[SurvivorSignature]:
        signers = self.stage.cohort.signers
        return [SurvivorSignature(index, signers[index].sign(phase.statement)) for index in self.corrupt]

    def sum_of_ten(self, reveals: Mapping[int, RevealedShares]) -> RingVector:
        """The sum over one part of the ring, with all that the corrupt sites hold."""
        everything = {**reveals, **{index: _all_shares(self.stage.sites[index]) for index in self.corrupt}}
        gone = (self.ring[0], self.ring[12])
        keys = {index: rebuilt(everything, index, "mask_key_shares", THRESHOLD) for index in gone}
        outside = {index: key for index, key in self.corrupt_keys.items() if index != self.ring[6]}
        return sum_of_part(self.stage, everything, self.ring[2:12], {**keys, **outside})


def _all_shares(site: client.AwaitingSurvivors) -> RevealedShares:
    held = sorted(site.held_shares.items())
    seeds = tuple(RevealedShare(owner, shares.self_seed) for owner, shares in held)
    return RevealedShares(
        site.member.index, seeds, tuple(RevealedShare(owner, shares.mask_key) for owner, shares in held)
    )


def check_among_neighbours(phase: client.AwaitingProof, proof: ConsistencyProof) -> None:
    """The consistency check that looks obvious: a threshold of those who hold our shares signed what we signed."""
    check_reach(phase.directory, phase.member.index, [one.index for one in proof.signatures], "neighbours signed")
    for one in proof.signatures:
        certificate = phase.directory.advertisements[one.index].certificate_der
        phase.member.verifier.verify(one.index, certificate, phase.statement, one.signature)


def test_of_two_sets_with_one_gap_each_only_one_is_unmasked() -> None:
    attack = TwoSets()
    reveals = attack.play(lambda phase: phase.directory.graph.witnesses)
    assert len({attack.gone[index] for index in reveals}) == 1
    with pytest.raises(NotEnough):
        attack.sum_of_ten(reveals)


def test_with_witnesses_near_each_site_ten_sites_are_summed_instead_of_twenty_three(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client.AwaitingProof, "_check", check_among_neighbours)
    attack = TwoSets()
    reveals = attack.play(lambda phase: phase.directory.holders(phase.member.index))
    assert len({attack.gone[index] for index in reveals}) == 2
    assert np.array_equal(attack.sum_of_ten(reveals), attack.stage.cohort.sum_of(attack.ring[2:12]))
