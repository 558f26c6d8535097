"""Every curve against opacus, dp-accounting, published figures, and divergences that are summed term by term."""

from math import sqrt

import numpy as np
import pytest

from fl_core.privacy import renyi
from fl_core.privacy.events import Noise, PrivacyEvent, integer_l1
from fl_core.privacy.renyi import ORDERS, epsilon_of
from tests.privacy.exact_divergence import divergence, log_discrete_gaussian, log_skellam, mixture, shifted_pair, total


def test_sampled_gaussian_gives_the_published_values_of_dp_accounting() -> None:
    published = {2.5: 1.08548710e-3, 5.0: 2.18075656e-3, 50.0: 2.38460375e-2, 100.0: 167.416308}
    for order, expected in published.items():
        assert 50 * renyi.sampled_gaussian(order, 2.5, 0.01) == pytest.approx(expected, rel=1e-4)
    # At 1.5 the published 6.70579741e-4 is a bound (that library adds terms that alternate); the integral is below it.
    assert 50 * renyi.sampled_gaussian(1.5, 2.5, 0.01) == pytest.approx(50 * _integral(1.5, 2.5, 0.01), rel=1e-6)
    assert 50 * renyi.sampled_gaussian(1.5, 2.5, 0.01) < 6.70579741e-4


def test_sampled_gaussian_gives_the_published_epsilon_of_opacus() -> None:
    event = PrivacyEvent(Noise.GAUSSIAN, 1.0, 1.5**2, sampling_rate=0.04, steps=2250)
    assert epsilon_of(event.curve(), 1e-5) == pytest.approx(7.32911117143, rel=1e-4)
    once = PrivacyEvent(Noise.GAUSSIAN, 1.0, 1.0)
    assert epsilon_of(once.curve(), 1e-5) == pytest.approx(4.7285070672, rel=1e-4)


@pytest.mark.parametrize(("sigma", "rate"), [(0.7, 0.3), (1.1, 0.01), (4.0, 0.1), (1.0, 0.9)])
def test_the_gaussian_curve_is_that_of_opacus_and_dp_accounting(sigma: float, rate: float) -> None:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = [1.1, 1.9, 2.0, 3.7, 8.0, 10.9, 32.0, 63.0, 128.0]
    ours = np.array([renyi.sampled_gaussian(order, sigma, rate) for order in orders])
    exact = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders)
    # With little noise and much sampling the lowest orders are bounded by the next whole one, never from below.
    converges = np.array([(sigma >= 1 and rate < 0.5) or order % 1 == 0 or order > 3 for order in orders])
    np.testing.assert_allclose(ours[converges], exact[converges], rtol=1e-6)
    assert np.all(ours >= exact * (1 - 1e-6))
    accountant = RdpAccountant(orders)
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)))
    theirs = np.array(accountant._rdp)
    is_whole = np.array(orders) % 1 == 0
    np.testing.assert_allclose(ours[is_whole], theirs[is_whole], rtol=1e-6)
    assert np.all(ours[converges] <= theirs[converges] * (1 + 1e-6))
    assert epsilon_of(theirs, 1e-6, orders) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-9)


@pytest.mark.parametrize(("variance", "exact", "bound"), [(64.0, 0.062296, 0.063782), (256.0, 0.015622, 0.015705)])
def test_the_skellam_curve_has_the_listed_values(variance: float, exact: float, bound: float) -> None:
    law, moved = shifted_pair(log_skellam(variance, int(12 * sqrt(variance))), 1)
    assert divergence(moved, law, 8) == pytest.approx(exact, rel=1e-4)
    assert renyi.skellam(8, 1.0, 1.0, variance) == pytest.approx(bound, rel=1e-4)


