"""Attack: the key server tells sites different survivors.

Each site alone sees a set that is large enough. Put together, their shares give the seeds of a few sites and the mask
keys of all the rest: a sum over fewer sites than anybody agreed to.

What stops it: a site reveals only after a threshold of signatures on the very set that it signed itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.mask_prg import RingVector, reduce_ring
from fl_core.crypto.shamir import combine, lagrange_at_zero, parse_share
from fl_core.errors import BadShares, BadSignature, NotEnough, RemoteProtocolError, TacitError
from fl_core.secagg import client
from fl_core.secagg.directory import survivors_statement
from fl_core.secagg.masks import MaskTerm, expand_terms, pair_term, self_term
from fl_core.secagg.messages import (
    ConsistencyProof,
    KeyDirectory,
    RelayedShares,
    RevealedShare,
    RevealedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.simulation import stages

SIZE, THRESHOLD, TARGETS = 10, 6, (0, 1, 2, 3)


def views() -> list[tuple[int, ...]]:
    """Ten sets of six sites. Each site is in its own; each of the six others is left out of at least six sets."""
    kept = [(4, 5), (6, 7), (8, 9), (4, 5), *((4 + place, 4 + (place + 1) % 6) for place in range(6))]
    return [tuple(sorted((*TARGETS, *pair))) for pair in kept]


def rebuilt(reveals: Sequence[RevealedShares], owner: int, kind: str) -> bytes:
    held: list[tuple[int, RevealedShare]] = [
        (sent.index, share) for sent in reveals for share in getattr(sent, kind) if share.owner == owner
    ][:THRESHOLD]
    assert len(held) == THRESHOLD
    rows = np.stack([parse_share(share.share).reshape(1, -1) for _, share in held])
    return combine(lagrange_at_zero([holder for holder, _ in held]), rows)[0]


def split_the_cohort(cohort: stages.Cohort) -> RingVector:
    """The attack: the sum over four sites, though each site helps only to unmask six."""
    stage = stages.upload(stages.share(stages.advertise(cohort)))
    proofs, signatures = {}, []
    for index, view in enumerate(views()):
        proofs[index], signature = stage.sites[index].step(SurvivorSet(view))
        signatures.append(signature)
    reveals = []
    for index, view in enumerate(views()):
        proof = ConsistencyProof(tuple(signature for signature in signatures if signature.index in view))
        reveals.append(proofs[index].step(proof)[1])
    known = stage.sites[0].directory
    terms = [self_term(known, owner, rebuilt(reveals, owner, "self_seed_shares")) for owner in TARGETS]
    for owner in range(4, SIZE):
        key = rebuilt(reveals, owner, "mask_key_shares")
        pairs = (pair_term(known, owner, peer, key) for peer in TARGETS)
        terms += [MaskTerm(term.key, not term.negative) for term in pairs]
    stripped = sum(stage.uploads[index].vector for index in TARGETS) - expand_terms(terms, cohort.context)
    reduce_ring(stripped, cohort.context.ring_bits)
    return stripped


def test_sites_that_are_told_different_survivors_reveal_nothing() -> None:
    with pytest.raises(TacitError, match="does not verify"):
        split_the_cohort(stages.make_cohort(SIZE, threshold=THRESHOLD))


def test_without_the_consistency_check_four_sites_are_summed_instead_of_six(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.AwaitingProof, "_check", lambda *_: None)
    cohort = stages.make_cohort(SIZE, threshold=THRESHOLD)
    assert np.array_equal(split_the_cohort(cohort), cohort.sum_of(TARGETS))


def test_a_set_below_the_smallest_cohort_is_not_even_signed() -> None:
    stage = stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE, threshold=THRESHOLD))))
    with pytest.raises(NotEnough, match=">= 6, got 4"):
        stage.sites[0].step(SurvivorSet(TARGETS))


def test_a_site_that_was_shown_another_cohort_is_not_helped_to_unmask() -> None:
    """The lie is one round earlier: the relay hides two sites from the victim, which then lacks their masks."""
    shared = stages.share(stages.advertise(stages.make_cohort(SIZE, threshold=THRESHOLD)))
    shared.relayed[0] = RelayedShares(shared.relayed[0].shares[:-2])
    stage = stages.upload(shared)
    with pytest.raises(RemoteProtocolError, match="outside U2"):
        stage.sites[0].step(stage.survivor_set)
    signatures = [stage.sites[index].step(SurvivorSet(tuple(range(8))))[1] for index in range(1, 8)]
    waiting, own = stage.sites[0].step(SurvivorSet(tuple(range(8))))
    with pytest.raises(BadSignature):
        waiting.step(ConsistencyProof((own, *signatures)))


def test_a_site_that_was_shown_other_keys_is_not_helped_to_unmask() -> None:
    """A corrupt site signs two advertisements, and the key server shows one to the victim and one to the others."""
    cohort = stages.make_cohort(SIZE, threshold=THRESHOLD)
    stage = stages.advertise(cohort)
    corrupt = client.advertise(cohort.context, 9, cohort.signers[9], cohort.verifier, cohort.entropy)[1]
    victims_view = KeyDirectory((*stage.directory.advertisements[:9], corrupt))
    _, sealed_by_victim = stage.sites[0].step(victims_view)
    victims_share = next(share for share in sealed_by_victim.shares if share.recipient == 1)
    waiting, _ = stage.sites[1].step(stage.directory)
    others = [stage.sites[index].step(stage.directory)[1].shares[1] for index in range(2, SIZE)]
    ready = waiting.step(RelayedShares((victims_share, *others)))
    assert 0 not in ready.held_shares
    # Fewer than a threshold that open, and the site does not even upload.
    shared = stages.share(stages.advertise(cohort))
    with pytest.raises(BadShares, match="a message of site"):
        shared.sites[1].step(stages.share(stages.advertise(cohort)).relayed[1])


@dataclass(frozen=True)
class Liar:
    """A key server and some sites that work together: they show any set to anybody and sign whatever helps."""

    stage: stages.Uploaded
    corrupt: frozenset[int]

    def play(self, shown: Sequence[tuple[int, ...]]) -> dict[int, RevealedShares]:
        """Show each honest site its set, then the best proof there is; what the honest sites reveal."""
        waiting: dict[int, client.AwaitingProof] = {}
        signed: dict[tuple[int, ...], list[SurvivorSignature]] = {}
        for index, view in enumerate(shown):
            if index in self.corrupt:
                continue
            try:
                waiting[index], signature = self.stage.sites[index].step(SurvivorSet(view))
            except TacitError:
                continue
            signed.setdefault(view, []).append(signature)
        revealed = {}
        for index, phase in waiting.items():
            try:
                revealed[index] = phase.step(self.proof(phase.survivors, signed[phase.survivors]))[1]
            except TacitError:
                continue
        return revealed

    def proof(self, view: tuple[int, ...], honest: list[SurvivorSignature]) -> ConsistencyProof:
        site = self.stage.sites[0]
        statement = survivors_statement(site.directory, site.participants, view)
        forged = [
            SurvivorSignature(index, self.stage.cohort.signers[index].sign(statement))
            for index in self.corrupt
            if index in view
        ]
        return ConsistencyProof(tuple(sorted((*honest, *forged), key=lambda signature: signature.index)))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_no_lie_gets_both_kinds_of_share_of_one_site_or_two_sets_unmasked(data: st.DataObject) -> None:
    """n = 7, t = 5 and two corrupt sites: 2t > n + n_C holds, with nothing to spare."""
    size, threshold, corrupt = 7, 5, frozenset({5, 6})
    cohort = stages.make_cohort(size, threshold=threshold)
    liar = Liar(stages.upload(stages.share(stages.advertise(cohort))), corrupt)
    sets = st.sets(st.integers(0, size), min_size=3, max_size=size).map(lambda chosen: tuple(sorted(chosen)))
    lies = data.draw(st.lists(sets, min_size=1, max_size=2))
    shown = data.draw(st.lists(st.sampled_from([*lies, tuple(range(size))]), min_size=size, max_size=size))
    revealed = liar.play(shown)
    assert len({shown[index] for index in revealed}) <= 1
    for sent in revealed.values():
        assert not {share.owner for share in sent.self_seed_shares} & {share.owner for share in sent.mask_key_shares}
    for victim in set(range(size)) - corrupt:
        kinds = [
            sum(any(share.owner == victim for share in getattr(sent, kind)) for sent in revealed.values())
            for kind in ("self_seed_shares", "mask_key_shares")
        ]
        assert min(kinds) + len(corrupt) < threshold
