"""What a job may spend: an epsilon at a delta, and the ranges in which such numbers mean anything."""

from dataclasses import dataclass
from math import isfinite

from fl_core.errors import PlanError

EPSILON_MAX = 100.0
DELTA_MAX = 0.01


@dataclass(frozen=True, slots=True)
class PrivacyBudget:
    """(epsilon, delta), over all rounds and attempts of a job.

    Args:
        epsilon: above 0, up to `EPSILON_MAX`.
        delta: above 0, up to `DELTA_MAX`; far below one over the number of units that are protected.

    Raises:
        PlanError: a number is out of range.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (isfinite(self.epsilon) and 0 < self.epsilon <= EPSILON_MAX):
            raise PlanError(
                "epsilon is out of range",
                expected=f"above 0, up to {EPSILON_MAX:g}",
                got=self.epsilon,
                fix="0.1 to 10 is usual; without a privacy section a job has no bound at all",
            )
        if not 0 < self.delta <= DELTA_MAX:
            raise PlanError(
                "delta is out of range",
                expected=f"above 0, up to {DELTA_MAX:g}",
                got=self.delta,
                fix="take less than one over the number of sites or samples that are protected",
            )
