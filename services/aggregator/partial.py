"""Uploads that broke off: the bytes that came are kept, so that the next stream goes on where the last one ended.

What is kept is not proved: nothing of it is added before a trailer has proved the whole. It goes when the upload is
whole or refused, when its session ends, and when too much is kept.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from fl_core.errors import Overloaded, PeerLost, StreamError
from fl_core.wire.chunks import ChunkReader
from fl_core.wire.v1 import tensors_pb2
from services.runtime.staging import StagedStream, StagingArea


class Truncated(StreamError):
    """A stream that ended before its trailer: its connection broke, so the caller may go on with another one."""


class UploadKey(NamedTuple):
    """Whose upload it is."""

    session_id: bytes
    site: int


class Kept(NamedTuple):
    """What is kept of an upload: its first bytes and their SHA-256."""

    staged_bytes: int
    sha256: bytes


@dataclass(slots=True)
class PartialUpload:
    """One upload while it is received, over one stream or several. One stream at a time adds to it.

    Args:
        reader: checks what comes.
        staged: has every byte that the reader passed.
        room: gives the staged bytes back.
    """

    reader: ChunkReader
    staged: StagedStream
    room: ExitStack = field(repr=False)
    message_bytes: int = 0
    _stream: object = None
    _staged_bytes: int = 0
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_whole_so_far(self) -> bool:
        """Whether every byte that was checked is staged; not so after a disk failed."""
        return self._staged_bytes == self.reader.received_bytes

    async def hand_to(self, stream: object) -> None:
        """Let another stream add from now on."""
        async with self._writing:
            self._stream = stream

    async def add(self, stream: object, chunk: tensors_pb2.Chunk) -> None:
        """Check a chunk and stage it.

        Raises:
            StreamError: it is not the next one.
            PeerLost: another stream of the same upload took over.
            StorageError: the disk failed.
        """
        async with self._writing:
            self.check_held_by(stream)
            data = self.reader.feed(chunk)
            if data:
                await self.staged.write(data)
            self._staged_bytes = self.reader.received_bytes

    def check_held_by(self, stream: object) -> None:
        """Check that a stream is the one that adds now.

        Raises:
            PeerLost: another stream of the same upload took over.
        """
        if self._stream is not stream:
            raise PeerLost("another stream of this upload took over", fix="use one stream at a time")


class PartialUploads:
    """Every upload that is being received or may be gone on with.

    Args:
        staging: where bytes wait.
        max_kept: uploads without a stream that are kept; beyond them the one that broke off first goes.
    """

    def __init__(self, staging: StagingArea, max_kept: int) -> None:
        self._staging = staging
        self._max_kept = max_kept
        self._uploads: dict[UploadKey, PartialUpload] = {}
        self._without_stream: OrderedDict[UploadKey, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uploads)

    def kept(self, key: UploadKey) -> Kept:
        """What a stream may go on from; of an upload that is not here nothing."""
        upload = self._uploads.get(key)
        if upload is None or not upload.is_whole_so_far:
            return Kept(0, b"")
        return Kept(upload.reader.received_bytes, upload.reader.received_sha256)

    def find(self, key: UploadKey) -> PartialUpload:
        """An upload that a stream may go on with.

        Raises:
            Overloaded: what came before is not kept any more.
        """
        upload = self._uploads.get(key)
        if upload is None or not upload.is_whole_so_far:
            raise Overloaded("what came of this upload is not kept any more", fix="ask again and go on from there")
        return upload

    @asynccontextmanager
    async def new(self, key: UploadKey, reader: ChunkReader) -> AsyncIterator[tuple[PartialUpload, object]]:
        """Receive an upload from its first byte, in the block. What was kept of an earlier try goes.

        Yields:
            The upload, and what names the stream to it.
        """
        self._forget(key)
        room = ExitStack()
        upload = PartialUpload(reader, room.enter_context(self._staging.stage(reader.total_bytes)), room)
        self._uploads[key] = upload
        async with self._received(key, upload) as stream:
            yield upload, stream

    @asynccontextmanager
    async def again(
        self, key: UploadKey, header: tensors_pb2.StreamHeader, first_byte: int
    ) -> AsyncIterator[tuple[PartialUpload, object]]:
        """Go on with an upload in the block; a stream that still adds to it is put aside.

        Raises:
            Overloaded: what came before is not kept any more.
            StreamError: the stream does not fit what came before.
        """
        upload = self.find(key)
        self._without_stream.pop(key, None)
        async with self._received(key, upload) as stream:
            upload.reader.resume(header, first_byte)
            yield upload, stream

    def drop(self, session_id: bytes) -> None:
        """Forget every upload of a session. One that is being received is given back by its own stream."""
        for key in [key for key in self._uploads if key.session_id == session_id]:
            self._forget(key)

    @asynccontextmanager
    async def _received(self, key: UploadKey, upload: PartialUpload) -> AsyncIterator[object]:
        stream = object()
        may_go_on = False
        try:
            await upload.hand_to(stream)
            yield stream
        except (Truncated, PeerLost, Overloaded, asyncio.CancelledError):
            may_go_on = True
            raise
        finally:
            self._let_go(key, upload, stream, may_go_on)

    def _let_go(self, key: UploadKey, upload: PartialUpload, stream: object, may_go_on: bool) -> None:
        try:
            upload.check_held_by(stream)
        except PeerLost:
            # The stream that took over has it now.
            return
        is_ours = self._uploads.get(key) is upload
        if may_go_on and is_ours and upload.is_whole_so_far and upload.reader.received_bytes:
            self._without_stream[key] = None
            self._bound()
            return
        if is_ours:
            del self._uploads[key]
        upload.room.close()

    def _bound(self) -> None:
        while len(self._without_stream) > self._max_kept:
            self._forget(next(iter(self._without_stream)))

    def _forget(self, key: UploadKey) -> None:
        upload = self._uploads.pop(key, None)
        if key in self._without_stream and upload is not None:
            del self._without_stream[key]
            upload.room.close()
