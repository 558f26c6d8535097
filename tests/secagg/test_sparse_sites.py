"""What a site checks beside a sparse graph: excerpts, neighbours, survivors and witnesses, each bent and refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fl_core.crypto.agreement import generate_key_pair
from fl_core.errors import BadSignature, IdentityError, LocalProtocolError, NotEnough, RemoteProtocolError, TacitError
from fl_core.secagg.context import HararySpec
from fl_core.secagg.exchange import CollectingAdvertisements
from fl_core.secagg.graph import HararyGraph
from fl_core.secagg.messages import (
    Beacon,
    ConsistencyProof,
    DirectoryExcerpt,
    KeyAdvertisement,
    KeyDirectory,
    RelayedShares,
    SealedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.simulation import stages
from fl_core.simulation.entropy import seeded_entropy

SIZE, DEGREE, THRESHOLD, SMALLEST, NEED = 16, 6, 4, 11, 3


def cohort(seed: int = 1) -> stages.Cohort:
    return stages.make_cohort(
        SIZE, seed=seed, threshold=THRESHOLD, min_survivors=SMALLEST, sparse=stages.Sparse(DEGREE, (NEED,))
    )


def graph_of(stage: stages.Shared) -> HararyGraph:
    graph = stage.sites[next(iter(stage.sites))].directory.graph
    assert isinstance(graph, HararyGraph)
    return graph


def test_a_whole_session_gives_the_exact_sum() -> None:
    everybody = cohort()
    uploaded = stages.upload(stages.share(stages.advertise(everybody), range(15)), range(14))
    signed = stages.sign(uploaded, range(13))
    assert np.array_equal(stages.reveal(signed), everybody.sum_of(range(14)))


def test_a_site_is_shown_its_neighbours_the_witnesses_and_itself() -> None:
    advertised = stages.advertise(cohort())
    shown = advertised.directory_of(3)
    waiting, sealed = advertised.sites[3].step(shown)
    graph = waiting.directory.graph
    assert {one.index for one in shown.advertisements} == {3, *graph.neighbours(3), *graph.witnesses}
    assert [share.recipient for share in sealed.shares] == list(graph.neighbours(3))
    assert waiting.own_shares is None


def test_all_sites_and_the_server_know_one_graph_and_one_digest() -> None:
    shared = stages.share(stages.advertise(cohort()))
    assert len({site.directory.digest for site in shared.sites.values()}) == 1
    assert len({site.directory.graph.order for site in shared.sites.values()}) == 1  # type: ignore[attr-defined]


Bend = Callable[[stages.Advertised, KeyDirectory], KeyDirectory]


def excerpt(**changes: object) -> Bend:
    """Change fields of the excerpt."""

    def bend(_: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
        assert shown.excerpt is not None
        return replace(shown, excerpt=replace(shown.excerpt, **changes))  # type: ignore[arg-type]

    return bend


def beacon(**changes: bytes) -> Bend:
    """Change fields of the beacon."""

    def bend(stage: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
        assert shown.excerpt is not None
        return excerpt(beacon=replace(shown.excerpt.beacon, **changes))(stage, shown)

    return bend


def advertisement(index: int, **changes: bytes) -> Bend:
    """Change fields of one advertisement that is shown."""

    def bend(_: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
        bent = (replace(one, **changes) if one.index == index else one for one in shown.advertisements)  # type: ignore[arg-type]
        return replace(shown, advertisements=tuple(bent))

    return bend


def _graph(stage: stages.Advertised) -> HararyGraph:
    graph = stage.server._directory.graph
    assert isinstance(graph, HararyGraph)
    return graph


def without_a_neighbour(stage: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
    """The neighbour is left out, and the proof is right for what is left."""
    assert shown.excerpt is not None
    gone = some_neighbour_of(stage, shown).index
    return shown_with(stage, [one.index for one in shown.advertisements if one.index != gone])


def with_a_stranger(stage: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
    """One more than the neighbours, with a right proof."""
    here = {one.index for one in shown.advertisements}
    return shown_with(stage, sorted({*here, next(index for index in range(SIZE) if index not in here)}))


def some_neighbour_of(stage: stages.Advertised, shown: KeyDirectory) -> KeyAdvertisement:
    graph = _graph(stage)
    return next(
        one for one in shown.advertisements if one.index in graph.neighbours(3) and one.index not in graph.witnesses
    )


def shown_with(stage: stages.Advertised, indices: list[int]) -> KeyDirectory:
    assert stage.excerpts is not None
    keys = stage.excerpts._keys
    proof = keys._tree.prove(indices)
    return KeyDirectory(
        tuple(keys.advertisements[index] for index in indices),
        DirectoryExcerpt(keys.members, proof, stage.excerpts._beacon),
    )


def swapped_neighbour(stage: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
    """A neighbour's mask key is replaced; the Merkle proof no longer fits."""
    fresh = generate_key_pair(seeded_entropy(99)).public_key
    return advertisement(some_neighbour_of(stage, shown).index, mask_public_key=fresh)(stage, shown)


