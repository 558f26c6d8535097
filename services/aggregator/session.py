"""One session at the aggregator: who uploaded what, the running sum, and the moment after which nothing is added."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import BadAggregate, Overloaded, RemoteProtocolError, SessionFrozen, TacitError
from fl_core.rounds.machine import DropoutReason
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.rounds.planner import upload_bytes
from fl_core.secagg.inclusion import UploadTree
from services.aggregator.partial import PartialUploads
from services.aggregator.sums import ReleasedSum, RunningSum, add_own_noise, open_sum
from services.aggregator.workspace import Workspace
from services.runtime.events import EventLog
from services.runtime.offload import offload
from services.runtime.sessions import run_to_end
from services.runtime.staging import StagedStream, read_vector

if TYPE_CHECKING:
    # Needs gmpy2, which an aggregator of masked sums does not have to have.
    from services.aggregator.encrypted import EncryptedSum


class Phase(StrEnum):
    """What a session waits for."""

    COLLECTING = "collecting"
    AWAITING_MASK = "awaiting_mask"
    REPORTING = "reporting"
    FINISHED = "finished"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Upload:
    """What became of one site's upload.

    Args:
        index: the site.
        sha256: digest of an accepted upload.
        received_bytes: message bytes that came.
        reason: why it was not accepted.
        error: what the site was told when it was refused.
    """

    index: int
    sha256: bytes = b""
    received_bytes: int = 0
    reason: DropoutReason | None = None
    error: TacitError | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether it is in the sum."""
        return self.reason is None


