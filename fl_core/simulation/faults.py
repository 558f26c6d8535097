"""Who vanishes and who is late, at which message: the faults of one simulated session, fixed before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from fl_core.errors import PlanError


class Step(IntEnum):
    """The five messages of a site, in order."""

    ADVERTISE = 0
    SHARE = 1
    UPLOAD = 2
    SIGN = 3
    REVEAL = 4


@dataclass(frozen=True, slots=True)
class Vanish:
    """A site vanishes for good: right before it sends the message of `step`, or right after.

    After a message is not the same as before the next: in between, a server has counted on the site.
    """

    step: Step
    sent: bool

    def sends(self, step: Step) -> bool:
        """Whether the message of `step` still goes out."""
        return step < self.step or (self.sent and step == self.step)


MOMENTS: tuple[Vanish, ...] = tuple(Vanish(step, sent) for step in Step for sent in (False, True))
"""All ten moments at which a site can vanish, before and after each message."""


@dataclass(frozen=True, slots=True)
class DropoutSchedule:
    """The faults of one session.

    Args:
        vanish: the moment at which a site vanishes, by index.
        delay_s: seconds by which one message of a site is late, by index and step.

    Raises:
        PlanError: a delay is negative.
    """

    vanish: Mapping[int, Vanish] = field(default_factory=lambda: MappingProxyType({}))
    delay_s: Mapping[tuple[int, Step], float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if any(delay < 0 for delay in self.delay_s.values()):
            raise PlanError("a message cannot arrive before it is sent", expected="delays >= 0 s")

    def sends(self, index: int, step: Step) -> bool:
        """Whether the site is still there to send the message of `step`."""
        moment = self.vanish.get(index)
        return moment is None or moment.sends(step)

    def delay_of(self, index: int, step: Step) -> float:
        """Seconds by which this message is late."""
        return self.delay_s.get((index, step), 0.0)


NO_FAULTS = DropoutSchedule()


def spread_dropouts(indices: Sequence[int], moments: Sequence[Vanish] = MOMENTS) -> DropoutSchedule:
    """Let these sites vanish, spread evenly over the moments."""
    return DropoutSchedule({index: moments[place % len(moments)] for place, index in enumerate(indices)})
