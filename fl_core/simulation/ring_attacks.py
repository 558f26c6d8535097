"""Malicious parties against sparse graphs: they choose who stands where on the ring, or who drops out of it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from fl_core.crypto import labels
from fl_core.crypto.mask_prg import RingVector, reduce_ring
from fl_core.crypto.one_time import sign_once, verify_key_of
from fl_core.crypto.shamir import combine, lagrange_at_zero, parse_shares
from fl_core.errors import NotEnough
from fl_core.secagg import client
from fl_core.secagg.beacon import beacon_statement
from fl_core.secagg.directory import Directory, FrozenKeys, freeze_keys
from fl_core.secagg.graph import HararyGraph, harary_graph
from fl_core.secagg.masks import MaskTerm, expand_terms, pair_term, self_term
from fl_core.secagg.messages import (
    Beacon,
    ConsistencyProof,
    KeyAdvertisement,
    KeyDirectory,
    RelayedShares,
    RevealedShares,
    SealedShare,
    SurvivorSet,
)
from fl_core.secagg.sealing import open_shares
from fl_core.simulation import stages

SIZE, DEGREE, SMALLEST, VICTIM, CORRUPT = 12, 2, 8, 0, frozenset({9, 10, 11})
TRIES = 10_000


def exchange_the_members() -> bool:
    """A key server freezes an honest U1, gets the beacon, and then looks for a U1 whose graph surrounds its victim."""
    cohort, sites, messages = _begin()
    assert cohort.beacon is not None
    beacon = cohort.beacon.reveal(cohort.context.binding, freeze_keys(cohort.context, messages).digest)
    for members in _smaller_cohorts(messages):
        keys = freeze_keys(cohort.context, members)
        directory = _directory_with(keys, beacon)
        if _surrounds(directory):
            return _strips_the_victim(cohort, sites, directory, keys.excerpt(directory, VICTIM, beacon))
    raise AssertionError("no U1 suits the server; take another seed for the cohort")


def grind_the_value() -> bool:
    """A key server takes no beacon of the coordinator, but looks for a value whose graph surrounds its victim."""
    cohort, sites, messages = _begin()
    keys = freeze_keys(cohort.context, messages)
    key = cohort.entropy(32)
    signature = sign_once(key, beacon_statement(cohort.context.binding, keys.digest))
    for number in range(TRIES):
        beacon = Beacon(number.to_bytes(32, "big"), verify_key_of(key), signature)
        directory = _directory_with(keys, beacon)
        if _surrounds(directory):
            return _strips_the_victim(cohort, sites, directory, keys.excerpt(directory, VICTIM, beacon))
    raise AssertionError("no value suits the server")


def cut_the_ring() -> bool:
    """A coordinator that knows the graph calls four of fourteen sites gone, and four others stand alone between them.

    The degree is 4, so that two members in a row are a gap. The sum of the four is released, though ten survived.
    """
    cohort = stages.make_cohort(14, threshold=2, min_survivors=10, sparse=stages.Sparse(degree=4, audit_needs=(2,)))
    stage = stages.upload(stages.share(stages.advertise(cohort)))
    ring = ring_of(stage)
    gone, part = {*ring[0:2], *ring[6:8]}, ring[2:6]
    survivors = SurvivorSet(tuple(index for index in range(14) if index not in gone))
    signed = {index: stage.sites[index].step(survivors) for index in survivors.survivors}
    witnesses = stage.sites[0].directory.graph.witnesses
    proof = ConsistencyProof(tuple(signed[index][1] for index in witnesses if index in signed))
    reveals = {index: phase.step(proof)[1] for index, (phase, _) in signed.items()}
    keys = {index: rebuilt(reveals, index, "mask_key_shares", 2) for index in gone}
    return np.array_equal(sum_of_part(stage, reveals, part, keys), cohort.sum_of(part))


def ring_of(stage: stages.Uploaded) -> tuple[int, ...]:
    """The members as they stand on the ring."""
    graph = stage.sites[0].directory.graph
    assert isinstance(graph, HararyGraph)
    return graph.order


def rebuilt(reveals: Mapping[int, RevealedShares], owner: int, kind: str, threshold: int) -> bytes:
    """A secret of an owner, from what the sites revealed.

    Raises:
        NotEnough: fewer than the threshold revealed a share of this kind.
    """
    held = [
        (index, share.share)
        for index, sent in sorted(reveals.items())
        for share in getattr(sent, kind)
        if share.owner == owner
    ][:threshold]
    if len(held) < threshold:
        raise NotEnough("too few shares for the attacker", expected=threshold, got=len(held))
    rows = np.stack([parse_shares([share]) for _, share in held])
    return combine(lagrange_at_zero([index for index, _ in held]), rows)[0]


def sum_of_part(
    stage: stages.Uploaded, reveals: Mapping[int, RevealedShares], part: Sequence[int], keys: Mapping[int, bytes]
) -> RingVector:
    """Unmask the sum over one part of the ring; of all its neighbours outside the mask keys are known."""
    directory, threshold = stage.sites[part[0]].directory, stage.cohort.context.threshold
    terms = [self_term(directory, owner, rebuilt(reveals, owner, "self_seed_shares", threshold)) for owner in part]
    for owner, key in keys.items():
        near = set(directory.graph.neighbours(owner)).intersection(part)
        pairs = (pair_term(stage.sites[owner].directory, owner, peer, key) for peer in near)
        terms += [MaskTerm(term.key, not term.negative) for term in pairs]
    total: RingVector = np.sum([stage.uploads[index].vector for index in part], axis=0, dtype=np.uint32)
    total -= expand_terms(terms, stage.cohort.context)
    reduce_ring(total, stage.cohort.context.ring_bits)
    return total


def _begin() -> tuple[stages.Cohort, dict[int, client.CollectingDirectory], list[KeyAdvertisement]]:
    cohort = stages.make_cohort(SIZE, threshold=2, min_survivors=SMALLEST, sparse=stages.Sparse(DEGREE, (1,)))
    begun = [
        client.advertise(cohort.context, index, cohort.signers[index], cohort.verifier, cohort.entropy)
        for index in range(SIZE)
    ]
    return cohort, {index: site for index, (site, _) in enumerate(begun)}, [message for _, message in begun]


def _smaller_cohorts(messages: Sequence[KeyAdvertisement]) -> Iterator[list[KeyAdvertisement]]:
    """Every U1 that leaves out some of the honest others."""
    others = [index for index in range(SIZE) if index not in CORRUPT and index != VICTIM]
    for count in range(SIZE - SMALLEST + 1):
        for gone in combinations(others, count):
            yield [message for message in messages if message.index not in gone]


def _directory_with(keys: FrozenKeys, beacon: Beacon) -> Directory:
    """The directory with the graph that this beacon gives; the server does not ask whether it may."""
    seed = labels.digest_fields(labels.GRAPH_SEED, keys.context.binding, keys.digest, beacon.value)
    by_index = {message.index: message for message in keys.advertisements}
    return Directory(keys.context, keys.members, by_index, harary_graph(keys.members, DEGREE, seed), keys.digest)


def _surrounds(directory: Directory) -> bool:
    return set(directory.graph.neighbours(VICTIM)) <= CORRUPT


def _strips_the_victim(
    cohort: stages.Cohort,
    sites: Mapping[int, client.CollectingDirectory],
    directory: Directory,
    shown: KeyDirectory,
) -> bool:
    """Show the victim the chosen graph, let it mask its vector, and take all masks off: its neighbours know them."""
    waiting, sealed = sites[VICTIM].step(shown)
    helpers = directory.graph.neighbours(VICTIM)
    phases = {helper: sites[helper].step(_shown_to(directory, helper, shown)) for helper in helpers}
    relayed = RelayedShares(tuple(_sealed_for_victim(phases[helper][1].shares) for helper in helpers))
    _, upload = waiting.step(relayed).step(cohort.vectors[VICTIM])
    held = [_opened(phases[share.recipient][0], share) for share in sealed.shares]
    seed = combine(lagrange_at_zero(helpers), np.stack([parse_shares([share]) for share in held]))[0]
    pairs = [pair_term(directory, helper, VICTIM, sites[helper].secrets.mask_secret_key) for helper in helpers]
    # A pair's mask has one sign at the helper and the other at the victim.
    stripped = upload.vector - expand_terms([self_term(directory, VICTIM, seed)], cohort.context)
    stripped += expand_terms(pairs, cohort.context)
    reduce_ring(stripped, cohort.context.ring_bits)
    return np.array_equal(stripped, cohort.vectors[VICTIM])


def _shown_to(directory: Directory, index: int, shown: KeyDirectory) -> KeyDirectory:
    assert shown.excerpt is not None
    keys = freeze_keys(directory.context, [directory.advertisements[member] for member in directory.members])
    return keys.excerpt(directory, index, shown.excerpt.beacon)


def _sealed_for_victim(shares: Sequence[SealedShare]) -> SealedShare:
    return next(share for share in shares if share.recipient == VICTIM)


def _opened(phase: client.CollectingShares, share: SealedShare) -> bytes:
    return open_shares(phase.directory, share, phase.opening_keys[VICTIM]).self_seed
