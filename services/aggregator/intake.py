"""Takes one upload in: checked chunk by chunk, staged, and handed on only when it is whole and proved."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Self

from fl_core.errors import BadSignature, CodecError, IdentityError, StaleMessage, StreamError, TacitError
from fl_core.rounds.machine import DropoutReason
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.rounds.planner import upload_bytes
from fl_core.rounds.uploads import varies_in_size
from fl_core.transport.identity import TrustStore
from fl_core.wire.chunks import ChunkReader, upload_chunk_bytes
from fl_core.wire.v1 import aggregator_pb2, tensors_pb2
from services.aggregator.partial import PartialUpload, PartialUploads, Truncated, UploadKey
from services.aggregator.session import AggregationSession
from services.aggregator.waiting_room import WaitingRoom
from services.runtime.metrics import QUEUE_WAITING
from services.runtime.staging import StagingArea
from services.runtime.streams import next_message

IDLE_S = 0.25
"""An upload that is silent for longer gives its place to another one, until it goes on."""

SPARE_SENDERS = 2
"""Uploads that may send beyond those that are received now: their first bytes are here when a place is free."""

StreamPart = aggregator_pb2.UpdateParametersRequest | aggregator_pb2.SubmitMaskRequest


class UploadIntake:
    """Receives the uploads of all sessions, a few at a time; the others wait and are held back by flow control.

    Args:
        staging: where bytes wait until they are proved.
        partial: uploads that are not whole yet.
        max_uploads: uploads at a time. One that is silent gives its place to another, so slow sites hold nobody up.
        max_waiting: uploads that wait for their turn; others are told when to come back.
        stall_timeout_s: longest pause between two messages.
    """

    def __init__(
        self, staging: StagingArea, partial: PartialUploads, max_uploads: int, max_waiting: int, stall_timeout_s: float
    ) -> None:
        self._staging = staging
        self._partial = partial
        self._slots = asyncio.Semaphore(max_uploads)
        self._senders = asyncio.Semaphore(max_uploads + SPARE_SENDERS)
        self._room = WaitingRoom(max_waiting)
        self._stall_timeout_s = stall_timeout_s

    async def receive_upload(
        self,
        session: AggregationSession,
        header: aggregator_pb2.UpdateHeader,
        requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest],
        trust: TrustStore,
        begin: Callable[[], Awaitable[None]],
    ) -> bytes:
        """Take the upload of the site that is known to be at `header.index`.

        Args:
            session: what it is an upload for.
            header: its first message.
            requests: the others.
            trust: checks what the site signed about it.
            begin: tells the site that it is its turn. What it sends before waits in the buffers of gRPC.

        Returns:
            SHA-256 of its bytes, which are in the sum now.

        Raises:
            StreamError: truncated, which changes nothing; or of the wrong form, which refuses the site for good.
            StaleMessage: made from another version of the model.
            CodecError: the update is impossible on its face.
            SessionFrozen: the survivors are frozen.
            RemoteProtocolError: the site uploaded something else before, or may not upload.
            Overloaded: it is not known yet who may upload, or too many wait to do so.
            BadSignature: of an encrypted upload, it is not the site's.
            IdentityError: of an encrypted upload, it is signed by another certificate.
            PeerLost: the site went silent.
        """
        index = header.index
        session.check_may_upload(index)
        await session.until_admitted(index, self._stall_timeout_s)
        received = _Tally()
        try:
            if session.plan.aggregation is Aggregation.PAILLIER:
                session.encrypted_sum().expect(index, header.statement, trust)
            return await self._receive_upload(session, header, requests, begin, received)
        except asyncio.CancelledError:
            session.note_broken(index, received.count)
            raise
        except TacitError as error:
            _settle(session, index, error, received.count)
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
        reader = _open_mask(session.plan, header.stream)
        with self._staging.stage(reader.total_bytes) as staged:
            sha256 = await self._receive(
                reader, staged.write, requests, _Tally(), lambda: session.check_awaits_mask(survivors)
            )
            await session.unmask(staged, sha256)

    async def _receive_upload(
        self,
        session: AggregationSession,
        header: aggregator_pb2.UpdateHeader,
        requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest],
        begin: Callable[[], Awaitable[None]],
        received: "_Tally",
    ) -> bytes:
        _check_model(session.plan, header)
        index = header.index
        if session.upload_of(index) is not None:
            await begin()
            # Bytes that were accepted before are only compared, so they need no room.
            return await self._compare(session, header, requests, received)
        key = UploadKey(session.plan.session_id, index)
        if header.first_byte:
            # Said before the site is told to send: then the refusal reaches it for certain.
            self._partial.find(key)
        turn = _Turn(self._slots, self._senders, self._room, begin, self._stall_timeout_s)
        async with turn, self._open(key, session.plan, header) as opened:
            upload, stream = opened
            try:
                while (chunk := await turn.next_chunk(upload, requests)) is not None:
                    session.check_may_upload(index)
                    await upload.add(stream, chunk)
                upload.check_held_by(stream)
            finally:
                received.count = upload.message_bytes
            session.check_may_upload(index)
            sha256 = upload.reader.finish(turn.trailer)
            if not session.check_same(index, sha256):
                await session.accept(index, upload.staged, sha256, upload.message_bytes)
        return sha256

    def _open(
        self, key: UploadKey, plan: RoundPlan, header: aggregator_pb2.UpdateHeader
    ) -> AbstractAsyncContextManager[tuple[PartialUpload, object]]:
        if header.first_byte:
            return self._partial.again(key, header.stream, header.first_byte)
        return self._partial.new(key, _open_upload(plan, header.stream))

    async def _compare(
        self,
        session: AggregationSession,
        header: aggregator_pb2.UpdateHeader,
        requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest],
        received: "_Tally",
    ) -> bytes:
        reader, index = _open_upload(session.plan, header.stream), header.index
        sha256 = await self._receive(reader, _ignore, requests, received, lambda: session.check_may_upload(index))
        session.check_same(index, sha256)
        return sha256

    async def _receive(
        self,
        reader: ChunkReader,
        write: Callable[[bytes], Awaitable[None]],
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
                    await write(reader.feed(part.chunk))
                case "trailer":
                    return reader.finish(part.trailer)
                case other:
                    raise _out_of_turn(other)


class _Tally:
    """Bytes of the messages of one upload so far."""

    def __init__(self) -> None:
        self.count = 0


class _Turn:
    """A place among the uploads that are received now. It is given back while nothing comes.

    Args:
        slots: the places.
        senders: those that may send; what they send waits in the buffers of gRPC until they have a place.
        room: where those wait who may not send yet.
        begin: tells the site that it may send.
        stall_timeout_s: longest pause between two messages.
    """

    def __init__(
        self,
        slots: asyncio.Semaphore,
        senders: asyncio.Semaphore,
        room: WaitingRoom,
        begin: Callable[[], Awaitable[None]],
        stall_timeout_s: float,
    ) -> None:
        self._slots = slots
        self._senders = senders
        self._room = room
        self._begin = begin
        self._stall_timeout_s = stall_timeout_s
        self._has_place = False
        self._is_sender = False
        self.trailer = tensors_pb2.StreamTrailer()

    async def __aenter__(self) -> Self:
        with self._room.seat(), QUEUE_WAITING.labels("uploads").track_inprogress():
            await self._senders.acquire()
        self._is_sender = True
        try:
            await self._begin()
            await self._take_place()
        except BaseException:
            self._give_place()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._give_place()

    async def next_chunk(
        self, upload: PartialUpload, requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest]
    ) -> tensors_pb2.Chunk | None:
        """The next chunk; None after the trailer.

        Raises:
            Truncated: the stream ended before it.
            StreamError: something else came.
            PeerLost: nothing came in time.
        """
        part = await self._next(requests)
        if part is None:
            raise _truncated(upload.reader)
        upload.message_bytes += part.ByteSize()
        match part.WhichOneof("part"):
            case "chunk":
                return part.chunk
            case "trailer":
                self.trailer = part.trailer
                return None
            case other:
                raise _out_of_turn(other)

    async def _next(
        self, requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest]
    ) -> aggregator_pb2.UpdateParametersRequest | None:
        # A read of gRPC must not be cancelled and begun again, so one task waits through both pauses.
        reading = asyncio.ensure_future(next_message(requests, self._stall_timeout_s, "an upload"))
        try:
            done, _ = await asyncio.wait({reading}, timeout=IDLE_S)
            if not done:
                self._give_place()
                await asyncio.wait({reading})
                await self._take_place()
            return reading.result()
        finally:
            reading.cancel()

    async def _take_place(self) -> None:
        with QUEUE_WAITING.labels("uploads").track_inprogress():
            await self._slots.acquire()
        self._has_place = True

    def _give_place(self) -> None:
        if self._is_sender:
            self._is_sender = False
            self._senders.release()
        if self._has_place:
            self._has_place = False
            self._slots.release()


def _settle(session: AggregationSession, index: int, error: TacitError, received_bytes: int) -> None:
    """Refuse a site's upload for good where it is wrong itself; where it only broke off, the site may go on."""
    reason = _refusal(error)
    if reason is None:
        session.note_broken(index, received_bytes)
    else:
        session.refuse(index, reason, error, received_bytes)


