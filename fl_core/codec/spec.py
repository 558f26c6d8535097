"""How a float update becomes integers of a ring: the part of a plan that the codec reads."""

from dataclasses import dataclass

from fl_core.errors import PlanError

CLIP_MIN, CLIP_MAX = 1e-30, 1e30
BITS = range(1, 25)
RING_BITS = range(8, 33)

HEADER_COORDINATES = 2
"""Coordinates in front of the quantised update: the site's weight, and a one that counts it."""


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Stochastic uniform quantisation of a clipped update.

    Args:
        clip: largest magnitude of a coordinate that is kept, model units, 1e-30 to 1e30 so that sums fit float32.
        bits: bits of one site's coordinate, 1 to 24.
        ring_bits: bits of a coordinate of the sum, 8 to 32.

    Raises:
        PlanError: a value is out of range.
    """

    clip: float
    bits: int
    ring_bits: int

    def __post_init__(self) -> None:
        if not CLIP_MIN <= self.clip <= CLIP_MAX:
            raise PlanError("the clip is out of range", expected=f"{CLIP_MIN} to {CLIP_MAX}", got=self.clip)
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
