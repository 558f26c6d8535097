"""Parts of a site's noise: whoever survives, what stays is enough, and hardly more than that."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import PlanError
from fl_core.privacy.tiers import MAX_TIERS, TIER_RATIO, noise_tiers, part_variances
from fl_core.secagg import context
from fl_core.secagg.noise_seeds import parts_needed

Cohort = tuple[int, int, int]


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    """Sites, fewest survivors and colluders, as plans allow them and beyond."""
    size = draw(st.integers(1, 16_384))
    fewest = draw(st.integers(1, size))
    return size, fewest, draw(st.integers(0, fewest - 1))


@given(cohort=cohorts(), target=st.floats(1e-6, 1e10), place=st.floats(0, 1))
def test_what_stays_is_never_below_the_target_for_any_number_of_survivors(
    cohort: Cohort, target: float, place: float
) -> None:
    size, fewest, colluders = cohort
    survivors = fewest + round(place * (size - fewest))
    tiers = noise_tiers(size, fewest, colluders)
    parts = part_variances(target, tiers, colluders)
    kept = sum(map(Fraction, parts[: parts_needed(tiers, survivors)]))
    # In exact fractions: the colluders know their own noise, and the others' is enough without it.
    assert (survivors - colluders) * kept >= Fraction(target)
    # One part less would not do, unless somebody survives beyond the tier above.
    if survivors < size and survivors in tiers:
        fewer = sum(map(Fraction, parts[: parts_needed(tiers, survivors) - 1]))
        assert (survivors - colluders) * fewer < Fraction(target)


@given(cohort=cohorts())
def test_tiers_are_few_descend_and_end_where_the_plan_does(cohort: Cohort) -> None:
    size, fewest, colluders = cohort
    tiers = noise_tiers(size, fewest, colluders)
    assert (tiers[0], tiers[-1]) == (size, fewest)
    assert list(tiers) == sorted(set(tiers), reverse=True)
    assert len(tiers) <= MAX_TIERS == context.MAX_TIERS


@pytest.mark.parametrize(("size", "fewest"), [(3, 3), (10, 7), (100, 67), (100, 70), (1000, 667), (16_384, 11_000)])
def test_what_is_left_over_is_a_twentieth_of_the_variance_at_most(size: int, fewest: int) -> None:
    tiers = noise_tiers(size, fewest, 0)
    parts = part_variances(1.0, tiers, 0)
    for survivors in range(fewest, size + 1):
        kept = survivors * sum(parts[: parts_needed(tiers, survivors)])
        assert kept <= (1 + 1e-9 if survivors in tiers else TIER_RATIO + 1e-9)


def test_tiers_of_a_hundred_sites() -> None:
    assert noise_tiers(100, 70, 0) == (100, 95, 90, 85, 80, 76, 72, 70)
    assert noise_tiers(100, 70, 10) == (100, 95, 90, 86, 82, 78, 74, 70)
    assert noise_tiers(5, 4, 0) == (5, 4)
    assert noise_tiers(5, 5, 0) == (5,)


@pytest.mark.parametrize(("fewest", "colluders"), [(7, 7), (7, 8), (7, -1), (11, 0), (0, 0)])
def test_a_cohort_in_which_no_noise_counts_is_refused(fewest: int, colluders: int) -> None:
    with pytest.raises(PlanError, match="nobody is left"):
        noise_tiers(10, fewest, colluders)


def test_fewer_survivors_than_the_plan_allows_have_no_noise() -> None:
    with pytest.raises(PlanError, match="so few survivors"):
        parts_needed((10, 9, 8, 7), 6)
