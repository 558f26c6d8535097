"""Thresholds against theorem 6.5 and figure 5 of Bonawitz et al. 2017."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import PlanError
from fl_core.secagg.profiles import check_thresholds, default_threshold, most_corrupt, most_dropouts


@pytest.mark.parametrize(("size", "threshold"), [(3, 3), (4, 3), (10, 7), (100, 67), (1000, 667)])
def test_the_default_threshold_is_two_thirds_and_one(size: int, threshold: int) -> None:
    assert default_threshold(size) == threshold


def test_the_default_holds_against_nearly_a_third_corrupt_and_nearly_a_third_dropped() -> None:
    """Figure 5: n_C = ceil(n/3) - 1 corrupt sites with the servers, and as many drop-outs."""
    for size in range(4, 2000):
        third = (-(-size // 3) - 1) / size
        check_thresholds(size, default_threshold(size), max_dropout=third, max_corrupt=third)


def test_the_default_holds_for_thirty_per_cent_of_drop_outs() -> None:
    for size in range(3, 2000):
        check_thresholds(size, default_threshold(size), max_dropout=0.3, max_corrupt=0.3)


@given(st.integers(3, 200), st.integers(1, 200), st.floats(0, 0.99), st.floats(0, 0.99))
def test_what_passes_satisfies_the_theorem(size: int, threshold: int, dropout: float, corrupt: float) -> None:
    holds = 2 * threshold > size + most_corrupt(size, corrupt) and threshold <= size - most_dropouts(size, dropout)
    if holds:
        check_thresholds(size, threshold, dropout, corrupt)
        return
    with pytest.raises(PlanError):
        check_thresholds(size, threshold, dropout, corrupt)


def test_a_refusal_names_the_number_to_change() -> None:
    with pytest.raises(PlanError, match="raise threshold to 7"):
        check_thresholds(10, 6, max_dropout=0.1, max_corrupt=0.3)
    with pytest.raises(PlanError, match="lower threshold to 7"):
        check_thresholds(10, 8, max_dropout=0.3, max_corrupt=0.1)
    with pytest.raises(PlanError, match="lower max_dropout or max_corrupt"):
        check_thresholds(10, 7, max_dropout=0.5, max_corrupt=0.3)


def test_a_small_fraction_of_a_small_cohort_is_still_one_corrupt_site() -> None:
    assert most_corrupt(10, 0.05) == 1
    assert most_corrupt(10, 0.0) == 0


def test_a_fraction_is_the_number_that_was_written() -> None:
    assert most_dropouts(100, 0.29) == 29
    assert most_corrupt(100, 0.57) == 57
