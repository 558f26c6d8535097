"""How much noise a budget needs, and what a noise costs: by nested intervals, always on the safe side."""

from collections.abc import Callable
from math import inf, log, sqrt

from fl_core.errors import PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.events import PrivacyEvent
from fl_core.privacy.renyi import epsilon_of

EventOf = Callable[[float], PrivacyEvent]
"""The event of one round at a noise multiplier."""

SMALLEST, LARGEST = 0.01, 10_000.0
_RELATIVE_ERROR = 1e-3

Point = tuple[float, float]
"""A noise multiplier and its epsilon."""


def epsilon_after(event: PrivacyEvent, rounds: int, delta: float) -> float:
    """Epsilon of `rounds` equal rounds."""
    return epsilon_of(rounds * event.curve(), delta)


def noise_multiplier_for(budget: PrivacyBudget, rounds: int, event_of: EventOf) -> float:
    """The smallest noise multiplier, to 1e-3 of the budget, with which all rounds stay within the budget.

    Epsilon is nearly a power of the noise, so that interpolation between logarithms takes a few steps where halving
    takes many; each step is the work of a whole curve.

    Raises:
        PlanError: no multiplier up to `LARGEST` does, or rounds is below 1.
    """
    if rounds < 1:
        raise PlanError("a budget is spread over rounds", expected="1 or more", got=rounds)

    def epsilon(multiplier: float) -> float:
        return epsilon_after(event_of(multiplier), rounds, budget.delta)

    low, high = _bracket(budget.epsilon, epsilon)
    while high[1] < budget.epsilon * (1 - _RELATIVE_ERROR) and high[0] / low[0] > 1 + _RELATIVE_ERROR / 10:
        middle = _between(low, high, budget.epsilon * (1 - _RELATIVE_ERROR / 2))
        found = middle, epsilon(middle)
        low, high = (low, found) if found[1] <= budget.epsilon else (found, high)
    return high[0]


def _bracket(target: float, epsilon: Callable[[float], float]) -> tuple[Point, Point]:
    """A noise that is too small and one that is enough, a factor of two apart."""
    point = 1.0, epsilon(1.0)
    if point[1] <= target:
        while point[0] > SMALLEST:
            smaller = point[0] / 2, epsilon(point[0] / 2)
            if smaller[1] > target:
                return smaller, point
            point = smaller
        return point, point
    while point[0] < LARGEST:
        larger = 2 * point[0], epsilon(2 * point[0])
        if larger[1] <= target:
            return point, larger
        point = larger
    raise PlanError(
        "no amount of noise keeps this budget",
        expected=f"a noise multiplier up to {LARGEST:g}",
        fix="raise epsilon or delta, or take fewer rounds",
    )


def _between(low: Point, high: Point, target: float) -> float:
    """Where epsilon should be `target`; the middle where a logarithm cannot tell."""
    middle = sqrt(low[0] * high[0])
    if low[1] == inf or high[1] <= 0 or low[1] <= high[1]:
        return middle
    share = log(low[1] / target) / log(low[1] / high[1])
    # Kept away from the ends, so that both of them move.
    return float(low[0] * (high[0] / low[0]) ** min(0.95, max(0.05, share)))


def rounds_within(budget: PrivacyBudget, event: PrivacyEvent, limit: int) -> int:
    """How many equal rounds fit, at most `limit`."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits(budget, middle, event) else (low, middle - 1)
    return low


def _fits(budget: PrivacyBudget, rounds: int, event: PrivacyEvent) -> bool:
    return epsilon_after(event, rounds, budget.delta) <= budget.epsilon
