"""Rényi divergences summed term by term, in one dimension: the second opinion on every published bound."""

from math import exp, lgamma, log, sqrt

import numpy as np
import numpy.typing as npt

Mass = npt.NDArray[np.float64]


def log_discrete_gaussian(variance: float, reach: int) -> Mass:
    """Log-probabilities at -reach .. reach."""
    places = np.arange(-reach, reach + 1)
    weights = -(places**2) / (2 * variance)
    return weights - np.logaddexp.reduce(weights)


def log_skellam(variance: float, reach: int) -> Mass:
    """Log-probabilities at -reach .. reach, as the convolution of two Poisson laws summed in logarithms."""
    mean, terms = variance / 2, int(variance / 2 + 40 * sqrt(variance) + 60)
    j = np.arange(terms + 2 * reach)
    poisson = -mean + j * log(mean) - np.array([lgamma(n + 1) for n in j])
    return np.array(
        [np.logaddexp.reduce(poisson[abs(k) : terms + abs(k)] + poisson[:terms]) for k in range(-reach, reach + 1)]
    )


def divergence(log_p: Mass, log_q: Mass, order: float) -> float:
    """D_order(P || Q)."""
    return float(np.logaddexp.reduce(order * log_p + (1 - order) * log_q)) / (order - 1)


def shifted_pair(log_mass: Mass, shift: int) -> tuple[Mass, Mass]:
    """The law and the same law moved by `shift`, on the places where both are known."""
    return log_mass[shift:], log_mass[:-shift]


def mixture(log_p: Mass, log_q: Mass, rate: float) -> Mass:
    """rate * P + (1 - rate) * Q."""
    return np.logaddexp(log_p + log(rate), log_q + log(1 - rate))


def exact_epsilon_bound(rho: float, delta: float) -> float:
    """The textbook conversion of a zCDP bound, which every better conversion is below."""
    return rho + 2 * sqrt(rho * log(1 / delta))


def total(log_mass: Mass) -> float:
    """Should be one."""
    return exp(float(np.logaddexp.reduce(log_mass)))
