"""Takes one upload in: checked chunk by chunk, staged, and handed on only when it is whole and proved."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext

from fl_core.codec.packing import packed_bytes
from fl_core.errors import CodecError, StaleMessage, StreamError, TacitError
from fl_core.rounds.machine import DropoutReason
from fl_core.rounds.plan import RoundPlan
from fl_core.wire.chunks import ChunkReader
from fl_core.wire.v1 import aggregator_pb2, tensors_pb2
from services.aggregator.session import AggregationSession
from services.runtime.staging import StagedStream, StagingArea
from services.runtime.streams import next_message

StreamPart = aggregator_pb2.UpdateParametersRequest | aggregator_pb2.SubmitMaskRequest


class Truncated(StreamError):
    """A stream that ended before its trailer: its connection broke, so the caller may send it again."""


class UploadIntake:
    """Receives the uploads of all sessions, a few at a time; the others wait and are held back by flow control.

    Args:
        staging: where bytes wait until they are proved.
        max_uploads: uploads at a time.
        stall_timeout_s: longest pause between two messages.
    """

    def __init__(self, staging: StagingArea, max_uploads: int, stall_timeout_s: float) -> None:
        self._staging = staging
        self._slots = asyncio.Semaphore(max_uploads)
        self._stall_timeout_s = stall_timeout_s

    async def receive_upload(
        self,
        session: AggregationSession,
        header: aggregator_pb2.UpdateHeader,
        requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest],
    ) -> bytes:
        """Take the upload of the site that is known to be at `header.index`.

        Returns:
            SHA-256 of its bytes, which are in the sum now.

        Raises:
            StreamError: truncated, which changes nothing; or of the wrong form, which refuses the site for good.
            StaleMessage: made from another version of the model.
            CodecError: the update is impossible on its face.
            SessionFrozen: the survivors are frozen.
            RemoteProtocolError: the site uploaded something else before, or may not upload.
            Overloaded: it is not known yet who may upload.
            PeerLost: the site went silent.
        """
        index = header.index
        session.check_may_upload(index)
        await session.until_admitted(index, self._stall_timeout_s)
        received = _Tally()
        try:
            return await self._receive_upload(session, header, requests, received)
        except Truncated:
            session.note_broken(index, received.count)
            raise
        except (StreamError, StaleMessage) as error:
            session.refuse(index, DropoutReason.UPLOAD_REFUSED, error, received.count)
            raise
        except CodecError as error:
            session.refuse(index, DropoutReason.INVALID_UPDATE, error, received.count)
            raise
        except (TacitError, asyncio.CancelledError):
            session.note_broken(index, received.count)
            raise

    async def receive_mask(
        self,
        session: AggregationSession,
        header: aggregator_pb2.MaskHeader,
        requests: AsyncIterator[aggregator_pb2.SubmitMaskRequest],
    ) -> None:
        """Take the combined mask of a session and take it off the sum.

        Raises:
            StreamError: truncated, or of the wrong form.
            SessionFrozen: the session waits for no mask.
            RemoteProtocolError: it is the mask of other survivors.
            BadAggregate: the sum under this mask fails its own check.
            PeerLost: the key server went silent.
        """
        survivors = tuple(header.survivors)
        session.check_awaits_mask(survivors)
        reader = _open_reader(session.plan, header.stream)
        with self._staging.stage(reader.total_bytes) as staged:
            sha256 = await self._receive(
                reader, staged, requests, _Tally(), lambda: session.check_awaits_mask(survivors)
            )
            await session.unmask(staged, sha256)

    async def _receive_upload(
        self,
        session: AggregationSession,
        header: aggregator_pb2.UpdateHeader,
        requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest],
        received: "_Tally",
    ) -> bytes:
        reader, index = _open_upload(session.plan, header), header.index
        async with self._slots:
            # Bytes that were accepted before are only compared, so they need no room.
            repeats = session.upload_of(index) is not None
            room = nullcontext(None) if repeats else self._staging.stage(reader.total_bytes)
            with room as staged:
                sha256 = await self._receive(
                    reader, staged, requests, received, lambda: session.check_may_upload(index)
                )
                if not session.check_same(index, sha256) and staged is not None:
                    await session.accept(index, staged, sha256, received.count)
        return sha256

    async def _receive(
        self,
        reader: ChunkReader,
        staged: StagedStream | None,
        requests: AsyncIterator[StreamPart],
        received: "_Tally",
        check_wanted: Callable[[], None],
    ) -> bytes:
        while True:
            part = await next_message(requests, self._stall_timeout_s, "a stream")
            check_wanted()
            if part is None:
                raise _truncated(reader)
            received.count += part.ByteSize()
            match part.WhichOneof("part"):
                case "chunk":
                    data = reader.feed(part.chunk)
                    if staged is not None:
                        await staged.write(data)
                case "trailer":
                    return reader.finish(part.trailer)
                case other:
                    raise StreamError("a message is out of turn", expected="a chunk or the trailer", got=other)


class _Tally:
    """Bytes of the messages of one upload so far."""

    def __init__(self) -> None:
        self.count = 0


def _open_upload(plan: RoundPlan, header: aggregator_pb2.UpdateHeader) -> ChunkReader:
    if header.model_version != plan.model_version:
        raise StaleMessage(
            "the update was made from another version of the model",
            expected=plan.model_version,
            got=header.model_version,
            fix="train from the version of the plan",
        )
    return _open_reader(plan, header.stream)


def _open_reader(plan: RoundPlan, header: tensors_pb2.StreamHeader) -> ChunkReader:
    total_bytes = packed_bytes(plan.length, plan.codec.ring_bits)
    return ChunkReader(header, max_bytes=total_bytes, expected_bytes=total_bytes, expected_chunk_bytes=plan.chunk_bytes)


def _truncated(reader: ChunkReader) -> Truncated:
    return Truncated(
        "a stream is truncated",
        expected=f"{reader.total_bytes} bytes and a trailer",
        got=f"{reader.received_bytes} bytes",
        fix="send it again",
    )