@pytest.mark.parametrize("variance", [8.0, 64.0, 256.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [2, 4, 8, 16])
def test_the_skellam_curve_bounds_the_exact_divergence(variance: float, shift: int, order: int) -> None:
    law, moved = shifted_pair(log_skellam(variance, int(25 * sqrt(variance)) + 40), shift)
    exact = max(divergence(law, moved, order), divergence(moved, law, order))
    bound = renyi.skellam(order, shift, integer_l1(shift, 1), variance)
    assert exact <= bound * (1 + 1e-9)
    assert bound <= exact * (1.12 if variance >= 64 and order * shift <= 24 else 3)


@pytest.mark.parametrize("variance", [2.0, 20.0])
@pytest.mark.parametrize("order", [1.5, 2.0, 9.0])
def test_the_discrete_gaussian_has_exactly_the_curve_of_the_gaussian(variance: float, order: float) -> None:
    law, moved = shifted_pair(log_discrete_gaussian(variance, 200), 2)
    assert divergence(moved, law, order) == pytest.approx(renyi.gaussian(order, sqrt(variance) / 2), rel=1e-9)


@pytest.mark.parametrize("noise", [Noise.DISCRETE_GAUSSIAN, Noise.SKELLAM])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("order", [2, 3, 7, 16])
def test_poisson_sampling_bounds_both_directions_of_the_exact_mixture(noise: Noise, rate: float, order: int) -> None:
    variance, shift = 36.0, 2
    make = log_skellam if noise is Noise.SKELLAM else log_discrete_gaussian
    law, moved = shifted_pair(make(variance, 400 if noise is Noise.DISCRETE_GAUSSIAN else 150), shift)
    mixed = mixture(moved, law, rate)
    event = PrivacyEvent(noise, shift, variance, rate, l1_sensitivity=integer_l1(shift, 1))
    claimed = event.curve()[ORDERS.index(float(order))]
    exact = max(divergence(mixed, law, order), divergence(law, mixed, order))
    assert exact <= claimed * (1 + 1e-9)
    assert claimed <= exact * 1.6


def test_a_sum_of_discrete_gaussians_is_bounded_and_near_the_gaussian() -> None:
    shares, share_variance, order = 4, 4.0, 6
    one = np.exp(log_discrete_gaussian(share_variance, 60))
    law = one
    for _ in range(shares - 1):
        law = np.convolve(law, one)
    kept = np.log(law[100:-100])
    assert total(kept) == pytest.approx(1.0)
    exact = divergence(*shifted_pair(kept, 1), order)
    bound = renyi.distributed_discrete_gaussian(order, 1.0, 1.0, share_variance, shares, 1)
    assert exact <= bound * (1 + 1e-9)
    assert bound == pytest.approx(order / (2 * shares * share_variance), rel=1e-6)


def test_few_narrow_shares_of_discrete_gaussians_cost_more_than_a_gaussian() -> None:
    ideal = 8 / (2 * 100 * 0.25)
    assert renyi.distributed_discrete_gaussian(8, 1.0, 1.0, 0.25, 100, 1000) > 10 * ideal


def test_a_chance_that_the_sampling_hid_nobody_costs() -> None:
    hidden = PrivacyEvent(Noise.GAUSSIAN, 1.0, 4.0, sampling_rate=0.1)
    doubtful = PrivacyEvent(Noise.GAUSSIAN, 1.0, 4.0, sampling_rate=0.1, exposed=1e-3)
    open_to_all = hidden.without_sampling()
    assert np.all(hidden.curve() <= doubtful.curve())
    assert np.all(doubtful.curve() <= open_to_all.curve() + 1e-12)
    assert epsilon_of(hidden.curve(), 1e-5) < epsilon_of(doubtful.curve(), 1e-5)
    certain = PrivacyEvent(Noise.GAUSSIAN, 1.0, 4.0, sampling_rate=0.1, exposed=1.0)
    np.testing.assert_array_equal(certain.curve(), open_to_all.curve())


def test_amplification_is_not_epsilon_over_the_root_of_the_rate() -> None:
    full = PrivacyEvent(Noise.GAUSSIAN, 1.0, 1.0)
    sampled = PrivacyEvent(Noise.GAUSSIAN, 1.0, 1.0, sampling_rate=0.5)
    assert epsilon_of(sampled.curve(), 1e-5) > epsilon_of(full.curve(), 1e-5) * 0.5


def _integral(order: float, sigma: float, rate: float) -> float:
    """The divergence of the mixture from the noise, by the trapezoidal rule, which converges fast on such tails."""
    x = np.linspace(-60, 80, 200_001)
    density = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * sqrt(2 * np.pi))
    moment = density * (1 - rate + rate * np.exp((2 * x - 1) / (2 * sigma**2))) ** order
    return float(np.log(np.trapezoid(moment, x))) / (order - 1)


def test_delta_and_epsilon_invert_one_another() -> None:
    curve = 10 * PrivacyEvent(Noise.GAUSSIAN, 1.0, 9.0).curve()
    epsilon = epsilon_of(curve, 1e-6)
    assert renyi.delta_of(curve, epsilon) == pytest.approx(1e-6, rel=1e-6)