class AggregationSession:
    """One attempt.

    Args:
        plan: of the attempt.
        workspace: where a vector is unpacked and added, one at a time in the whole service.
        partial: uploads that are not whole yet; those of this session go when nothing more is collected.
        threads: that add up an encrypted upload.
    """

    def __init__(self, plan: RoundPlan, workspace: Workspace, partial: PartialUploads, threads: int) -> None:
        self.plan = plan
        self._partial = partial
        self.uploads: EventLog[Upload] = EventLog()
        self.releasing = asyncio.Lock()
        self.released: ReleasedSum | None = None
        self._workspace = workspace
        self._phase = Phase.COLLECTING
        self._sum: RunningSum | None = open_sum(plan, workspace, threads)
        self._final: dict[int, Upload] = {}
        self._broken: dict[int, int] = {}
        self._eligible: frozenset[int] = frozenset()
        # In other than masked sessions there is no exchange of keys to wait for.
        everybody = frozenset(range(len(plan.roster)))
        self._admitted: frozenset[int] | None = None if plan.aggregation is Aggregation.SECAGG else everybody
        self._admission = asyncio.Event()
        self._survivors: tuple[int, ...] = ()
        self._mask_sha256 = b""
        self._ended: TacitError | None = None

    @property
    def phase(self) -> Phase:
        """What the session waits for."""
        return self._phase

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, once it is frozen."""
        return self._survivors

    def upload_tree(self) -> UploadTree:
        """The digests of the uploads that are summed, once the survivors are frozen."""
        return UploadTree(self.plan.binding, {index: self._final[index].sha256 for index in self._survivors})

    @property
    def sum_bytes(self) -> int:
        """Memory of the running sum."""
        return 0 if self._phase in (Phase.FINISHED, Phase.ENDED) else sum_bytes(self.plan)

    def counts(self) -> dict[str, int]:
        """Numbers for the status."""
        accepted = sum(upload.is_accepted for upload in self._final.values())
        return {
            "invited": len(self.plan.roster),
            "accepted": accepted,
            "refused": len(self._final) - accepted,
            "survivors": len(self._survivors),
        }

    def upload_of(self, index: int) -> Upload | None:
        """The upload of a site, when it was accepted or refused for good."""
        return self._final.get(index)

    def check_collecting(self) -> None:
        """Check that an upload is still of use.

        Raises:
            SessionFrozen: the survivors are frozen.
            TacitError: the session was ended.
        """
        if self._ended is not None:
            raise self._ended
        if self._phase is not Phase.COLLECTING:
            raise SessionFrozen(
                "the survivors of this session are frozen",
                expected="an upload before that",
                got=f"one in phase {self._phase.value}",
                fix="wait for the next attempt",
            )

    def admit(self, eligible: Iterable[int]) -> None:
        """Take uploads of these sites only: U2. Saying so again changes nothing.

        Raises:
            SessionFrozen: others were admitted before.
            RemoteProtocolError: a site is not in the roster.
        """
        admitted = frozenset(eligible)
        self._check_eligible(admitted)
        if self._ended is not None:
            raise self._ended
        if self._admitted is None:
            self._running_sum().admit(admitted)
            self._admitted = admitted
            self._admission.set()
        elif self._admitted != admitted:
            raise SessionFrozen("other sites were admitted before", expected=f"the same {len(self._admitted)} sites")

    async def until_admitted(self, index: int, timeout_s: float) -> None:
        """Wait until it is known who may upload, and refuse a site that may not: for good, before a byte of it is read.

        Raises:
            RemoteProtocolError: the site did not finish the exchange of keys.
            Overloaded: it is not known yet; the site may try again.
            TacitError: the session was ended.
        """
        if self._admitted is None:
            await self._await_admission(timeout_s)
        if self._ended is not None:
            raise self._ended
        if self._admitted is not None and index not in self._admitted:
            error = RemoteProtocolError(
                f"site {index} did not finish the exchange of keys",
                expected="an upload of a site of U2",
                fix="wait for the next attempt",
            )
            self.refuse(index, DropoutReason.PROTOCOL_VIOLATION, error, 0)
            raise error

    async def _await_admission(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._admission.wait()
        except TimeoutError as error:
            raise Overloaded("the exchange of keys is not over yet", fix="send the update again later") from error

    def check_may_upload(self, index: int) -> None:
        """Check that a site may begin an upload.

        Raises:
            SessionFrozen: the survivors are frozen; unless this site is among them and only sends its bytes again.
            TacitError: an upload of the site was refused before, for the reason that is raised again.
        """
        upload = self._final.get(index)
        if upload is not None and upload.error is not None:
            raise upload.error
        if upload is None or self._ended is not None:
            self.check_collecting()

    def note_broken(self, index: int, received_bytes: int) -> None:
        """Remember an upload that broke off. The site may try again until the survivors are frozen."""
        if self._phase is Phase.COLLECTING and index not in self._final:
            self._broken[index] = received_bytes

    def refuse(self, index: int, reason: DropoutReason, error: TacitError, received_bytes: int) -> None:
        """Refuse a site's upload for good. What was accepted before stays accepted."""
        if self._phase is Phase.COLLECTING and index not in self._final:
            self._settle(Upload(index, received_bytes=received_bytes, reason=reason, error=error))

    async def accept(self, index: int, staged: StagedStream, sha256: bytes, received_bytes: int) -> None:
        """Add a whole and verified upload to the sum. Adding the same bytes again changes nothing.

        Raises:
            RemoteProtocolError: the site uploaded something else before.
            SessionFrozen: the survivors are frozen.
            CodecError: the upload is impossible on its face.
        """
        await self._undivided(lambda: self._accept(index, staged, sha256, received_bytes))

    def check_same(self, index: int, sha256: bytes) -> bool:
        """Whether these bytes were accepted before.

        Raises:
            RemoteProtocolError: others were.
        """
        upload = self._final.get(index)
        if upload is None:
            return False
        if upload.error is not None:
            raise upload.error
        if upload.sha256 != sha256:
            raise RemoteProtocolError(
                f"the site at index {index} uploaded something else before",
                expected=f"bytes with SHA-256 {upload.sha256.hex()[:16]}",
                got=sha256.hex()[:16],
                fix="an attempt takes one upload of each site",
            )
        return True

    async def freeze(self, eligible: Iterable[int]) -> tuple[int, ...]:
        """Take no more uploads. Asking again with the same sites gives the same answer.

        Args:
            eligible: the only sites that may be survivors.

        Returns:
            U3, ascending.

        Raises:
            SessionFrozen: it was frozen for other sites before.
            NotEnough: too few sites uploaded.
            BadAggregate: a site is in the sum that may not be there.
        """
        wanted = frozenset(eligible)
        self._check_eligible(wanted)
        await self._undivided(lambda: self._freeze(wanted))
        return self._survivors

    async def unmask(self, staged: StagedStream, sha256: bytes) -> None:
        """Take the combined mask off the sum. The same mask again changes nothing.

        Raises:
            SessionFrozen: the session waits for no mask, or had another one.
            BadAggregate: the sum under this mask fails its own check.
        """
        await self._undivided(lambda: self._unmask(staged, sha256))

    def check_awaits_mask(self, survivors: tuple[int, ...]) -> None:
        """Check that the session can use a combined mask for these survivors.

        Raises:
            SessionFrozen: it waits for no mask.
            RemoteProtocolError: it is the mask of other survivors.
        """
        if self._ended is not None:
            raise self._ended
        if self._phase is Phase.COLLECTING or self.plan.aggregation is not Aggregation.SECAGG:
            raise SessionFrozen("the session waits for no mask", got=f"one in phase {self._phase.value}")
        if survivors != self._survivors:
            raise RemoteProtocolError(
                "the mask is one of other survivors",
                expected=f"the {len(self._survivors)} sites that the aggregator froze",
                got=f"{len(survivors)} sites",
            )

    def encrypted_sum(self) -> "EncryptedSum":
        """The sum of an encrypted session.

        Raises:
            RemoteProtocolError: the session is not encrypted.
            SessionFrozen: the sum was released.
        """
        from services.aggregator.encrypted import EncryptedSum

        running = self._running_sum()
        if not isinstance(running, EncryptedSum):
            raise RemoteProtocolError("the session is not encrypted", got=self.plan.aggregation.value)
        return running

    async def decrypt(self, open_sum: "Callable[[RoundPlan, EncryptedSum], Coroutine[Any, Any, None]]") -> None:
        """Have an encrypted sum opened, once, and release it. A caller who goes away does not stop it.

        Args:
            open_sum: opens the sum in place.

        Raises:
            BadAggregate: what comes out is no sum of the survivors.
            TacitError: the key server refuses, or is lost; the session is over then.
        """

        async def opened() -> None:
            async with self.releasing:
                if self._phase is Phase.AWAITING_MASK:
                    await self._decrypt(open_sum)

        await run_to_end(lambda: asyncio.create_task(opened()))

    async def _decrypt(self, open_sum: "Callable[[RoundPlan, EncryptedSum], Coroutine[Any, Any, None]]") -> None:
        encrypted = self.encrypted_sum()
        try:
            await open_sum(self.plan, encrypted)
            self._release(encrypted.release(None))
        except TacitError as error:
            # One sum is opened once: what was lost on the way cannot be asked for again.
            self.end(error)
            raise

    def finish(self) -> None:
        """The aggregate arrived: keep the facts, drop the vectors."""
        self._phase = Phase.FINISHED
        self._sum = None
        self.released = None

    def end(self, error: TacitError) -> None:
        """Drop everything; `error` is raised to everybody who still asks."""
        self._ended = error
        self._phase = Phase.ENDED
        self._admission.set()
        self._partial.drop(self.plan.session_id)
        self._sum = None
        self.released = None
        self.uploads.fail(error)

    async def _accept(self, index: int, staged: StagedStream, sha256: bytes, received_bytes: int) -> None:
        if self.check_same(index, sha256):
            return
        self.check_collecting()
        running = self._running_sum()
        await running.take(index, staged, sha256)
        self._settle(Upload(index, sha256, received_bytes))

    async def _freeze(self, eligible: frozenset[int]) -> None:
        if self._phase is not Phase.COLLECTING:
            self._check_same_freeze(eligible)
            return
        survivors = self._running_sum().freeze(sorted(eligible))
        self._survivors, self._eligible = survivors, eligible
        self._phase = Phase.AWAITING_MASK
        self._partial.drop(self.plan.session_id)
        for index, received_bytes in sorted(self._broken.items()):
            self._settle(Upload(index, received_bytes=received_bytes, reason=DropoutReason.UPLOAD_TRUNCATED))
        self.uploads.close()
        if self.plan.aggregation is Aggregation.PLAIN:
            self._release(self._running_sum().release(None))

    async def _unmask(self, staged: StagedStream, sha256: bytes) -> None:
        if self._phase is not Phase.AWAITING_MASK:
            self._check_same_mask(sha256)
            return
        running = self._running_sum()
        mask = await offload(read_vector, staged, self.plan.length, self.plan.codec.ring_bits)
        if self.plan.privacy is not None and self.plan.privacy.both_servers:
            await offload(add_own_noise, self.plan, mask)
        vector = await offload(running.release, mask)
        self._mask_sha256 = sha256
        self._release(vector)

    def _release(self, vector: RingVector) -> None:
        if self._ended is not None:
            raise self._ended
        try:
            self.released = ReleasedSum(self.plan, self._survivors, vector)
        except BadAggregate as error:
            # The sum is spoiled, so the session can only tell why until it is abandoned.
            self.end(error)
            raise
        self._sum = None
        self._phase = Phase.REPORTING

    def _settle(self, upload: Upload) -> None:
        if self._ended is not None:
            raise self._ended
        self._final[upload.index] = upload
        self._broken.pop(upload.index, None)
        self.uploads.append(upload)

    def _running_sum(self) -> RunningSum:
        if self._ended is not None:
            raise self._ended
        if self._sum is None:
            raise SessionFrozen("the sum of this session is released", got=f"phase {self._phase.value}")
        return self._sum

    def _check_eligible(self, eligible: frozenset[int]) -> None:
        strangers = eligible - set(range(len(self.plan.roster)))
        if strangers:
            raise RemoteProtocolError(
                "a site may be a survivor that is not in the roster",
                expected=f"indices below {len(self.plan.roster)}",
                got=min(strangers),
            )

    def _check_same_freeze(self, eligible: frozenset[int]) -> None:
        if self._ended is not None:
            raise self._ended
        if eligible != self._eligible:
            raise SessionFrozen(
                "the survivors of this session are frozen for other sites",
                expected=f"the same {len(self._eligible)} sites",
                got=f"{len(eligible)} sites",
            )

    def _check_same_mask(self, sha256: bytes) -> None:
        if self._ended is not None:
            raise self._ended
        if sha256 != self._mask_sha256:
            raise SessionFrozen("the session had another mask", got=f"phase {self._phase.value}")

    async def _undivided(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def locked() -> None:
            async with self._workspace.lock:
                await work()

        # A thread that adds cannot be stopped half-way, so a caller who goes away must not free the lock before.
        await run_to_end(lambda: asyncio.create_task(locked()))


def sum_bytes(plan: RoundPlan) -> int:
    """Memory of the running sum of a plan, in bytes."""
    if plan.aggregation is Aggregation.PAILLIER:
        return upload_bytes(plan)
    lane_bytes: int = lane_dtype(plan.codec.ring_bits).itemsize
    return plan.length * lane_bytes
