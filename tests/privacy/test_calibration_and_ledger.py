"""Budgets, calibration, and the ledger that never gives anything back."""

import pytest

from fl_core.errors import BudgetExhausted, PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.calibration import epsilon_after, noise_multiplier_for, rounds_within
from fl_core.privacy.events import Noise, PrivacyEvent, integer_l1
from fl_core.privacy.ledger import check_affordable, spent


def _gaussian(rate: float):
    return lambda multiplier: PrivacyEvent(Noise.GAUSSIAN, 1.0, multiplier**2, rate)


def _skellam(multiplier: float) -> PrivacyEvent:
    return PrivacyEvent(Noise.SKELLAM, 300.0, (300 * multiplier) ** 2, l1_sensitivity=integer_l1(300, 5000))


@pytest.mark.parametrize("event_of", [_gaussian(1.0), _gaussian(0.1), _skellam])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0])
def test_calibration_comes_back_to_its_epsilon_within_one_per_cent(event_of, epsilon: float) -> None:
    budget = PrivacyBudget(epsilon, 1e-5)
    event = event_of(noise_multiplier_for(budget, 20, event_of))
    assert 0.99 * epsilon <= epsilon_after(event, 20, 1e-5) <= epsilon


def test_the_noise_multiplier_is_that_of_dp_accounting() -> None:
    from dp_accounting import dp_event
    from dp_accounting.mechanism_calibration import calibrate_dp_mechanism
    from dp_accounting.rdp import RdpAccountant

    theirs = calibrate_dp_mechanism(
        RdpAccountant,
        lambda sigma: dp_event.SelfComposedDpEvent(
            dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(sigma)), 50
        ),
        1.0,
        1e-5,
    )
    assert noise_multiplier_for(PrivacyBudget(1.0, 1e-5), 50, _gaussian(0.1)) == pytest.approx(theirs, rel=0.01)


def test_as_many_rounds_fit_as_the_noise_was_made_for() -> None:
    budget = PrivacyBudget(2.0, 1e-5)
    event = _gaussian(1.0)(noise_multiplier_for(budget, 30, _gaussian(1.0)))
    assert rounds_within(budget, event, 1000) == 30


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (1e9, 1e-5), (1, 0), (1, 0.5), (float("nan"), 1e-5)]
)
def test_a_budget_out_of_range_is_refused_with_the_number(epsilon: float, delta: float) -> None:
    with pytest.raises(PlanError, match=r"epsilon|delta") as refused:
        PrivacyBudget(epsilon, delta)
    assert refused.value.fix


@pytest.mark.parametrize("variance", [0.0, -1.0, float("inf"), float("nan")])
def test_an_event_without_noise_is_refused(variance: float) -> None:
    with pytest.raises(PlanError, match="noise"):
        PrivacyEvent(Noise.SKELLAM, 1.0, variance, l1_sensitivity=1.0)


def test_the_ledger_stops_before_the_release_that_would_overshoot() -> None:
    budget = PrivacyBudget(2.0, 1e-5)
    event = _gaussian(1.0)(noise_multiplier_for(budget, 5, _gaussian(1.0)))
    reserved: list[PrivacyEvent] = []
    for _ in range(5):
        assert check_affordable(budget, reserved, event, "job j").epsilon <= 2.0
        reserved.append(event)
    with pytest.raises(BudgetExhausted, match=r"job j.*5 releases"):
        check_affordable(budget, reserved, event, "job j")


def test_both_figures_of_a_sampled_ledger_are_told() -> None:
    figures = spent([_gaussian(0.1)(1.0)] * 20, 1e-5)
    assert figures.epsilon < figures.epsilon_to_participants
    assert figures.releases == 20
    assert spent([], 1e-5).epsilon == 0


def test_events_of_several_kinds_add_up() -> None:
    together = spent([_skellam(2.0), _gaussian(1.0)(2.0)], 1e-5).epsilon
    assert together > max(spent([_skellam(2.0)], 1e-5).epsilon, spent([_gaussian(1.0)(2.0)], 1e-5).epsilon)
