"""How a float update becomes integers of a ring: the part of a plan that the codec reads.

An update passes error feedback, clip, rotation, selection and quantisation, in this order. Each stage is one field of
`CodecSpec`, and each is there or not. The rotation comes before the selection, so that each coordinate that travels is
a random mixture of the whole update: a few mixtures say more about it, and move the model more evenly, than a few of
its own coordinates.
"""

from dataclasses import dataclass
from enum import StrEnum

from fl_core.codec.rotation_shape import padded_length
from fl_core.errors import PlanError

CLIP_MIN, CLIP_MAX = 1e-30, 1e30
BITS = range(1, 25)
RING_BITS = range(8, 33)
DENSITY_MIN = 1e-6

REACH_BITS = 8
"""Bits of what a site says about the width of its update, see `fl_core.codec.span`."""

SUPPORT_BLOCK = 64
"""Coordinates of a block of a block support."""

LEAST_KEPT = 120
"""Coordinates of a shared support that travel whatever the density: a hundredth of a tiny model would teach nothing."""


class Selection(StrEnum):
    """Which coordinates travel."""

    ALL = "all"
    RANDOM = "random"
    """A random part, the same for all sites, from the round's public seed: no index travels."""
    BLOCKS = "blocks"
    """As `RANDOM`, in blocks of 64 neighbours."""
    TOP = "top"
    """Each site's own largest ones. Their places travel, so that it is for plain rounds only."""


