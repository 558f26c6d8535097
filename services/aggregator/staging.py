"""Where an upload waits until it is whole and proved: in memory up to a budget, beyond it in a nameless file."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from fl_core.codec.packing import packed_bytes, unpack
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import StorageError
from services.runtime.offload import offload

_BLOCK = 1 << 20


class StagedStream(Protocol):
    """The bytes of one stream that is being received."""

    async def write(self, data: bytes | memoryview) -> None:
        """Append the next bytes."""

    def read_vector(self, length: int, ring_bits: int) -> RingVector:
        """The packed vector that was written, (length,) in the lane of the ring. Takes a while: run it in a thread."""


class StagingArea:
    """Gives room to streams.

    Args:
        folder: for what does not fit the budget; made when needed.
        memory_budget_bytes: bytes of all staged streams together that are kept in memory.
    """

    def __init__(self, folder: Path, memory_budget_bytes: int) -> None:
        self._folder = folder
        self._free_bytes = memory_budget_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        return self._free_bytes

    @contextmanager
    def stage(self, total_bytes: int) -> Iterator[StagedStream]:
        """Room for a stream, until the end of the block.

        Raises:
            StorageError: the folder cannot be written.
        """
        if total_bytes > self._free_bytes:
            with self._open_file() as file:
                yield _OnDisk(file)
            return
        self._free_bytes -= total_bytes
        try:
            yield _InMemory(total_bytes)
        finally:
            self._free_bytes += total_bytes

    def _open_file(self) -> IO[bytes]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The file has no name in the folder, so that nothing is left of it whatever happens.
            return tempfile.TemporaryFile(dir=self._folder)
        except OSError as error:
            raise _disk_error(error) from error


class _InMemory:
    def __init__(self, total_bytes: int) -> None:
        # Memory is only taken when it is written, so an upload that never comes costs nothing.
        self._buffer = np.empty(total_bytes, np.uint8)
        self._written = 0

    async def write(self, data: bytes | memoryview) -> None:
        end = self._written + len(data)
        self._buffer[self._written : end] = np.frombuffer(data, np.uint8)
        self._written = end

    def read_vector(self, length: int, ring_bits: int) -> RingVector:
        return unpack(self._buffer[: self._written], length, ring_bits)


class _OnDisk:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    async def write(self, data: bytes | memoryview) -> None:
        await offload(self._write, data)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _disk_error(error) from error

    def read_vector(self, length: int, ring_bits: int) -> RingVector:
        # Read piece by piece: the packed bytes never stand in memory beside the vector.
        vector: RingVector = np.empty(length, lane_dtype(ring_bits))
        try:
            self._file.seek(0)
            for start in range(0, length, _BLOCK):
                count = min(_BLOCK, length - start)
                piece = self._file.read(packed_bytes(count, ring_bits))
                vector[start : start + count] = unpack(piece, count, ring_bits)
        except OSError as error:
            raise _disk_error(error) from error
        return vector


def _disk_error(error: OSError) -> StorageError:
    return StorageError(
        "an upload cannot be staged on disk",
        got=error.strerror,
        fix="free space in state_dir, or raise memory_budget_bytes",
    )
