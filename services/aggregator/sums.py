"""The running sum of one session: one vector, whatever the cohort, masked, encrypted or plain."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fl_core.codec.header import UploadHeader, check_sum, read_header
from fl_core.crypto.mask_prg import MASK_KEY_BYTES, RingVector, lane_dtype
from fl_core.errors import BadAggregate, CodecError, LocalProtocolError, NotEnough, RemoteProtocolError
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.rounds.planner import private_codec_of
from fl_core.rounds.uploads import plain_vector
from fl_core.secagg.masked_sum import AwaitingMask, CollectingMaskedInputs
from fl_core.secagg.messages import MaskedInput
from services.aggregator.workspace import Workspace
from services.runtime.offload import offload
from services.runtime.staging import StagedStream


@dataclass(frozen=True, slots=True)
class ReleasedSum:
    """The sum over the survivors, in the clear. It proves itself by its header.

    Args:
        plan: of the session.
        survivors: indices of the sites in the sum, ascending.
        vector: (plan.length,) in the lane of the ring: header and levels.

    Raises:
        BadAggregate: the coordinates that count and weigh the uploads are impossible for these survivors.
    """

    plan: RoundPlan
    survivors: tuple[int, ...]
    vector: RingVector = field(repr=False)

    def __post_init__(self) -> None:
        check_sum(self.header, len(self.survivors), self.plan.max_weight)

    @property
    def header(self) -> UploadHeader:
        """What the sum says about itself."""
        return _header_of(self.plan, self.vector)

    @property
    def total_weight(self) -> int:
        """Sum of the weights of the survivors."""
        return self.header.weight


class RunningSum(Protocol):
    """What a session adds uploads to."""

    def admit(self, eligible: Iterable[int]) -> None:
        """Add uploads of these sites only.

        Raises:
            LocalProtocolError: others were admitted before.
        """

    async def take(self, index: int, staged: StagedStream, sha256: bytes) -> None:
        """Add the whole and proved upload of one site, in threads. A caller that goes away must wait all the same.

        Raises:
            CodecError: the upload is impossible on its face.
            StreamError: it is not what its site signed.
        """

    def freeze(self, eligible: Iterable[int]) -> tuple[int, ...]:
        """Take no more uploads; the survivors, ascending.

        Raises:
            NotEnough: fewer than `min_survivors` uploaded.
            BadAggregate: a site is in the sum that may not be there.
        """

    def release(self, mask: RingVector | None) -> RingVector:
        """The sum in the clear, once."""


def open_sum(plan: RoundPlan, workspace: Workspace, threads: int) -> RunningSum:
    """An empty sum, of the kind that the plan asks for.

    Args:
        plan: of the session.
        workspace: where masked uploads are unpacked; whoever calls `take` holds its lock.
        threads: that add up one encrypted upload; the others are limited by memory, not by arithmetic.
    """
    match plan.aggregation:
        case Aggregation.SECAGG:
            return MaskedSum(plan, workspace)
        case Aggregation.PAILLIER:
            return _encrypted_sum(plan, threads)
        case Aggregation.PLAIN:
            return PlainSum(plan)


def _encrypted_sum(plan: RoundPlan, threads: int) -> RunningSum:
    # Here, so that an aggregator of masked sums does without gmpy2.
    from services.aggregator.encrypted import EncryptedSum

    return EncryptedSum(plan, threads)


class MaskedSum:
    """Masked uploads; the phases of the core do the work."""

    def __init__(self, plan: RoundPlan, workspace: Workspace) -> None:
        self._plan = plan
        self._workspace = workspace
        self._collecting = CollectingMaskedInputs(plan.session_context())
        self._awaiting: AwaitingMask | None = None

    def admit(self, eligible: Iterable[int]) -> None:
        """See `RunningSum`."""
        self._collecting.admit(eligible)

    async def take(self, index: int, staged: StagedStream, sha256: bytes) -> None:  # noqa: ARG002 - nothing was signed
        """See `RunningSum`."""
        ring_bits = self._plan.codec.ring_bits
        vector = self._workspace.vector(self._plan.length, ring_bits)
        await offload(lambda: self.add(index, staged.read_into(vector, ring_bits)))

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

    async def take(self, index: int, staged: StagedStream, sha256: bytes) -> None:  # noqa: ARG002 - nothing was signed
        """See `RunningSum`."""
        await offload(lambda: self.add(index, plain_vector(self._plan, staged.read_all())))

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


def add_own_noise(plan: RoundPlan, mask: RingVector) -> None:
    """Add the aggregator's own noise to a combined mask, before it is taken off: the key server cannot subtract it."""
    codec = private_codec_of(plan)
    if codec is not None:
        codec.add_noise(mask, os.urandom(MASK_KEY_BYTES))


def _check_plain_update(plan: RoundPlan, vector: RingVector) -> None:
    header = _header_of(plan, vector)
    if header.count != 1 or not 1 <= header.weight <= plan.max_weight or header.clamped > 1:
        raise CodecError(
            "the header of an update is impossible",
            expected=f"a weight of 1 to {plan.max_weight} and a count of 1",
            got=f"{header.weight} and {header.count}",
        )
    if plan.privacy is not None and plan.privacy.mechanism.is_in_ring:
        # Integers around zero: every element of the ring may stand for one.
        return
    largest = int(vector[plan.codec.header(plan.max_weight) :].max(initial=0))
    if largest > plan.codec.top:
        raise CodecError("a level of an update is out of range", expected=f"at most {plan.codec.top}", got=largest)


def _header_of(plan: RoundPlan, vector: RingVector) -> UploadHeader:
    return read_header(plan.codec, plan.max_weight, vector[: plan.codec.header(plan.max_weight)])
