"""How wide the levels must spread: what a site says about its update, and what follows for the next round.

A span far wider than the updates wastes levels, and few bits have none to waste. Nobody but a site knows how wide its
update is, so each says it, as one more masked number of which only the sum is ever seen: its reach, the binary
logarithm of its largest magnitude below the clip, in quarters. A site whose update was wider than the span says that
too. The next span is two to the mean reach, and a margin over it that grows while sites are clamped and shrinks while
none is.

Source: Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping, for a span that follows what sites
say in sums.
"""

from dataclasses import dataclass
from math import ceil, isfinite, log2

from fl_core.codec.spec import CLIP_MIN, REACH_BITS
from fl_core.errors import CodecError

QUARTERS = 4
_HIGHEST = (1 << REACH_BITS) - 1
MARGIN_FIRST, MARGIN_LEAST, MARGIN_MOST = 1.0, 0.5, 4.0
_WIDEN, _NARROW = 0.5, 0.125


@dataclass(frozen=True, slots=True)
class Span:
    """The span of the next round.

    Args:
        width: largest magnitude of a level, model units.
        margin: octaves over the mean reach.

    Raises:
        CodecError: a number is out of range.
    """

    width: float
    margin: float = MARGIN_FIRST

    def __post_init__(self) -> None:
        if not (isfinite(self.width) and self.width >= CLIP_MIN):
            raise CodecError("the width of a span is out of range", expected=f">= {CLIP_MIN}", got=self.width)
        if not MARGIN_LEAST <= self.margin <= MARGIN_MOST:
            raise CodecError(
                "the margin of a span is out of range", expected=f"{MARGIN_LEAST} to {MARGIN_MOST}", got=self.margin
            )


def reach_of(largest: float, clip: float) -> int:
    """What a site says: 0 for 2**-63 of the clip and less, 255 for more than its 1.4-fold.

    Args:
        largest: magnitude, model units, >= 0.
        clip: model units.
    """
    if largest <= 0:
        return 0
    # 252 stands for the clip itself; a rotation can make a coordinate larger than it.
    return min(max(ceil(QUARTERS * log2(largest / clip)) + _HIGHEST - 3, 0), _HIGHEST)


def next_span(reach: int, clamped: int, survivors: int, clip: float, margin: float = MARGIN_FIRST) -> Span:
    """The span that follows from a sum.

    Args:
        reach: sum of what the survivors said.
        clamped: how many of them the span was too narrow for.
        survivors: sites in the sum, at least one.
        clip: model units.
        margin: of the round before.

    Returns:
        Never wider than the clip.
    """
    margin = min(margin + _WIDEN, MARGIN_MOST) if clamped else max(margin - _NARROW, MARGIN_LEAST)
    octaves = (reach / survivors - (_HIGHEST - 3)) / QUARTERS + margin
    return Span(min(max(clip * 2.0**octaves, CLIP_MIN), clip), margin)
