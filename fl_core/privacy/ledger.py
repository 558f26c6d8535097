"""The ledger of a job or of a site: every release that was reserved, what all of them cost, and no way back."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from fl_core.errors import BudgetExhausted
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.events import PrivacyEvent
from fl_core.privacy.renyi import ORDERS, Curve, epsilon_of


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """What a ledger amounts to at its delta.

    Args:
        epsilon: as claimed, with amplification by sampling where an event claims it.
        epsilon_to_participants: without it, against who knows which sites took part.
        delta: of both.
        releases: events that were reserved.
    """

    epsilon: float
    epsilon_to_participants: float
    delta: float
    releases: int


def total_curve(events: Iterable[PrivacyEvent]) -> Curve:
    """The sum of the curves; equal events are worked out once."""
    counts: dict[PrivacyEvent, int] = {}
    for event in events:
        key = replace(event, steps=1)
        counts[key] = counts.get(key, 0) + event.steps
    total = np.zeros(len(ORDERS))
    for event, steps in counts.items():
        total += steps * event.curve()
    return total


def spent(events: Iterable[PrivacyEvent], delta: float) -> PrivacySpent:
    """What the events cost together."""
    listed = tuple(events)
    if not listed:
        return PrivacySpent(0.0, 0.0, delta, 0)
    claimed = epsilon_of(total_curve(listed), delta)
    exposed = epsilon_of(total_curve(event.without_sampling() for event in listed), delta)
    return PrivacySpent(claimed, exposed, delta, len(listed))


def check_affordable(
    budget: PrivacyBudget, reserved: Iterable[PrivacyEvent], event: PrivacyEvent, owner: str
) -> PrivacySpent:
    """What the ledger amounts to once `event` is reserved too.

    Args:
        budget: the hard stop.
        reserved: all events before.
        event: the one that is about to be released.
        owner: whose budget, for the message.

    Raises:
        BudgetExhausted: the event would overshoot the budget.
    """
    before = tuple(reserved)
    after = spent((*before, event), budget.delta)
    if after.epsilon <= budget.epsilon:
        return after
    spent_before = spent(before, budget.delta).epsilon if before else 0.0
    raise BudgetExhausted(
        f"the privacy budget of {owner} would be overshot",
        expected=f"epsilon up to {budget.epsilon:g} at delta {budget.delta:g}",
        got=f"{spent_before:.4g} spent in {len(before)} releases, {_shown(after.epsilon)} with one more",
        fix="start a job with a larger epsilon, more noise or fewer rounds; what is spent does not come back",
    )


def _shown(epsilon: float) -> str:
    return "no finite epsilon" if epsilon == inf else f"{epsilon:.4g}"