def _refusal(error: TacitError) -> DropoutReason | None:
    match error:
        case Truncated():
            return None
        case StreamError() | StaleMessage():
            return DropoutReason.UPLOAD_REFUSED
        case BadSignature() | IdentityError():
            return DropoutReason.BAD_SIGNATURE
        case CodecError():
            return DropoutReason.INVALID_UPDATE
        case _:
            return None


async def _ignore(_data: bytes) -> None:
    return


def _check_model(plan: RoundPlan, header: aggregator_pb2.UpdateHeader) -> None:
    if header.model_version != plan.model_version:
        raise StaleMessage(
            "the update was made from another version of the model",
            expected=plan.model_version,
            got=header.model_version,
            fix="train from the version of the plan",
        )


def _open_upload(plan: RoundPlan, header: tensors_pb2.StreamHeader) -> ChunkReader:
    total_bytes = upload_bytes(plan)
    # A site on a bad link sends smaller chunks than the plan says, but none so small that a call of ours costs more.
    return ChunkReader(
        header,
        max_bytes=total_bytes,
        expected_bytes=None if varies_in_size(plan) else total_bytes,
        chunk_bytes=upload_chunk_bytes(plan.chunk_bytes),
    )


def _open_mask(plan: RoundPlan, header: tensors_pb2.StreamHeader) -> ChunkReader:
    total_bytes = upload_bytes(plan)
    return ChunkReader(header, max_bytes=total_bytes, expected_bytes=total_bytes, expected_chunk_bytes=plan.chunk_bytes)


def _truncated(reader: ChunkReader) -> Truncated:
    return Truncated(
        "a stream is truncated",
        expected=f"{reader.total_bytes} bytes and a trailer",
        got=f"{reader.received_bytes} bytes",
        fix="send it again",
    )


def _out_of_turn(kind: str | None) -> StreamError:
    return StreamError("a message is out of turn", expected="a chunk or the trailer", got=kind)
