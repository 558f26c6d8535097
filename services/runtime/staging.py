"""Where an upload waits until it is whole and proved: in memory up to a budget, beyond it in a nameless file."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt

from fl_core.codec.packing import packed_bytes, unpack, unpack_blocks, unpack_into
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import StorageError
from services.runtime.offload import offload
from services.runtime.sessions import run_to_end

BLOCK = 1 << 18
"""Coordinates that are unpacked at a time; a multiple of 8, so that each block begins on a byte."""


class StagedStream(Protocol):
    """The bytes of one stream that is being received."""

    async def write(self, data: bytes | memoryview) -> None:
        """Append the next bytes."""

    def read_all(self) -> npt.NDArray[np.uint8]:
        """All bytes that were written, as a view of them where they are in memory.

        Raises:
            StorageError: the disk failed.
        """

    def read_into(self, vector: RingVector, ring_bits: int) -> RingVector:
        """Unpack all that was written into a vector in the ring's lane, and return that.

        Raises:
            StorageError: the disk failed.
        """

    def read_blocks(self, length: int, ring_bits: int) -> Iterator[RingVector]:
        """The packed vector that was written, in order, in parts of at most `BLOCK` coordinates, in the ring's lane.

        Raises:
            StorageError: the disk failed.
        """


def read_vector(staged: StagedStream, length: int, ring_bits: int) -> RingVector:
    """The whole vector of a staged stream, (length,) in the lane of the ring. Takes a while: run it in a thread.

    Raises:
        StorageError: the disk failed.
    """
    return staged.read_into(np.empty(length, lane_dtype(ring_bits)), ring_bits)


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

    def read_all(self) -> npt.NDArray[np.uint8]:
        return self._buffer[: self._written]

    def read_into(self, vector: RingVector, ring_bits: int) -> RingVector:
        return unpack_into(vector, self._buffer[: self._written], ring_bits)

    def read_blocks(self, length: int, ring_bits: int) -> Iterator[RingVector]:
        for _, block in unpack_blocks(self._buffer[: self._written], length, ring_bits, BLOCK):
            yield block


class _OnDisk:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    async def write(self, data: bytes | memoryview) -> None:
        # A thread that writes cannot be stopped half-way, so a caller who goes away waits for it: the next one may
        # write behind it.
        await run_to_end(lambda: asyncio.create_task(offload(self._write, data)))

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _disk_error(error) from error

    def read_all(self) -> npt.NDArray[np.uint8]:
        try:
            self._file.seek(0)
            return np.frombuffer(self._file.read(), np.uint8)
        except OSError as error:
            raise _disk_error(error) from error

    def read_into(self, vector: RingVector, ring_bits: int) -> RingVector:
        start = 0
        for block in self.read_blocks(len(vector), ring_bits):
            vector[start : start + len(block)] = block
            start += len(block)
        return vector

    def read_blocks(self, length: int, ring_bits: int) -> Iterator[RingVector]:
        # Read piece by piece: the packed bytes never stand in memory as a whole.
        try:
            self._file.seek(0)
            for start in range(0, length, BLOCK):
                count = min(BLOCK, length - start)
                yield unpack(self._file.read(packed_bytes(count, ring_bits)), count, ring_bits, of=length)
        except OSError as error:
            raise _disk_error(error) from error


def _disk_error(error: OSError) -> StorageError:
    return StorageError(
        "an upload cannot be staged on disk",
        got=error.strerror,
        fix="free space in state_dir, or raise memory_budget_bytes",
    )