class Levels(StrEnum):
    """What a coordinate is rounded to."""

    UNIFORM = "uniform"
    """2**bits levels, stochastically."""
    SIGN = "sign"
    """One of two values that the whole update shares: a bit for each coordinate. For plain rounds only."""


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """The stages that an update passes.

    Args:
        clip: largest magnitude of a coordinate that is kept, model units, 1e-30 to 1e30 so that sums fit float32.
        bits: bits of one site's coordinate, 1 to 24.
        ring_bits: bits of a coordinate of the sum, 8 to 32.
        span: the levels spread over [-span, span], for (weight / max_weight) * update, model units; the clip when
            None, which nothing can exceed.
        selection: which coordinates travel.
        density: the part of the coordinates that travels, 1e-6 to 1; 1 when all do.
        rotation: whether a random rotation evens the coordinates out before they are selected and rounded.
        levels: what a coordinate is rounded to.
        feedback: the part of what did not travel that a site keeps for its next round; 0 is nothing, 1 is all of it.
        adaptive: whether sites say how wide a span they need, as one more masked number.

    Raises:
        PlanError: a value is out of range or the stages do not fit together.
    """

    clip: float
    bits: int
    ring_bits: int
    span: float | None = None
    selection: Selection = Selection.ALL
    density: float = 1.0
    rotation: bool = False
    levels: Levels = Levels.UNIFORM
    feedback: float = 0.0
    adaptive: bool = False

    def __post_init__(self) -> None:
        check_stages(self.clip, self.bits, self.ring_bits, self.selection, self.density, self.rotation, self.levels)
        check_feedback(self.feedback)
        if self.span is not None and not CLIP_MIN <= self.span <= self.clip:
            raise PlanError(
                "the codec's span is out of range", expected=f"{CLIP_MIN} to the clip, {self.clip}", got=self.span
            )

    @property
    def width(self) -> float:
        """Largest magnitude that a level stands for, model units."""
        return self.clip if self.span is None else self.span

    @property
    def top(self) -> int:
        """The highest level; the lowest is 0. Where a zero must be a level of its own their number is odd."""
        return (1 << self.bits) - (2 if self.has_zero else 1)

    @property
    def has_zero(self) -> bool:
        """Whether top / 2 is a level: it stands for zero exactly."""
        return self.selection is Selection.TOP or self.levels is Levels.SIGN

    @property
    def is_maskable(self) -> bool:
        """Whether masks hide the upload: its form says nothing about the update."""
        return self.selection is not Selection.TOP and self.levels is not Levels.SIGN

    @property
    def keeps_order(self) -> bool:
        """Whether coordinate i of the upload after its header is coordinate i of the model."""
        return not self.shares_support and not self.rotation

    @property
    def shares_support(self) -> bool:
        """Whether a part of the coordinates travels, the same part for all sites."""
        return self.selection in (Selection.RANDOM, Selection.BLOCKS)

    def turned(self, size: int) -> int:
        """Coordinates from which those that travel are selected, for a model of `size`."""
        return padded_length(size) if self.rotation else size

    def kept(self, size: int) -> int:
        """How many of `size` coordinates travel."""
        if self.selection is Selection.ALL or size == 0:
            return size
        if self.selection is Selection.BLOCKS:
            whole, rest = divmod(size, SUPPORT_BLOCK)
            # The odd end of a model is never dealt to: it is always part of the support.
            least = -(-LEAST_KEPT // SUPPORT_BLOCK)
            return min(whole, max(least, round(self.density * whole))) * SUPPORT_BLOCK + rest
        if self.selection is Selection.RANDOM:
            return min(size, max(LEAST_KEPT, round(self.density * size)))
        return max(1, round(self.density * size))

    def body(self, size: int) -> int:
        """Coordinates of an upload after its header, for a model of `size`."""
        return self.kept(self.turned(size)) if self.shares_support else self.turned(size)

    def header(self, max_weight: int) -> int:
        """Coordinates of an upload before its levels, see `fl_core.codec.header`."""
        return 1 + self.digits(max_weight.bit_length()) + (1 + self.digits(REACH_BITS) if self.adaptive else 0)

    def digits(self, number_bits: int) -> int:
        """Coordinates of a number of so many bits."""
        return -(-number_bits // self.bits)

    def length(self, size: int, max_weight: int) -> int:
        """Coordinates of an upload."""
        return self.header(max_weight) + self.body(size)

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

    def check_maskable(self) -> None:
        """Check that the codec fits a round in which nobody may see a single update.

        Raises:
            PlanError: its uploads show which coordinates are large, or gain nothing under a mask.
        """
        if self.selection is Selection.TOP:
            raise PlanError(
                "the largest coordinates of a site cannot travel under masks",
                expected="selection all, random or blocks",
                got=self.selection.value,
                fix="their places would show the update; take random or blocks, or say aggregation: plain",
            )
        if self.levels is Levels.SIGN:
            raise PlanError(
                "one bit for each coordinate cannot travel under masks",
                expected="levels uniform",
                got=self.levels.value,
                fix="a mask has ring_bits for each coordinate; take few bits with rotation, or say aggregation: plain",
            )


def smallest_ring(bits: int, cohort: int) -> int:
    """The fewest bits of a ring in which the sum of a cohort cannot wrap around.

    Raises:
        PlanError: no ring holds it.
    """
    needed = max((cohort * ((1 << bits) - 1)).bit_length(), RING_BITS[0])
    if needed > RING_BITS[-1]:
        room = ((1 << RING_BITS[-1]) // cohort).bit_length() - 1
        raise PlanError(
            "no ring holds the sum of this cohort",
            expected=f"at most {RING_BITS[-1]} bits",
            got=f"{needed} bits for {cohort} sites of {bits} bits",
            fix=f"lower bits to {room}, or invite fewer sites",
        )
    return needed


def check_stages(
    clip: float,
    bits: int | None,
    ring_bits: int | None,
    selection: Selection,
    density: float,
    rotation: bool,
    levels: Levels,
) -> None:
    """Check numbers and stages of a codec; bits that are None are chosen later.

    Raises:
        PlanError: a value is out of range or the stages do not fit together.
    """
    if not CLIP_MIN <= clip <= CLIP_MAX:
        raise PlanError("the clip is out of range", expected=f"{CLIP_MIN} to {CLIP_MAX}", got=clip)
    if bits is not None and bits not in BITS:
        raise PlanError("the codec's bits are out of range", expected="1 to 24", got=bits)
    if ring_bits is not None and ring_bits not in RING_BITS:
        raise PlanError("the codec's ring_bits are out of range", expected="8 to 32", got=ring_bits)
    if not DENSITY_MIN <= density <= 1:
        raise PlanError("the codec's density is out of range", expected=f"{DENSITY_MIN} to 1", got=density)
    if selection is Selection.ALL and density != 1:
        raise PlanError(
            "a codec whose coordinates all travel has a density",
            expected="density 1",
            got=density,
            fix="name a selection: random, blocks or, in a plain job, top",
        )
    if selection is Selection.TOP and rotation:
        raise PlanError(
            "a site's largest coordinates cannot be rotated with those of others",
            expected="rotation off, or another selection than top",
            got="both",
        )
    if levels is Levels.SIGN and (selection is not Selection.ALL or not rotation):
        raise PlanError(
            "one bit for each coordinate needs a rotation of all of them",
            expected="rotation on, selection all",
            got=f"rotation {'on' if rotation else 'off'}, selection {selection.value}",
        )
    if bits == 1 and (selection is Selection.TOP or levels is Levels.SIGN):
        raise PlanError("one bit has no level for zero", expected="bits of 2 and more", got=bits)


def check_feedback(feedback: float) -> None:
    """Check the part that error feedback keeps.

    Raises:
        PlanError: it is out of range.
    """
    if not 0 <= feedback <= 1:
        raise PlanError("the codec's feedback is out of range", expected="0 to 1", got=feedback)
