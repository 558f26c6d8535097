"""The split of a cohort: everybody once, sizes in balance, and no one can tell beforehand who is with whom."""

import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import PlanError
from fl_core.rounds.partition import partition, session_sizes
from fl_core.rounds.plan import ClientId
from fl_core.simulation.entropy import seeded_entropy


def cohort(size: int) -> list[ClientId]:
    return [ClientId(f"site-{number:05}") for number in range(size)]


@given(sites=st.integers(1, 5_000), split=st.integers(1, 500))
def test_sessions_hold_every_site_once_and_have_at_least_the_size_that_was_asked_for(sites: int, split: int) -> None:
    sizes = session_sizes(sites, split)
    assert sum(sizes) == sites
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(sites, split)
    assert max(sizes) < 2 * split or len(sizes) == 1


def test_without_a_split_and_below_it_there_is_one_session() -> None:
    assert session_sizes(24, None) == (24,)
    assert session_sizes(7, 8) == (7,)
    assert session_sizes(24, 8) == (8, 8, 8)
    assert session_sizes(26, 8) == (9, 9, 8)


@given(sites=st.integers(1, 200), split=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_a_partition_is_one(sites: int, split: int, seed: int) -> None:
    everybody = cohort(sites)
    parts = partition(everybody, split, seeded_entropy(seed))
    assert sorted(name for part in parts for name in part) == everybody
    assert all(list(part) == sorted(part) for part in parts)
    assert tuple(len(part) for part in parts) == session_sizes(sites, split)


def test_every_pair_is_equally_often_together() -> None:
    # 3,000 draws; the chance that a pair of 15 is off its mean of 1,200 by more than 160 (six sigma) is below 3e-8.
    draw = seeded_entropy(7)
    together: Counter[tuple[str, str]] = Counter()
    for _ in range(3_000):
        for part in partition(cohort(6), 3, draw):
            together.update((one, other) for one in part for other in part if one < other)
    assert len(together) == 15
    assert all(abs(count - 1_200) < 160 for count in together.values())


def test_a_single_session_draws_nothing() -> None:
    def nothing(count: int) -> bytes:
        raise AssertionError(f"{count} bytes drawn")

    assert partition(cohort(5), None, nothing) == (tuple(cohort(5)),)


def test_a_site_that_stands_twice_is_refused() -> None:
    with pytest.raises(PlanError, match="twice"):
        partition([ClientId("a"), ClientId("a")], 1, os.urandom)


@pytest.mark.parametrize(("sites", "split"), [(0, 3), (3, 0)])
def test_impossible_numbers_are_refused(sites: int, split: int) -> None:
    with pytest.raises(PlanError):
        session_sizes(sites, split)
