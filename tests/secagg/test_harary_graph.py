"""The Harary graph, its order, its witnesses, and the audit of its gaps."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import NotEnough, RemoteProtocolError
from fl_core.secagg.gap_audit import check_gaps
from fl_core.secagg.graph import HararyGraph, harary_graph, permutation

SEED = bytes(range(32))


def seed_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def connected(graph: HararyGraph, members: Sequence[int]) -> bool:
    left, frontier = set(members), list(members)[:1]
    left -= set(frontier)
    while frontier:
        near = left.intersection(graph.neighbours(frontier.pop()))
        left -= near
        frontier += near
    return not left


@given(st.sets(st.integers(0, 200), min_size=5, max_size=40), st.sampled_from([2, 4]), st.integers(0, 1000))
def test_everybody_has_k_neighbours_and_neighbours_are_mutual(members: set[int], degree: int, number: int) -> None:
    graph = harary_graph(sorted(members), degree, seed_of(number))
    for member in members:
        near = graph.neighbours(member)
        assert len(set(near)) == degree
        assert member not in near
        assert list(near) == sorted(near)
        assert all(member in graph.neighbours(other) for other in near)
        assert graph.holders(member) == near
    assert connected(graph, sorted(members))
    assert len(graph.witnesses) == degree
    assert set(graph.witnesses) <= members


def test_the_order_is_the_one_of_the_description() -> None:
    """A second implementation, block by block: AES-256 of counters, little-endian words, rejection, swaps."""
    size, block, position = 1000, b"", 0

    def word() -> int:
        nonlocal block, position
        if len(block) == 0:
            cipher = Cipher(algorithms.AES256(SEED), modes.ECB()).encryptor()
            block, position = cipher.update(position.to_bytes(16, "big")), position + 1
        found, block = int.from_bytes(block[:4], "little"), block[4:]
        return found

    order = list(range(size))
    for last in range(size - 1, 0, -1):
        while (drawn := word()) >= 2**32 // (last + 1) * (last + 1):
            continue
        other = drawn % (last + 1)
        order[last], order[other] = order[other], order[last]
    assert permutation(SEED, size) == order


def test_every_order_is_equally_likely() -> None:
    """24 orders of 4, 6,000 seeds: chi-square of 23 degrees of freedom is beyond 60 with a chance below 4e-5."""
    counts: dict[tuple[int, ...], int] = {}
    for number in range(6000):
        order = tuple(permutation(seed_of(number), 4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 250) ** 2 / 250 for count in counts.values()) < 60


def test_every_pair_is_equally_likely_to_be_neighbours() -> None:
    """45 pairs of 10 members, degree 4, 4,000 seeds: each pair 4/9 of the time.

    The 45 counts add up to a constant and those of one member too, so that the sum of squares over the variance of one
    count is at most that of 44 degrees of freedom in the mean; beyond 100 with a chance below 1e-5.
    """
    counts = np.zeros((10, 10))
    for number in range(4000):
        graph = harary_graph(range(10), 4, seed_of(number))
        for member in range(10):
            counts[member, list(graph.neighbours(member))] += 1
    expected, variance = 4000 * 4 / 9, 4000 * 4 / 9 * 5 / 9
    pairs = [counts[a, b] for a, b in combinations(range(10), 2)]
    assert sum((count - expected) ** 2 / variance for count in pairs) < 100


def test_a_flipped_bit_of_the_seed_gives_another_order() -> None:
    flipped = bytes([SEED[0] ^ 1]) + SEED[1:]
    assert permutation(SEED, 50) != permutation(flipped, 50)


def test_too_few_or_disordered_members_make_no_graph() -> None:
    with pytest.raises(NotEnough, match="> 4, got 4"):
        harary_graph(range(4), 4, SEED)
    with pytest.raises(RemoteProtocolError, match="not in order"):
        harary_graph([0, 2, 1, 3, 4], 2, SEED)


def cuts(graph: HararyGraph, survivors: set[int], need: int) -> bool:
    """The audit by its definition: two windows without a common member."""
    size, window = len(graph.order), graph.degree // 2
    windows = [{graph.order[(start + step) % size] for step in range(window)} for start in range(size)]
    bad = [one for one in windows if len(one - survivors) >= need]
    return any(not one & other for one, other in combinations(bad, 2))


@given(st.integers(8, 24), st.sampled_from([4, 6]), st.integers(0, 50), st.data())
def test_the_audit_finds_exactly_two_disjoint_windows(size: int, degree: int, number: int, data: st.DataObject) -> None:
    graph = harary_graph(range(size), degree, seed_of(number))
    survivors = data.draw(st.sets(st.integers(0, size - 1)))
    need = data.draw(st.integers(1, degree // 2))
    if cuts(graph, survivors, need):
        with pytest.raises(NotEnough, match="cut the graph"):
            check_gaps(graph, sorted(survivors), need)
    else:
        check_gaps(graph, sorted(survivors), need)


@given(st.integers(8, 24), st.sampled_from([4, 6]), st.integers(0, 50), st.data())
def test_what_passes_the_audit_is_connected(size: int, degree: int, number: int, data: st.DataObject) -> None:
    """At most `spare` corrupt members in a window, and a need of k/2 - spare: honest survivors stay together."""
    graph = harary_graph(range(size), degree, seed_of(number))
    corrupt = data.draw(st.sets(st.integers(0, size - 1), max_size=size // 3))
    window = degree // 2
    spare = max(len({graph.order[(start + step) % size] for step in range(window)} & corrupt) for start in range(size))
    if spare >= window:
        return
    survivors = data.draw(st.sets(st.integers(0, size - 1))) | corrupt
    try:
        check_gaps(graph, sorted(survivors), window - spare)
    except NotEnough:
        return
    assert connected(graph, sorted(survivors - corrupt))
