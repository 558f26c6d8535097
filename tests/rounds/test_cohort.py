"""Cohorts: within bounds, sorted, fair, and refused when too few sites are there."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import NotEnough, PlanError
from fl_core.rounds.cohort import CohortBounds, choose_cohort, fill_up
from fl_core.rounds.plan import ClientId


def entropy_of(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=30), st.integers(1, 6), st.integers(0, 9))
def test_a_cohort_is_a_sorted_choice_within_its_bounds(names: list[str], most: int, seed: int) -> None:
    connected = [ClientId(name) for name in names]
    bounds = CohortBounds(1, most)
    if not connected:
        with pytest.raises(NotEnough):
            choose_cohort(connected, bounds, entropy_of(seed))
        return
    cohort = choose_cohort(connected, bounds, entropy_of(seed))
    assert len(cohort) == min(most, len(set(connected)))
    assert list(cohort) == sorted(set(cohort) & set(connected))


def test_every_site_is_equally_likely() -> None:
    # 6,000 choices of 2 among 6: each site 2,000 times expected, standard deviation 36.5.
    # Six of them over 6 sites: chance of a false alarm below 1 in 10 million. The seed is fixed besides.
    entropy, sites = entropy_of(11), [ClientId(name) for name in "abcdef"]
    counts = Counter(site for _ in range(6000) for site in choose_cohort(sites, CohortBounds(1, 2), entropy))
    assert all(abs(counts[site] - 2000) < 220 for site in sites)


def test_everybody_is_taken_without_a_draw_when_there_is_room() -> None:
    def broken(size: int) -> bytes:
        raise AssertionError(size)

    assert choose_cohort([ClientId("b"), ClientId("a")], CohortBounds(1, 2), broken) == ("a", "b")


def test_too_few_sites_are_refused() -> None:
    with pytest.raises(NotEnough, match=r"at least 3.*got 2"):
        choose_cohort([ClientId("a"), ClientId("b"), ClientId("a")], CohortBounds(3, 5), entropy_of(0))


@pytest.mark.parametrize(("low", "high"), [(0, 5), (6, 5), (1, 16_385)])
def test_bounds_out_of_range_are_refused(low: int, high: int) -> None:
    with pytest.raises(PlanError):
        CohortBounds(low, high)


def names(text: str) -> list[ClientId]:
    return [ClientId(name) for name in text]


@pytest.mark.parametrize(
    ("connected", "quarantined", "candidates", "recalled"),
    [
        pytest.param("abcde", "", "abcde", "", id="nobody-lied"),
        pytest.param("abcde", "be", "acd", "", id="enough-others"),
        pytest.param("abcd", "db", "acd", "d", id="the-oldest-lie-comes-back-first"),
        pytest.param("abc", "xcb", "abc", "bc", id="who-is-not-there-helps-nobody"),
        pytest.param("ab", "b", "a", "", id="not-enough-with-them-either"),
    ],
)
def test_a_quarantine_gives_way_only_as_far_as_the_smallest_cohort_demands(
    connected: str, quarantined: str, candidates: str, recalled: str
) -> None:
    bounds = CohortBounds(3, 5)
    assert fill_up(names(connected), names(quarantined), bounds) == (names(candidates), names(recalled))
