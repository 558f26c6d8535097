"""How much noise a budget needs, and what a noise costs: by bisection, always on the safe side."""

from collections.abc import Callable
from math import sqrt

from fl_core.errors import PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.events import PrivacyEvent
from fl_core.privacy.renyi import epsilon_of

EventOf = Callable[[float], PrivacyEvent]
"""The event of one round at a noise multiplier."""

SMALLEST, LARGEST = 0.01, 10_000.0
_RELATIVE_ERROR = 1e-4


def epsilon_after(event: PrivacyEvent, rounds: int, delta: float) -> float:
    """Epsilon of `rounds` equal rounds."""
    return epsilon_of(rounds * event.curve(), delta)


def noise_multiplier_for(budget: PrivacyBudget, rounds: int, event_of: EventOf) -> float:
    """The smallest noise multiplier, to 1e-4 of itself, with which all rounds stay within the budget.

    Raises:
        PlanError: no multiplier up to `LARGEST` does, or rounds is below 1.
    """
    if rounds < 1:
        raise PlanError("a budget is spread over rounds", expected="1 or more", got=rounds)
    if _fits(budget, rounds, event_of(SMALLEST)):
        return SMALLEST
    low, high = SMALLEST, 2 * SMALLEST
    while not _fits(budget, rounds, event_of(high)):
        low, high = high, 2 * high
        if low > LARGEST:
            raise PlanError(
                "no amount of noise keeps this budget",
                expected=f"a noise multiplier up to {LARGEST:g}",
                fix="raise epsilon or delta, or take fewer rounds",
            )
    while high / low > 1 + _RELATIVE_ERROR:
        middle = sqrt(low * high)
        low, high = (low, middle) if _fits(budget, rounds, event_of(middle)) else (middle, high)
    return high


def rounds_within(budget: PrivacyBudget, event: PrivacyEvent, limit: int) -> int:
    """How many equal rounds fit, at most `limit`."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits(budget, middle, event) else (low, middle - 1)
    return low


def _fits(budget: PrivacyBudget, rounds: int, event: PrivacyEvent) -> bool:
    return epsilon_after(event, rounds, budget.delta) <= budget.epsilon
