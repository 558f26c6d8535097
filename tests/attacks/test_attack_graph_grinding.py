"""Attack: a server picks the graph, so that all neighbours of one site work for it.

The neighbours then hold all shares of the victim and the keys of all its masks: its vector lies open.

What stops it: the value behind the seed is committed to in the plan, before anybody sends keys; and it is revealed for
one directory only, which the coordinator signs, so that U1 cannot be tried and exchanged once the value is known.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest

from fl_core.crypto import labels
from fl_core.crypto.mask_prg import RingVector, reduce_ring
from fl_core.crypto.one_time import sign_once, verify_key_of
from fl_core.crypto.shamir import combine, lagrange_at_zero, parse_shares
from fl_core.errors import BadSignature, StaleMessage
from fl_core.secagg import beacon as beacons
from fl_core.secagg import client
from fl_core.secagg.directory import Directory, FrozenKeys, freeze_keys
from fl_core.secagg.graph import harary_graph
from fl_core.secagg.masks import expand_terms, pair_term, self_term
from fl_core.secagg.messages import Beacon, KeyAdvertisement, KeyDirectory, RelayedShares, SealedShare
from fl_core.secagg.sealing import open_shares
from fl_core.simulation import stages

SIZE, DEGREE, SMALLEST, VICTIM, CORRUPT = 12, 2, 8, 0, frozenset({9, 10, 11})


def begin() -> tuple[stages.Cohort, dict[int, client.CollectingDirectory], list[KeyAdvertisement]]:
    cohort = stages.make_cohort(SIZE, threshold=2, min_survivors=SMALLEST, sparse=stages.Sparse(DEGREE, (1,)))
    begun = [
        client.advertise(cohort.context, index, cohort.signers[index], cohort.verifier, cohort.entropy)
        for index in range(SIZE)
    ]
    return cohort, {index: site for index, (site, _) in enumerate(begun)}, [message for _, message in begun]


def smaller_cohorts(messages: Sequence[KeyAdvertisement]) -> Iterator[list[KeyAdvertisement]]:
    """Every U1 that leaves out some of the honest others."""
    others = [index for index in range(SIZE) if index not in CORRUPT and index != VICTIM]
    for count in range(SIZE - SMALLEST + 1):
        for gone in combinations(others, count):
            yield [message for message in messages if message.index not in gone]


def directory_with(keys: FrozenKeys, beacon: Beacon) -> Directory:
    """The directory with the graph that this beacon gives; the server does not ask whether it may."""
    seed = labels.digest_fields(labels.GRAPH_SEED, keys.context.binding, keys.digest, beacon.value)
    by_index = {message.index: message for message in keys.advertisements}
    return Directory(keys.context, keys.members, by_index, harary_graph(keys.members, DEGREE, seed), keys.digest)


def surrounds(directory: Directory) -> bool:
    return set(directory.graph.neighbours(VICTIM)) <= CORRUPT


def strip(
    cohort: stages.Cohort,
    sites: dict[int, client.CollectingDirectory],
    directory: Directory,
    shown: KeyDirectory,
) -> RingVector:
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
    return stripped


def _shown_to(directory: Directory, index: int, shown: KeyDirectory) -> KeyDirectory:
    assert shown.excerpt is not None
    keys = freeze_keys(directory.context, [directory.advertisements[member] for member in directory.members])
    return keys.excerpt(directory, index, shown.excerpt.beacon)


def _sealed_for_victim(shares: Sequence[SealedShare]) -> SealedShare:
    return next(share for share in shares if share.recipient == VICTIM)


def _opened(phase: client.CollectingShares, share: SealedShare) -> bytes:
    return open_shares(phase.directory, share, phase.opening_keys[VICTIM]).self_seed


def exchange_the_members_once_the_value_is_known() -> tuple[RingVector, RingVector]:
    """The key server freezes an honest U1, gets the beacon, and then looks for a U1 that suits it."""
    cohort, sites, messages = begin()
    assert cohort.beacon is not None
    beacon = cohort.beacon.reveal(cohort.context.binding, freeze_keys(cohort.context, messages).digest)
    for members in smaller_cohorts(messages):
        keys = freeze_keys(cohort.context, members)
        directory = directory_with(keys, beacon)
        if surrounds(directory):
            return strip(cohort, sites, directory, keys.excerpt(directory, VICTIM, beacon)), cohort.vectors[VICTIM]
    raise AssertionError("no U1 suits the server; take another seed for the cohort")


def choose_the_value() -> tuple[RingVector, RingVector]:
    """The server takes no beacon of the coordinator, but looks for a value that suits it."""
    cohort, sites, messages = begin()
    keys = freeze_keys(cohort.context, messages)
    key = cohort.entropy(32)
    signature = sign_once(key, beacons.beacon_statement(cohort.context.binding, keys.digest))
    for number in range(10_000):
        beacon = Beacon(number.to_bytes(32, "big"), verify_key_of(key), signature)
        directory = directory_with(keys, beacon)
        if surrounds(directory):
            return strip(cohort, sites, directory, keys.excerpt(directory, VICTIM, beacon)), cohort.vectors[VICTIM]
    raise AssertionError("no value suits the server")


def test_a_directory_that_was_chosen_after_the_beacon_is_refused() -> None:
    with pytest.raises(BadSignature, match="did not sign this directory"):
        exchange_the_members_once_the_value_is_known()


def test_without_the_coordinators_signature_the_victims_vector_lies_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beacons, "verify_once", lambda *_: None)
    stripped, secret = exchange_the_members_once_the_value_is_known()
    assert np.array_equal(stripped, secret)


def test_a_seed_that_a_server_chose_is_refused() -> None:
    with pytest.raises(StaleMessage, match="not the one of the plan"):
        choose_the_value()


def test_without_the_commitment_the_victims_vector_lies_open(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, _, _ = begin()
    assert cohort.context.harary is not None
    commitment = cohort.context.harary.commitment
    monkeypatch.setattr(beacons, "commitment_of", lambda *_: commitment)
    stripped, secret = choose_the_value()
    assert np.array_equal(stripped, secret)