def unsigned_neighbour(stage: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
    return advertisement(some_neighbour_of(stage, shown).index, signature=b"")(stage, shown)


def neighbour_with_another_certificate(stage: stages.Advertised, shown: KeyDirectory) -> KeyDirectory:
    near = some_neighbour_of(stage, shown).index
    other = stage.cohort.signers[(near + 1) % SIZE].certificate_der
    return advertisement(near, certificate_der=other)(stage, shown)


BENT_EXCERPTS: dict[str, tuple[Bend, type[TacitError], str]] = {
    "no excerpt": (lambda _, shown: replace(shown, excerpt=None), RemoteProtocolError, "not of the graph"),
    "another value": (beacon(value=bytes(32)), RemoteProtocolError, "not the one of the plan"),
    "another key": (beacon(verify_key=bytes(32)), RemoteProtocolError, "not the one of the plan"),
    "an unsigned directory": (beacon(signature=bytes(64)), BadSignature, "did not sign this directory"),
    "a bent proof": (
        lambda stage, shown: excerpt(proof=(bytes(32), *shown.excerpt.proof[1:]))(stage, shown),  # type: ignore[union-attr]
        BadSignature,
        "did not sign this directory",
    ),
    "a short proof": (excerpt(proof=()), RemoteProtocolError, "too short"),
    "other members": (excerpt(members=(*range(SIZE - 1), SIZE)), RemoteProtocolError, "outside the roster"),
    "a member less": (
        lambda stage, shown: excerpt(members=tuple(index for index in range(SIZE) if index != _hidden(shown)))(
            stage, shown
        ),
        TacitError,
        "proof is too|did not sign",
    ),
    "ourselves no member": (
        excerpt(members=tuple(index for index in range(SIZE) if index != 3)),
        RemoteProtocolError,
        "outside U1",
    ),
    "too few members": (excerpt(members=tuple(range(SMALLEST - 1))), NotEnough, ">= 11, got 10"),
    "members out of order": (excerpt(members=(1, 0, *range(2, SIZE))), RemoteProtocolError, "not in order"),
    "a neighbour left out": (without_a_neighbour, RemoteProtocolError, "not those of this session"),
    "a stranger shown": (with_a_stranger, RemoteProtocolError, "not those of this session"),
    "another's excerpt": (lambda stage, _: stage.directory_of(4), RemoteProtocolError, "not those of this session"),
    "a neighbour's key swapped": (swapped_neighbour, BadSignature, "did not sign this directory"),
    "a neighbour's signature missing": (unsigned_neighbour, BadSignature, "verify"),
    "a neighbour with another certificate": (neighbour_with_another_certificate, IdentityError, "certificate of site"),
    "our own keys replaced": (
        advertisement(3, mask_public_key=generate_key_pair(seeded_entropy(98)).public_key),
        TacitError,
        "did not sign this directory",
    ),
    "our own signature replaced": (advertisement(3, signature=b"x"), RemoteProtocolError, "our own keys"),
    "an advertisement twice": (
        lambda _, shown: replace(shown, advertisements=(shown.advertisements[0], *shown.advertisements)),
        RemoteProtocolError,
        "not in order",
    ),
}


def _hidden(shown: KeyDirectory) -> int:
    here = {one.index for one in shown.advertisements}
    return next(index for index in range(SIZE) if index not in here)


@pytest.mark.parametrize("name", BENT_EXCERPTS)
def test_a_bent_excerpt_is_refused_and_changes_nothing(name: str) -> None:
    bend, error, text = BENT_EXCERPTS[name]
    stage = stages.advertise(cohort())
    with pytest.raises(error, match=text):
        stage.sites[3].step(bend(stage, stage.directory_of(3)))
    stage.sites[3].step(stage.directory_of(3))


def test_a_complete_session_takes_no_excerpt_and_a_server_no_beacon_too_many() -> None:
    complete = stages.advertise(stages.make_cohort(SIZE))
    sparse = stages.advertise(cohort())
    with pytest.raises(RemoteProtocolError, match="not of the graph"):
        complete.sites[3].step(sparse.directory_of(3))
    with pytest.raises(LocalProtocolError, match="needs no beacon"):
        CollectingAdvertisements(complete.cohort.context, complete.cohort.verifier).freeze()
    with pytest.raises(LocalProtocolError, match="needs a beacon"):
        CollectingAdvertisements(sparse.cohort.context, sparse.cohort.verifier).close()


def test_a_server_refuses_a_beacon_that_is_not_of_the_plan_and_waits_for_the_right_one() -> None:
    everybody = cohort()
    server = CollectingAdvertisements(everybody.context, everybody.verifier)
    for message in stages.advertise(everybody).excerpts._keys.advertisements:  # type: ignore[union-attr]
        server.receive(message)
    frozen = server.freeze()
    with pytest.raises(RemoteProtocolError, match="not the one of the plan"):
        frozen.step(Beacon(bytes(32), bytes(32), bytes(64)))
    assert frozen.members == tuple(range(SIZE))


def test_shares_for_others_than_the_neighbours_are_refused_by_the_server() -> None:
    stage = stages.advertise(cohort())
    _, sealed = stage.sites[3].step(stage.directory_of(3))
    graph = _graph(stage)
    stranger = next(index for index in range(SIZE) if index not in graph.neighbours(3) and index != 3)
    bent = (*sealed.shares[1:], replace(sealed.shares[0], recipient=stranger))
    with pytest.raises(RemoteProtocolError):
        stage.server.receive(3, SealedShares(tuple(sorted(bent, key=lambda share: share.recipient)), b""))
    stage.server.receive(3, sealed)


def test_too_few_neighbours_that_shared_stop_a_site() -> None:
    shared = stages.share(stages.advertise(cohort()))
    with pytest.raises(NotEnough, match=">= 4, got 3"):
        shared.sites[3].step(RelayedShares(shared.relayed[3].shares[:3]))
    shared.sites[3].step(shared.relayed[3])


def test_a_neighbour_that_was_hidden_and_yet_survives_is_noticed() -> None:
    """The relay hides one neighbour from the victim: the two share no mask, and nobody counts a drop-out."""
    shared = stages.share(stages.advertise(cohort()))
    hidden = shared.relayed[3].shares[0].sender
    shared.relayed[3] = RelayedShares(shared.relayed[3].shares[1:])
    uploaded = stages.upload(shared)
    with pytest.raises(RemoteProtocolError, match=f"outside U2.*got site {hidden};"):
        uploaded.sites[3].step(uploaded.survivor_set)


def test_bent_survivors_are_refused_and_change_nothing() -> None:
    shared = stages.share(stages.advertise(cohort()))
    graph = graph_of(shared)
    uploaded = stages.upload(shared)
    near = graph.neighbours(3)
    for survivors, error, text in [
        ((*range(SIZE), SIZE), RemoteProtocolError, "outside U1"),
        (tuple(index for index in range(SIZE) if index != 3), RemoteProtocolError, "leave this site out"),
        (tuple(index for index in range(SIZE) if index not in near[:3]), NotEnough, "neighbours survived"),
        (tuple(sorted({3, *near})), NotEnough, ">= 11, got 7"),
        ((0, 0, *range(1, SIZE)), RemoteProtocolError, "not in order"),
    ]:
        with pytest.raises(error, match=text):
            uploaded.sites[3].step(SurvivorSet(survivors))
    uploaded.sites[3].step(uploaded.survivor_set)


def test_survivors_whose_absence_cuts_the_ring_are_refused() -> None:
    """Two gaps of k/2, far apart, and yet more survivors than the session demands."""
    everybody = stages.make_cohort(SIZE, threshold=2, min_survivors=10, sparse=stages.Sparse(DEGREE, (NEED,)))
    uploaded = stages.upload(stages.share(stages.advertise(everybody)))
    order = uploaded.sites[0].directory.graph.order  # type: ignore[attr-defined]
    gone = {*order[:3], *order[8:11]}
    survivors = tuple(index for index in range(SIZE) if index not in gone)
    with pytest.raises(NotEnough, match="cut the graph"):
        uploaded.sites[order[5]].step(SurvivorSet(survivors))
    one_gap = tuple(index for index in range(SIZE) if index not in order[:3])
    uploaded.sites[order[5]].step(SurvivorSet(one_gap))


BENT_PROOFS: dict[str, tuple[Callable[[stages.Signed, HararyGraph], ConsistencyProof], type[TacitError], str]] = {
    "too few witnesses": (
        lambda stage, _: ConsistencyProof(stage.proof.signatures[:3]),
        NotEnough,
        ">= 4, got 3",
    ),
    "others in the place of witnesses": (
        lambda stage, graph: ConsistencyProof(
            tuple(_signature(stage, index) for index in range(SIZE) if index not in graph.witnesses)
        ),
        RemoteProtocolError,
        "outside the witnesses",
    ),
    "a witness twice": (
        lambda stage, _: ConsistencyProof((stage.proof.signatures[0], *stage.proof.signatures)),
        RemoteProtocolError,
        "not in order",
    ),
    "a forged signature of a witness": (
        lambda stage, _: ConsistencyProof(
            (replace(stage.proof.signatures[0], signature=b""), *stage.proof.signatures[1:])
        ),
        BadSignature,
        "verify",
    ),
}


def _signature(stage: stages.Signed, index: int) -> SurvivorSignature:
    return SurvivorSignature(index, stage.cohort.signers[index].sign(stage.sites[index].statement))


@pytest.mark.parametrize("name", BENT_PROOFS)
def test_a_bent_proof_of_witnesses_is_refused_and_nothing_is_revealed(name: str) -> None:
    bend, error, text = BENT_PROOFS[name]
    shared = stages.share(stages.advertise(cohort()))
    graph = graph_of(shared)
    stage = stages.sign(stages.upload(shared))
    assert {one.index for one in stage.proof.signatures} == set(graph.witnesses)
    with pytest.raises(error, match=text):
        stage.sites[3].step(bend(stage, graph))
    stage.sites[3].step(stage.proof)


def test_a_site_reveals_shares_of_its_neighbours_only_and_one_kind_of_each() -> None:
    shared = stages.share(stages.advertise(cohort()))
    near = graph_of(shared).neighbours(3)
    stage = stages.sign(stages.upload(shared, [index for index in range(SIZE) if index != near[0]]))
    _, revealed = stage.sites[3].step(stage.proof)
    assert [share.owner for share in revealed.mask_key_shares] == [near[0]]
    assert [share.owner for share in revealed.self_seed_shares] == list(near[1:])


@pytest.mark.parametrize(("needs", "refused"), [((2, 2), False), ((2, 1), True), ((1, 2), False)])
def test_the_audit_asks_for_what_the_u1_that_there_is_needs(needs: tuple[int, ...], refused: bool) -> None:
    """One site of fourteen sends no keys, and two others, far from one another on the ring, drop out later."""
    cohort = stages.make_cohort(14, threshold=2, min_survivors=10, sparse=stages.Sparse(4, needs))
    shared = stages.share(stages.advertise(cohort, range(13)))
    graph = shared.sites[0].directory.graph
    assert isinstance(graph, HararyGraph)
    ring = graph.order
    gone = {ring[0], ring[6]}
    uploaded = stages.upload(shared, [index for index in range(13) if index not in gone])
    if refused:
        with pytest.raises(NotEnough, match="cut the graph"):
            stages.sign(uploaded)
    else:
        stages.sign(uploaded)


def test_the_last_need_counts_for_every_smaller_u1() -> None:
    spec = HararySpec(6, bytes(32), (3, 2))
    assert [spec.audit_need(absent) for absent in (0, 1, 2, 100)] == [3, 2, 2, 2]
