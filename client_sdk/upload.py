"""The update on its way to the aggregator: sent once, or gone on with where a stream broke."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Self

import grpc
import numpy as np
import numpy.typing as npt

from client_sdk.leaving import UploadRefused
from client_sdk.streams import answered
from fl_core.errors import Overloaded, RemoteProtocolError, SessionFrozen, TacitError, UnknownSession
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.uploads import upload_payload
from fl_core.secagg.messages import RingVector
from fl_core.transport.errors import printable
from fl_core.transport.peer import call_unary
from fl_core.transport.retry import Backoff
from fl_core.transport.true_status import call_errors
from fl_core.wire.chunks import RESUMED_CHUNK_BYTES, chunk_count, chunks_of, upload_chunk_bytes
from fl_core.wire.v1 import aggregator_pb2, round_pb2, tensors_pb2

if TYPE_CHECKING:
    from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceAsyncStub

    _Call = grpc.aio.StreamUnaryCall[aggregator_pb2.UpdateParametersRequest, aggregator_pb2.UpdateParametersResponse]

QUESTION_TIMEOUT_S = 10.0

OnChunk = Callable[[int, int], None]
"""Told the index of a chunk that was sent, and how many there are."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The packed coordinates of one site in one attempt: masked, encrypted, or plain in a plain attempt."""

    plan: RoundPlan
    index: int
    payload: npt.NDArray[np.uint8] = field(repr=False)
    digest: bytes
    """SHA-256 of the payload, 32 bytes."""
    statement: round_pb2.UploadStatement | None = field(default=None, repr=False)
    """What the site states about an encrypted upload."""

    @classmethod
    def of(cls, plan: RoundPlan, index: int, vector: RingVector) -> Self:
        """Pack the coordinates of one site, (plan.length,) in the lane of ring_bits.

        Raises:
            CodecError: a coordinate does not fit the ring.
        """
        payload = upload_payload(plan, vector)
        return cls(plan, index, payload, sha256(payload.data).digest())


