"""The running sum of one session: one vector, whatever the cohort, masked or plain."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fl_core.codec.spec import HEADER_COORDINATES
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import BadAggregate, CodecError, LocalProtocolError, NotEnough, RemoteProtocolError
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.secagg.masked_sum import AwaitingMask, CollectingMaskedInputs
from fl_core.secagg.messages import MaskedInput


@dataclass(frozen=True, slots=True)
class ReleasedSum:
    """The sum over the survivors, in the clear. It proves itself by its first two coordinates.

    Args:
        plan: of the session.
        survivors: indices of the sites in the sum, ascending.
        vector: (plan.length,) in the lane of the ring: total weight, number of uploads, levels.

    Raises:
        BadAggregate: the coordinates that count and weigh the uploads are impossible for these survivors.
    """

    plan: RoundPlan
    survivors: tuple[int, ...]
    vector: RingVector = field(repr=False)

    def __post_init__(self) -> None:
        count, size = int(self.vector[1]), len(self.survivors)
        if count != size:
            raise BadAggregate(
                "the sum does not count its survivors",
                expected=f"{size} uploads",
                got=count,
                fix="the attempt is run again; if it happens twice, look for a site or service that misbehaves",
            )
        if not size <= self.total_weight <= size * self.plan.max_weight:
            raise BadAggregate(
                "the total weight of the sum is impossible",
                expected=f"{size} to {size * self.plan.max_weight}",
                got=self.total_weight,
            )

    @property
    def total_weight(self) -> int:
        """Sum of the weights of the survivors."""
        return int(self.vector[0])


class RunningSum(Protocol):
    """What a session adds uploads to."""

    def admit(self, eligible: Iterable[int]) -> None:
        """Add uploads of these sites only.

        Raises:
            LocalProtocolError: others were admitted before.
        """

    def add(self, index: int, vector: RingVector) -> None:
        """Add the upload of one site.

        Raises:
            CodecError: the upload is impossible on its face.
        """

    def freeze(self, eligible: Iterable[int]) -> tuple[int, ...]:
        """Take no more uploads; the survivors, ascending.

        Raises:
            NotEnough: fewer than `min_survivors` uploaded.
            BadAggregate: a site is in the sum that may not be there.
        """

    def release(self, mask: RingVector | None) -> RingVector:
        """The sum in the clear, once."""


def open_sum(plan: RoundPlan) -> RunningSum:
    """An empty sum, of the kind that the plan asks for."""
    return MaskedSum(plan) if plan.aggregation is Aggregation.SECAGG else PlainSum(plan)


class MaskedSum:
    """Masked uploads; the phases of the core do the work."""

    def __init__(self, plan: RoundPlan) -> None:
        self._collecting = CollectingMaskedInputs(plan.session_context())
        self._awaiting: AwaitingMask | None = None

    def admit(self, eligible: Iterable[int]) -> None:
        """See `RunningSum`."""
        self._collecting.admit(eligible)

    def add(self, index: int, vector: RingVector) -> None:
        """Add one masked upload."""
        self._collecting.add(MaskedInput(index, vector))

    def freeze(self, eligible: Iterable[int]) -> tuple[int, ...]:
        """See `RunningSum`."""
        self._awaiting, frozen = self._collecting.freeze(eligible)
        return frozen.survivors

    def release(self, mask: RingVector | None) -> RingVector:
        """Take the combined mask off the sum."""
        if self._awaiting is None or mask is None:
            raise LocalProtocolError("a masked sum is released by its combined mask after it was frozen")
        return self._awaiting.step(mask).sum


class PlainSum:
    """Uploads in the clear. What one site sends can be looked at, so a bad one does not spoil the sum."""

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = plan
        self._total: RingVector = np.zeros(plan.length, lane_dtype(plan.codec.ring_bits))
        self._added: set[int] = set()

    def admit(self, eligible: Iterable[int]) -> None:
        """See `RunningSum`. The whole roster may be in a plain sum."""

    def add(self, index: int, vector: RingVector) -> None:
        """Check and add one upload."""
        if index in self._added:
            raise RemoteProtocolError("a site uploads once", got=f"a second upload of index {index}")
        _check_plain_update(self._plan, vector)
        np.add(self._total, vector, out=self._total)
        self._added.add(index)

    def freeze(self, eligible: Iterable[int]) -> tuple[int, ...]:
        """See `RunningSum`."""
        strangers = self._added - set(eligible)
        if strangers:
            raise BadAggregate("a site is in the sum that may not be there", got=f"index {min(strangers)}")
        if len(self._added) < self._plan.min_survivors:
            raise NotEnough(
                "too few sites uploaded", expected=f"at least {self._plan.min_survivors}", got=len(self._added)
            )
        return tuple(sorted(self._added))

    def release(self, mask: RingVector | None) -> RingVector:
        """The sum as it is."""
        if mask is not None:
            raise LocalProtocolError("a plain sum has no mask")
        return self._total


def _check_plain_update(plan: RoundPlan, vector: RingVector) -> None:
    weight, count = int(vector[0]), int(vector[1])
    if count != 1 or not 1 <= weight <= plan.max_weight:
        raise CodecError(
            "the header of an update is impossible",
            expected=f"a weight of 1 to {plan.max_weight} and a count of 1",
            got=f"{weight} and {count}",
        )
    largest = int(vector[HEADER_COORDINATES:].max(initial=0))
    if largest >> plan.codec.bits:
        raise CodecError("a level of an update is out of range", expected=f"below 2**{plan.codec.bits}", got=largest)
