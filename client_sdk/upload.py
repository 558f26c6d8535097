"""The update on its way to the aggregator: sent once, or again when nobody can say what became of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Self

import grpc
import numpy as np
import numpy.typing as npt

from client_sdk.leaving import UploadRefused
from fl_core.codec.packing import pack
from fl_core.errors import RemoteProtocolError, SessionFrozen, TacitError, UnknownSession
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.messages import RingVector
from fl_core.transport.errors import from_rpc_error
from fl_core.transport.peer import call_unary
from fl_core.wire.chunks import ChunkWriter, chunk_count
from fl_core.wire.v1 import aggregator_pb2

if TYPE_CHECKING:
    from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceAsyncStub

QUESTION_TIMEOUT_S = 10.0

OnChunk = Callable[[int, int], None]
"""Told the index of a chunk that was sent, and how many there are."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The packed coordinates of one site in one attempt: masked, or plain in a plain attempt."""

    plan: RoundPlan
    index: int
    payload: npt.NDArray[np.uint8] = field(repr=False)
    digest: bytes
    """SHA-256 of the payload, 32 bytes."""

    @classmethod
    def of(cls, plan: RoundPlan, index: int, vector: RingVector) -> Self:
        """Pack the coordinates of one site, (plan.length,) in the lane of ring_bits.

        Raises:
            CodecError: a coordinate does not fit the ring.
        """
        payload = pack(vector, plan.codec.ring_bits)
        return cls(plan, index, payload, sha256(payload.data).digest())


async def send_upload(
    aggregator: "AggregatorServiceAsyncStub", upload: Upload, timeout_s: float, on_chunk: OnChunk
) -> None:
    """Send an update, unless the aggregator has it already. After a `retryable` error it may be called again.

    Args:
        aggregator: the service.
        upload: what to send.
        timeout_s: how long one stream may take.
        on_chunk: told about each chunk.

    Raises:
        UploadRefused: the aggregator refused the update for good.
        SessionFrozen, UnknownSession: the update comes too late.
        PeerLost: the connection broke, and the aggregator has no whole update.
    """
    try:
        response = await _stream(aggregator, upload, timeout_s, on_chunk)
    except TacitError as error:
        # The status of a broken upload may be a mask over the true one, so that only the aggregator's own word counts.
        if isinstance(error, SessionFrozen | UnknownSession):
            raise
        if not error.retryable:
            raise UploadRefused(
                f"the aggregator refused the update ({error.code}): {error.what}",
                expected=error.expected,
                got=error.got,
                fix=error.fix,
            ) from error
        if not await _was_accepted(aggregator, upload):
            raise
        return
    if response.upload_sha256 != upload.digest or response.session_id != upload.plan.session_id:
        raise RemoteProtocolError(
            "the aggregator acknowledged something else than was sent",
            expected=upload.digest.hex(),
            got=response.upload_sha256[:32].hex(),
            fix="do not go on with this aggregator; wait for the next attempt",
        )


async def _stream(
    aggregator: "AggregatorServiceAsyncStub", upload: Upload, timeout_s: float, on_chunk: OnChunk
) -> aggregator_pb2.UpdateParametersResponse:
    writer = ChunkWriter(upload.payload, chunk_bytes=upload.plan.chunk_bytes)
    count = chunk_count(upload.payload.nbytes, upload.plan.chunk_bytes)
    call = aggregator.UpdateParameters(timeout=timeout_s)
    try:
        if await _write_all(call, upload, writer, lambda index: on_chunk(index, count)):
            await call.done_writing()
        # Also after a failed write: only the response knows why.
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()


async def _write_all(
    call: "grpc.aio.StreamUnaryCall[aggregator_pb2.UpdateParametersRequest, aggregator_pb2.UpdateParametersResponse]",
    upload: Upload,
    writer: ChunkWriter,
    on_chunk: Callable[[int], None],
) -> bool:
    """Send the whole stream; False when the aggregator ended the call before."""
    header = aggregator_pb2.UpdateHeader(
        session_id=upload.plan.session_id,
        index=upload.index,
        model_version=upload.plan.model_version,
        stream=writer.header,
    )
    if not await _write(call, aggregator_pb2.UpdateParametersRequest(header=header)):
        return False
    for chunk in writer.chunks():
        if not await _write(call, aggregator_pb2.UpdateParametersRequest(chunk=chunk)):
            return False
        on_chunk(chunk.index)
    return await _write(call, aggregator_pb2.UpdateParametersRequest(trailer=writer.trailer))


async def _write(
    call: "grpc.aio.StreamUnaryCall[aggregator_pb2.UpdateParametersRequest, aggregator_pb2.UpdateParametersResponse]",
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


async def _was_accepted(aggregator: "AggregatorServiceAsyncStub", upload: Upload) -> bool:
    request = aggregator_pb2.GetUploadRequest(session_id=upload.plan.session_id, index=upload.index)
    record = await call_unary(aggregator.GetUpload, request, timeout_s=QUESTION_TIMEOUT_S)
    match record.state:
        case aggregator_pb2.UPLOAD_STATE_ABSENT:
            return False
        case aggregator_pb2.UPLOAD_STATE_ACCEPTED if record.upload_sha256 == upload.digest:
            return True
        case aggregator_pb2.UPLOAD_STATE_REFUSED:
            raise UploadRefused("the aggregator refused the update", got=f"{record.error_code}: {record.error_message}")
    raise RemoteProtocolError(
        "the aggregator has another update of this site",
        expected=upload.digest.hex(),
        got=record.upload_sha256[:32].hex(),
    )
