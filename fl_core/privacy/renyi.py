"""Rényi differential privacy of additive noise: one curve over orders for each kind of noise, and Poisson sampling.

A curve says, for each order alpha, how far apart the outputs of two neighbouring inputs can be (Rényi divergence).
Curves of rounds add up. The fractional orders of sampled Gaussian noise need no more than numpy, so that a site can
check a plan without torch; tests hold every curve against opacus, dp-accounting and divergences summed term by term.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import ceil, erfc, exp, expm1, inf, lgamma, log, log1p, pi, sqrt

import numpy as np
import numpy.typing as npt

Curve = npt.NDArray[np.float64]
"""(orders,) Rényi divergences, one for each of `ORDERS`."""

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(64.0, 80.0, 96.0, 128.0, 192.0, 256.0, 512.0, 1024.0),
)

OrderCurve = Callable[[int], float]
"""Divergence at an integer order of at least 2."""

_LAST_TERM = -34.0
_MOST_TERMS = 200
_ASYMPTOTIC_FROM = 20.0


def gaussian(order: float, noise_multiplier: float) -> float:
    """Gaussian noise, and the discrete Gaussian under integer shifts, whose divergence is the same.

    Args:
        order: alpha > 1.
        noise_multiplier: standard deviation over L2 sensitivity.

    Source: Mironov 2017, corollary 3; Canonne, Kamath, Steinke 2020, proposition 5.
    """
    return order / (2 * noise_multiplier**2)


def skellam(order: float, l2: float, l1: float, variance: float) -> float:
    """Skellam noise: the difference of two Poisson variables of mean `variance` / 2 in each coordinate.

    Args:
        order: alpha; the bound is for integers of at least 2, others are rounded up.
        l2: largest L2 norm of the integer shift.
        l1: largest L1 norm of the integer shift.
        variance: of the whole noise of one coordinate, ring units squared.

    Source: Agarwal, Kairouz, Liu 2021, The Skellam Mechanism for Differentially Private Federated Learning, thm 3.5.
    """
    alpha = max(2, ceil(order))
    correction = ((2 * alpha - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return alpha * l2**2 / (2 * variance) + min(correction, 3 * l1 / (2 * variance))


def distributed_discrete_gaussian(
    order: float, l2: float, l1: float, share_variance: float, shares: int, dimension: int
) -> float:
    """The sum of `shares` discrete Gaussians, which is not quite one itself.

    Args:
        order: alpha > 1.
        l2: largest L2 norm of the integer shift.
        l1: largest L1 norm of the integer shift.
        share_variance: sigma^2 of one share, ring units squared.
        shares: how many are summed.
        dimension: coordinates.

    Source: Kairouz, Liu, Steinke 2021, The Distributed Discrete Gaussian Mechanism, proposition 14 and theorem 1.
    """
    tau = 10 * sum(exp(-2 * pi**2 * share_variance * k / (k + 1)) for k in range(1, shares))
    scaled_l2, scaled_l1 = l2 / sqrt(shares * share_variance), l1 / sqrt(shares * share_variance)
    return min(
        order / 2 * scaled_l2**2 + tau * dimension,
        order / 2 * (scaled_l2**2 + 2 * scaled_l1 * tau + tau**2 * dimension),
        order / 2 * (scaled_l2 + sqrt(dimension) * tau) ** 2,
    )


def poisson_sampled(order: float, base: OrderCurve, rate: float) -> float:
    """The divergence when each contribution is in the sum with probability `rate`, independently of all others.

    It is exact where `base` is, for noise that is symmetric: x -> shift - x swaps the two outputs then, so that the
    divergence of the mixture from the noise is the larger of the two directions.

    Args:
        order: alpha; others than integers are rounded up, which only raises the result.
        base: divergence without sampling, at integer orders.
        rate: of sampling, 0 to 1.

    Source: Mironov, Talwar, Zhang 2019, Rényi Differential Privacy of the Sampled Gaussian Mechanism, theorems 4
    and 5; Zhu, Wang 2019, Poisson Subsampled Rényi Differential Privacy, theorem 5.
    """
    alpha = max(2, ceil(order))
    if rate in (0.0, 1.0):
        return base(alpha) if rate else 0.0
    powers = np.arange(alpha + 1)
    moments = np.array([0.0, 0.0, *((k - 1) * base(k) for k in range(2, alpha + 1))])
    terms = _log_binomials(alpha) + powers * log(rate) + (alpha - powers) * log1p(-rate) + moments
    return max(0.0, _log_sum(terms) / (alpha - 1))


def sampled_gaussian(order: float, noise_multiplier: float, rate: float) -> float:
    """Gaussian noise with Poisson sampling, at any order above 1.

    Source: Mironov, Talwar, Zhang 2019, section 3.3.
    """
    if rate in (0.0, 1.0):
        return gaussian(order, noise_multiplier) if rate else 0.0
    if float(order).is_integer():
        return poisson_sampled(order, lambda alpha: gaussian(alpha, noise_multiplier), rate)
    return _fractional(order, noise_multiplier, rate)


def mixed(order: float, sampled: float, unsampled: float, chance: float) -> float:
    """A bound where the sampling held except with probability `chance`, and otherwise did not hide anybody.

    Source: the moments of a mixture are jointly convex (van Erven, Harremoës 2014, theorem 13).
    """
    if chance in (0.0, 1.0):
        return unsampled if chance else sampled
    terms = np.array([log1p(-chance) + (order - 1) * sampled, log(chance) + (order - 1) * unsampled])
    return min(unsampled, _log_sum(terms) / (order - 1))


def epsilon_of(curve: Curve, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """The smallest epsilon that the curve gives at this delta.

    Args:
        curve: divergences by order.
        delta: 0 < delta < 1.
        orders: of the curve.

    Source: Canonne, Kamath, Steinke 2020, proposition 12.
    """
    # Below this divergence delta alone covers the difference (Bretagnolle and Huber's bound).
    if any(divergence >= 0 and delta**2 + expm1(-divergence) > 0 for divergence in curve):
        return 0.0
    found = inf
    for order, divergence in zip(orders, curve, strict=True):
        if order > 1.01:
            found = min(found, divergence + log1p(-1 / order) - (log(delta) + log(order)) / (order - 1))
    return max(0.0, found)


def delta_of(curve: Curve, epsilon: float, orders: Sequence[float] = ORDERS) -> float:
    """The smallest delta that the curve gives at this epsilon; arguments and source as `epsilon_of`."""
    found = 0.0
    for order, divergence in zip(orders, curve, strict=True):
        if order > 1.01:
            found = min(found, (order - 1) * (divergence - epsilon + log1p(-1 / order)) - log(order))
    return exp(found)


@cache
def _log_binomials(alpha: int) -> Curve:
    return np.array([lgamma(alpha + 1) - lgamma(k + 1) - lgamma(alpha - k + 1) for k in range(alpha + 1)])


def _log_sum(terms: Curve) -> float:
    top = float(terms.max())
    return top + log(float(np.exp(terms - top).sum()))


def _fractional(order: float, sigma: float, rate: float) -> float:
    """Both halves of the integral, split at the point where the two densities of the mixture are equal."""
    split = sigma**2 * log(1 / rate - 1) + 0.5
    positive, negative = -inf, -inf
    log_coefficient, sign, k = 0.0, 1.0, 0
    while True:
        rest = order - k
        left = log_coefficient + k * log(rate) + rest * log1p(-rate) + (k * k - k) / (2 * sigma**2)
        left += log(0.5) + _log_erfc((k - split) / (sqrt(2) * sigma))
        right = log_coefficient + rest * log(rate) + k * log1p(-rate) + (rest * rest - rest) / (2 * sigma**2)
        right += log(0.5) + _log_erfc((split - rest) / (sqrt(2) * sigma))
        term = _log_add(left, right)
        if sign > 0:
            positive = _log_add(positive, term)
        else:
            negative = _log_add(negative, term)
        if max(left, right) < positive + _LAST_TERM and k > order:
            break
        if k > _MOST_TERMS:
            # Little noise and much sampling converge slowly. The next whole order bounds this one.
            return poisson_sampled(order, lambda alpha: gaussian(alpha, sigma), rate)
        factor = (order - k) / (k + 1)
        log_coefficient += log(abs(factor))
        sign = sign if factor > 0 else -sign
        k += 1
    return max(0.0, (positive + log1p(-exp(min(0.0, negative - positive)))) / (order - 1))


def _log_add(a: float, b: float) -> float:
    low, high = min(a, b), max(a, b)
    return high if low == -inf else high + log1p(exp(low - high))


def _log_erfc(x: float) -> float:
    if x < _ASYMPTOTIC_FROM:
        return log(erfc(x))
    # erfc underflows soon after; its asymptotic series has an error below 1e-9 from here on.
    inverse = 1 / (2 * x * x)
    return -x * x - log(x * sqrt(pi)) + log1p(-inverse + 3 * inverse**2 - 15 * inverse**3)
