"""Tails of the hypergeometric distribution, summed term by term: no bound and no approximation.

X is the number of marked items among `draws` items that are drawn from a population without putting any back.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import lgamma

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draw:
    """`draws` items of a population of which some are marked.

    Args:
        population: items, N.
        marked: marked items among them, at most N.
        draws: items that are drawn, at most N.
    """

    population: int
    marked: int
    draws: int

    @property
    def fewest(self) -> int:
        """The smallest number of marked items that can be drawn."""
        return max(0, self.draws - (self.population - self.marked))

    def probabilities(self) -> Floats:
        """P[X = fewest], P[X = fewest + 1] and so on, to the largest number that can be drawn."""
        counts = np.arange(self.fewest, min(self.draws, self.marked) + 1)
        others = self.population - self.marked
        logs = (
            _log_binomials(self.marked, counts)
            + _log_binomials(others, self.draws - counts)
            - _log_binomials(self.population, np.array([self.draws]))
        )
        return np.exp(logs)

    def at_least(self, count: int) -> float:
        """P[X >= count]."""
        return float(self.probabilities()[max(0, count - self.fewest) :].sum())

    def rarely_reached(self, limit: float) -> int:
        """The smallest count c with P[X >= c] <= limit."""
        tails = np.cumsum(self.probabilities()[::-1])[::-1]
        return self.fewest + int(np.count_nonzero(tails > limit))

    def nearly_always_reached(self, limit: float) -> int:
        """The largest count c with P[X < c] <= limit."""
        tails = np.cumsum(self.probabilities())
        return self.fewest + int(np.count_nonzero(tails <= limit))


def log_falling_ratio(numerator: int, denominator: int, factors: int) -> float:
    """log of numerator (numerator - 1) ... / denominator (denominator - 1) ..., each of so many factors; -inf for 0."""
    if numerator < factors:
        return -np.inf
    logs = _log_factorials(denominator)
    return float(logs[numerator] - logs[numerator - factors] - logs[denominator] + logs[denominator - factors])


def _log_binomials(items: int, chosen: npt.NDArray[np.int64]) -> Floats:
    logs = _log_factorials(items)
    return np.asarray(logs[items] - logs[chosen] - logs[items - chosen])


def _log_factorials(largest: int) -> Floats:
    return _log_factorial_table(max(10, largest.bit_length()))


@lru_cache(maxsize=8)
def _log_factorial_table(bits: int) -> Floats:
    table = np.array([lgamma(number + 1.0) for number in range(1 << bits)])
    table.setflags(write=False)
    return table