class Sending:
    """One upload, whatever the number of streams that it takes: each goes on where the one before it broke.

    Args:
        aggregator: the service.
        upload: what to send.
        timeout_s: how long one stream may take.
        on_chunk: told about each chunk.
    """

    def __init__(
        self, aggregator: "AggregatorServiceAsyncStub", upload: Upload, timeout_s: float, on_chunk: OnChunk
    ) -> None:
        self._aggregator = aggregator
        self._upload = upload
        self._timeout_s = timeout_s
        self._on_chunk = on_chunk
        self._began = False
        self._arrived = 0
        self._chunk_bytes = upload.plan.chunk_bytes
        self.backoff = Backoff()

    async def run(self) -> None:
        """Send the update, or the rest of it. After a `retryable` error it may be called again.

        Raises:
            UploadRefused: the aggregator refused the update for good.
            SessionFrozen, UnknownSession: the update comes too late.
            PeerLost, Overloaded: the connection broke, and the aggregator has no whole update.
        """
        began = self._began
        try:
            # The status of a broken upload may be a mask over the true one, so only the aggregator's own word counts.
            first_byte = await self._ask() if self._began else 0
            if first_byte is None:
                return
            self._began = True
            response = await self._stream(first_byte)
        except (SessionFrozen, UnknownSession, UploadRefused):
            raise
        except TacitError as error:
            if _is_turned_away(error):
                # Before a byte was sent: the link is as good as before.
                self._began = began
            if error.retryable:
                raise
            raise _refused(error.code, error.what, expected=error.expected, got=error.got, fix=error.fix) from error
        self._check(response)

    async def _ask(self) -> int | None:
        """The byte to go on from; None when the aggregator has the whole update."""
        upload = self._upload
        request = aggregator_pb2.GetUploadRequest(session_id=upload.plan.session_id, index=upload.index)
        record = await call_unary(self._aggregator.GetUpload, request, timeout_s=QUESTION_TIMEOUT_S)
        match record.state:
            case aggregator_pb2.UPLOAD_STATE_ABSENT:
                return self._go_on_from(record.staged_bytes, record.staged_sha256)
            case aggregator_pb2.UPLOAD_STATE_ACCEPTED if record.upload_sha256 == upload.digest:
                return None
            case aggregator_pb2.UPLOAD_STATE_REFUSED:
                raise _refused(
                    printable(record.error_code),
                    printable(record.error_what),
                    expected=printable(record.error_expected) or None,
                    got=printable(record.error_got) or None,
                    fix=printable(record.error_fix) or None,
                )
        raise RemoteProtocolError(
            "the aggregator has another update of this site",
            expected=upload.digest.hex(),
            got=record.upload_sha256[:32].hex(),
        )

    def _go_on_from(self, staged_bytes: int, staged_sha256: bytes) -> int:
        payload = self._upload.payload
        if not 0 < staged_bytes <= payload.nbytes:
            self._cut_smaller()
            return 0
        if sha256(payload[:staged_bytes].data).digest() != staged_sha256:
            # It is not what was sent; only a new beginning can give the right digest.
            return 0
        if staged_bytes > self._arrived:
            # The link is bad, but it carries: the next pause is short again.
            self._arrived = staged_bytes
            self._chunk_bytes = min(self._chunk_bytes, RESUMED_CHUNK_BYTES)
            self.backoff.reset()
        else:
            self._cut_smaller()
        return staged_bytes

    def _cut_smaller(self) -> None:
        """Smaller chunks after a stream of which none arrived: one that never gets through would be sent for ever."""
        smallest, _ = upload_chunk_bytes(self._upload.plan.chunk_bytes)
        self._chunk_bytes = max(min(self._chunk_bytes // 2, RESUMED_CHUNK_BYTES), smallest)

    async def _stream(self, first_byte: int) -> aggregator_pb2.UpdateParametersResponse:
        upload = self._upload
        header = aggregator_pb2.UpdateHeader(
            session_id=upload.plan.session_id,
            index=upload.index,
            model_version=upload.plan.model_version,
            stream=tensors_pb2.StreamHeader(total_bytes=upload.payload.nbytes, chunk_bytes=self._chunk_bytes),
            first_byte=first_byte,
            statement=upload.statement,
        )
        call = self._aggregator.UpdateParameters(timeout=self._timeout_s)
        try:
            async with call_errors(call):
                if await self._write_all(call, header):
                    await call.done_writing()
                # Also after a failed write: only the response knows why.
                return await call
        finally:
            call.cancel()

    async def _write_all(self, call: "_Call", header: aggregator_pb2.UpdateHeader) -> bool:
        """Send the whole stream; False when the aggregator ended the call before."""
        rest = self._upload.payload[header.first_byte :]
        count = chunk_count(rest.nbytes, header.stream.chunk_bytes)
        if not await _write(call, aggregator_pb2.UpdateParametersRequest(header=header)):
            return False
        # The aggregator's answer to the header says that it is this site's turn; nothing waits in buffers until then.
        await answered(call)
        if call.done():
            return False
        for chunk in chunks_of(rest, header.stream.chunk_bytes):
            if not await _write(call, aggregator_pb2.UpdateParametersRequest(chunk=chunk)):
                return False
            self._on_chunk(chunk.index, count)
        trailer = tensors_pb2.StreamTrailer(chunk_count=count, sha256=self._upload.digest)
        return await _write(call, aggregator_pb2.UpdateParametersRequest(trailer=trailer))

    def _check(self, response: aggregator_pb2.UpdateParametersResponse) -> None:
        upload = self._upload
        if response.upload_sha256 != upload.digest or response.session_id != upload.plan.session_id:
            raise RemoteProtocolError(
                "the aggregator acknowledged something else than was sent",
                expected=upload.digest.hex(),
                got=response.upload_sha256[:32].hex(),
                fix="do not go on with this aggregator; wait for the next attempt",
            )


def _is_turned_away(error: TacitError) -> bool:
    """Whether the aggregator has no room for one more that waits, and named a time to come back."""
    return isinstance(error, Overloaded) and error.retry_after_s is not None


def _refused(code: str, what: str, *, expected: object, got: object, fix: str | None) -> UploadRefused:
    return UploadRefused(f"the aggregator refused the update ({code}): {what}", expected=expected, got=got, fix=fix)


async def _write(
    call: "_Call",
    message: aggregator_pb2.UpdateParametersRequest,
) -> bool:
    try:
        await call.write(message)
    except Exception as error:
        # gRPC says a write after the end in more than one way.
        if call.done() or isinstance(error, grpc.RpcError):
            return False
        raise
    return True
