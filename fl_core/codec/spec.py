"""How a float update becomes integers of a ring: the part of a plan that the codec reads."""

from dataclasses import dataclass
from math import isfinite

from fl_core.errors import PlanError

BITS = range(1, 25)
RING_BITS = range(8, 33)


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Stochastic uniform quantisation of a clipped update.

    Args:
        clip: largest magnitude of a coordinate that is kept, model units, > 0.
        bits: bits of one site's coordinate, 1 to 24.
        ring_bits: bits of a coordinate of the sum, 8 to 32.

    Raises:
        PlanError: a value is out of range.
    """

    clip: float
    bits: int
    ring_bits: int

    def __post_init__(self) -> None:
        if not (isfinite(self.clip) and self.clip > 0):
            raise PlanError("the clip is out of range", expected="a finite number > 0", got=self.clip)
        if self.bits not in BITS:
            raise PlanError("the codec's bits are out of range", expected="1 to 24", got=self.bits)
        if self.ring_bits not in RING_BITS:
            raise PlanError("the codec's ring_bits are out of range", expected="8 to 32", got=self.ring_bits)

    def check_cohort(self, cohort: int) -> None:
        """Prove that a sum over `cohort` sites cannot wrap around: 2**ring_bits > cohort * (2**bits - 1).

        Raises:
            PlanError: it can.
        """
        if (1 << self.ring_bits) <= cohort * ((1 << self.bits) - 1):
            raise PlanError(
                "the ring can overflow",
                expected=f"2**ring_bits > cohort * (2**bits - 1) for a cohort of {cohort}",
                got=f"ring_bits {self.ring_bits}, bits {self.bits}",
                fix="raise ring_bits, or lower bits or the cohort",
            )
