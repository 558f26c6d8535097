"""Byte streams in chunks: a header says what will come, a trailer proves that it came. Nothing unproved is used.

A writer never holds more than one chunk, a reader of tensors never more than the tensors. The chunks of one stream
are wrapped into the `oneof` of their RPC by the caller.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from fl_core.codec.tensors import TensorManifest, Tensors, TensorSpec, check_tensors
from fl_core.crypto import labels
from fl_core.errors import CodecError, LocalProtocolError, StreamError
from fl_core.rounds.plan import MAX_CHUNK_BYTES
from fl_core.wire.v1 import tensors_pb2

Buffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

DEFAULT_CHUNK_BYTES = 1 << 18
RESUMED_CHUNK_BYTES = 1 << 15
"""Chunks of a stream that follows one that broke, in bytes; half of that after each stream that brought nothing."""

SMALLEST_CHUNK_BYTES = 1 << 12
"""Chunks shrink to this on a bad link, in both directions. Services neither take nor make smaller ones: each costs."""

DIGEST_BYTES = 32
MAX_CHUNKS = (1 << 32) - 1


def upload_chunk_bytes(chunk_bytes: int) -> tuple[int, int]:
    """Smallest and largest chunk of an upload, but for the last one of a stream, by the chunk_bytes of its plan."""
    return min(chunk_bytes, SMALLEST_CHUNK_BYTES), chunk_bytes


def chunk_count(total_bytes: int, chunk_bytes: int) -> int:
    """Chunks of a stream of `total_bytes`; none for an empty one."""
    return -(-total_bytes // chunk_bytes)


class ChunkWriter:
    """Cuts a buffer, or buffers that come one after the other, into chunks.

    Args:
        source: one buffer, or an iterable of buffers whose lengths are arbitrary.
        total_bytes: of all buffers; may be left out for one buffer.
        chunk_bytes: of every chunk but the last.

    Raises:
        LocalProtocolError: chunk_bytes is out of range, or total_bytes is missing.
    """

    def __init__(
        self,
        source: Buffer | Iterable[Buffer],
        *,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        total_bytes: int | None = None,
    ) -> None:
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
            raise LocalProtocolError("chunk_bytes is out of range", expected=f"1 to {MAX_CHUNK_BYTES}", got=chunk_bytes)
        views = _views_of(source)
        if isinstance(views, list) and total_bytes is None:
            total_bytes = views[0].nbytes
        if total_bytes is None:
            raise LocalProtocolError("a stream of several buffers needs total_bytes", expected="their sum")
        self._views = views
        self._total_bytes = total_bytes
        self._chunk_bytes = chunk_bytes
        self._digest = hashlib.sha256()
        self._written_bytes = 0
        self._written_chunks = 0

    @property
    def header(self) -> tensors_pb2.StreamHeader:
        """What will come; the first message of the stream."""
        return tensors_pb2.StreamHeader(total_bytes=self._total_bytes, chunk_bytes=self._chunk_bytes)

    @property
    def trailer(self) -> tensors_pb2.StreamTrailer:
        """What came; the last message of the stream.

        Raises:
            LocalProtocolError: not all chunks were taken.
        """
        if self._written_bytes != self._total_bytes:
            raise LocalProtocolError(
                "a stream is not at its end", expected=f"{self._total_bytes} bytes", got=self._written_bytes
            )
        return tensors_pb2.StreamTrailer(chunk_count=self._written_chunks, sha256=self._digest.digest())

    @property
    def sha256(self) -> bytes:
        """Digest of all bytes, 32 bytes.

        Raises:
            LocalProtocolError: not all chunks were taken.
        """
        return self.trailer.sha256

    def chunks(self) -> Iterator[tensors_pb2.Chunk]:
        """The chunks, in order. They can be taken once.

        Raises:
            LocalProtocolError: the buffers together are shorter or longer than total_bytes.
        """
        held = bytearray()
        for view in self._views:
            start = 0
            while start < view.nbytes:
                taken = view[start : start + self._chunk_bytes - len(held)]
                start += taken.nbytes
                if not held and taken.nbytes == self._chunk_bytes:
                    yield self._chunk(bytes(taken))
                    continue
                held += taken
                if len(held) == self._chunk_bytes:
                    yield self._chunk(bytes(held))
                    held.clear()
        if held:
            yield self._chunk(bytes(held))
        if self._written_bytes != self._total_bytes:
            raise LocalProtocolError(
                "the buffers are shorter than their stream", expected=self._total_bytes, got=self._written_bytes
            )

    def _chunk(self, data: bytes) -> tensors_pb2.Chunk:
        if self._written_bytes + len(data) > self._total_bytes:
            raise LocalProtocolError("the buffers are longer than their stream", expected=self._total_bytes)
        chunk = tensors_pb2.Chunk(index=self._written_chunks, data=data)
        self._digest.update(data)
        self._written_bytes += len(data)
        self._written_chunks += 1
        return chunk


def chunks_of(buffer: npt.NDArray[np.uint8], chunk_bytes: int) -> Iterator[tensors_pb2.Chunk]:
    """The chunks of a buffer whose digest is known already, in order."""
    view = buffer.data
    for index, start in enumerate(range(0, view.nbytes, chunk_bytes)):
        yield tensors_pb2.Chunk(index=index, data=bytes(view[start : start + chunk_bytes]))


def stream_parts(
    writer: ChunkWriter,
) -> Iterator[tensors_pb2.StreamHeader | tensors_pb2.Chunk | tensors_pb2.StreamTrailer]:
    """Header, chunks and trailer of one stream, in order."""
    yield writer.header
    yield from writer.chunks()
    yield writer.trailer


class ChunkReader:
    """Checks a stream as it comes: order, sizes, total and digest.

    Args:
        header: the first message of the stream.
        max_bytes: the largest stream that is taken.
        expected_bytes: the only total that is right, where it is known beforehand.
        expected_chunk_bytes: the only chunk_bytes that is right, where it is known beforehand.
        chunk_bytes: smallest and largest chunk_bytes that are right, where several are.

    Raises:
        StreamError: the header announces something else than may come.
    """

    def __init__(
        self,
        header: tensors_pb2.StreamHeader,
        *,
        max_bytes: int,
        expected_bytes: int | None = None,
        expected_chunk_bytes: int | None = None,
        chunk_bytes: tuple[int, int] = (1, MAX_CHUNK_BYTES),
    ) -> None:
        _check_header(header, max_bytes, expected_bytes, expected_chunk_bytes, chunk_bytes)
        self._right_chunk_bytes = chunk_bytes
        self._total_bytes = header.total_bytes
        self._chunk_bytes = header.chunk_bytes
        self._count = _count_within_bound(header.total_bytes, header.chunk_bytes)
        self._digest = hashlib.sha256()
        # Where the next chunk begins. Behind `_received_bytes` while a resumed stream repeats what was here before.
        self._position = 0
        self._received_bytes = 0
        self._received_chunks = 0
        self._is_finished = False

    def resume(self, header: tensors_pb2.StreamHeader, first_byte: int) -> None:
        """Go on with another stream of the same bytes, whose chunks are numbered from 0 and may be smaller.

        Args:
            header: of that stream.
            first_byte: where it begins; bytes that came before may come again.

        Raises:
            StreamError: it is a stream of other bytes, or begins beyond what came so far. Nothing changes.
        """
        _check_header(header, self._total_bytes, self._total_bytes, None, self._right_chunk_bytes)
        if not 0 <= first_byte <= self._received_bytes:
            raise StreamError(
                "a stream cannot go on there",
                expected=f"at byte {self._received_bytes} or before it",
                got=f"byte {first_byte}",
                fix="ask what has come, and go on from there",
            )
        self._count = _count_within_bound(self._total_bytes - first_byte, header.chunk_bytes)
        self._chunk_bytes = header.chunk_bytes
        self._position = first_byte
        self._received_chunks = 0

    @property
    def total_bytes(self) -> int:
        """Bytes that the header announced."""
        return self._total_bytes

    @property
    def received_bytes(self) -> int:
        """Bytes that came so far."""
        return self._received_bytes

    @property
    def received_sha256(self) -> bytes:
        """SHA-256 of the bytes that came so far, 32 bytes."""
        return self._digest.digest()

    @property
    def received_chunks(self) -> int:
        """Chunks of this stream that came so far."""
        return self._received_chunks

    def feed(self, chunk: tensors_pb2.Chunk) -> bytes:
        """Check the next chunk.

        Returns:
            Its bytes, to be kept apart until `finish` has proved the whole stream; without those that came before.

        Raises:
            StreamError: out of order, of the wrong size, or beyond the end. Nothing changes.
        """
        data = chunk.data
        expected = min(self._chunk_bytes, self._total_bytes - self._position)
        if self._received_chunks >= self._count:
            raise StreamError(
                "a chunk came after the end of its stream",
                expected=f"{self._count} chunks",
                got=f"chunk {chunk.index}",
                fix="send the bytes that the header announced, then the trailer",
            )
        if chunk.index != self._received_chunks:
            raise StreamError(
                "a chunk is out of order",
                expected=f"chunk {self._received_chunks}",
                got=f"chunk {chunk.index}",
                fix="send the chunks in order, each once",
            )
        if len(data) != expected:
            raise StreamError(
                f"chunk {chunk.index} has the wrong size",
                expected=f"{expected} bytes",
                got=f"{len(data)} bytes",
                fix="fill every chunk but the last to chunk_bytes",
            )
        repeated = min(self._received_bytes - self._position, len(data))
        fresh = data[repeated:] if repeated else data
        self._digest.update(fresh)
        self._position += len(data)
        self._received_bytes += len(fresh)
        self._received_chunks += 1
        return fresh

    def finish(self, trailer: tensors_pb2.StreamTrailer) -> bytes:
        """Prove that the stream is whole.

        Returns:
            SHA-256 of all bytes.

        Raises:
            StreamError: bytes are missing, the count is another one, or the digest differs. Nothing changes.
        """
        self._check_whole()
        if self._is_finished:
            raise StreamError("a stream has two trailers", expected="one")
        if trailer.chunk_count != self._received_chunks:
            raise StreamError(
                "a trailer counts other chunks",
                expected=f"{self._received_chunks} chunks",
                got=f"{trailer.chunk_count} chunks",
                fix="send it again",
            )
        digest = self._digest.digest()
        if trailer.sha256 != digest:
            raise StreamError(
                "the digest of a stream is wrong",
                expected=digest.hex(),
                got=trailer.sha256[:DIGEST_BYTES].hex(),
                fix="send it again, with the SHA-256 of all its bytes",
            )
        self._is_finished = True
        return digest

    def end(self) -> None:
        """Say that the peer sends nothing more; a broken upload ends without its trailer.

        Raises:
            StreamError: the stream was not finished by a trailer.
        """
        if self._is_finished:
            return
        self._check_whole()
        raise StreamError("a stream is truncated", expected="a trailer", got="the end", fix="send it again")

    def _check_whole(self) -> None:
        if self._received_bytes != self._total_bytes:
            raise StreamError(
                "a stream is truncated",
                expected=f"{self._total_bytes} bytes",
                got=f"{self._received_bytes} bytes",
                fix="send it again",
            )


class TensorReader:
    """Fills the arrays of a model from a stream, without a second copy.

    Args:
        manifest: names, dtypes and shapes of the model.
        header: the first message of the stream.
        max_bytes: the largest model that is taken.

    Raises:
        StreamError: the header does not fit the manifest, or announces too much.
    """

    def __init__(self, manifest: TensorManifest, header: tensors_pb2.StreamHeader, *, max_bytes: int) -> None:
        self._reader = ChunkReader(header, max_bytes=max_bytes, expected_bytes=manifest.nbytes)
        self._manifest = manifest
        # Memory is claimed from the system as it is filled, so a header alone costs nothing.
        self._arrays = {spec.name: np.empty(spec.shape, _wire_dtype(spec)) for spec in manifest.tensors}
        self._targets = (_elements(array) for array in self._arrays.values())
        self._target = memoryview(b"")
        self._sha256: bytes | None = None

    @property
    def received_bytes(self) -> int:
        """Bytes that came so far."""
        return self._reader.received_bytes

    @property
    def model_digest(self) -> bytes:
        """Digest of the model, 32 bytes.

        Raises:
            LocalProtocolError: the stream is not finished.
        """
        if self._sha256 is None:
            raise LocalProtocolError("a model is not whole yet", expected="finish first")
        return model_digest_of(self._manifest, self._sha256)

    def resume(self, header: tensors_pb2.StreamHeader, first_byte: int) -> None:
        """As `ChunkReader.resume`.

        Raises:
            StreamError: it is a stream of other bytes, or begins beyond what came so far. Nothing changes.
        """
        self._reader.resume(header, first_byte)

    def feed(self, chunk: tensors_pb2.Chunk) -> None:
        """Take the next chunk.

        Raises:
            StreamError: as `ChunkReader.feed`.
        """
        data = memoryview(self._reader.feed(chunk))
        while data.nbytes:
            while not self._target.nbytes:
                self._target = next(self._targets)
            count = min(data.nbytes, self._target.nbytes)
            self._target[:count] = data[:count]
            self._target, data = self._target[count:], data[count:]

    def finish(self, trailer: tensors_pb2.StreamTrailer) -> dict[str, npt.NDArray[np.generic]]:
        """Prove that the model is whole.

        Returns:
            Arrays by name, in the order of the manifest.

        Raises:
            StreamError: as `ChunkReader.finish`.
            CodecError: a boolean is neither 0 nor 1.
        """
        sha256 = self._reader.finish(trailer)
        for spec in self._manifest.tensors:
            _check_booleans(spec, self._arrays[spec.name])
        self._sha256 = sha256
        return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in self._arrays.items()}

    def end(self) -> None:
        """As `ChunkReader.end`.

        Raises:
            StreamError: the stream was not finished by a trailer.
        """
        self._reader.end()


def tensor_bytes(tensors: Tensors, manifest: TensorManifest) -> Iterator[memoryview]:
    """Row-major little-endian bytes of each tensor, in the order of the manifest, without copying where possible.

    Raises:
        CodecError: the tensors do not fit the manifest.
    """
    check_tensors(tensors, manifest)
    for spec in manifest.tensors:
        yield _elements(np.ascontiguousarray(tensors[spec.name], _wire_dtype(spec)))


def tensor_writer(tensors: Tensors, manifest: TensorManifest, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> ChunkWriter:
    """The stream of a model.

    Raises:
        CodecError: the tensors do not fit the manifest.
    """
    check_tensors(tensors, manifest)
    return ChunkWriter(tensor_bytes(tensors, manifest), chunk_bytes=chunk_bytes, total_bytes=manifest.nbytes)


def model_digest(tensors: Tensors, manifest: TensorManifest) -> bytes:
    """Digest of a model: its manifest and the bytes of its tensors.

    Returns:
        32 bytes, as in `RoundPlan.model_digest`.

    Raises:
        CodecError: the tensors do not fit the manifest.
    """
    digest = hashlib.sha256()
    for view in tensor_bytes(tensors, manifest):
        digest.update(view)
    return model_digest_of(manifest, digest.digest())


def model_digest_of(manifest: TensorManifest, sha256: bytes) -> bytes:
    """Digest of a model whose tensor bytes have the SHA-256 digest `sha256`, as a stream's trailer has it."""
    return labels.digest_fields(labels.MODEL, manifest.digest(), sha256)


def _check_header(
    header: tensors_pb2.StreamHeader,
    max_bytes: int,
    expected_bytes: int | None,
    expected_chunk_bytes: int | None,
    right_chunk_bytes: tuple[int, int],
) -> None:
    if header.total_bytes > max_bytes:
        raise StreamError(
            "a stream is too large",
            expected=f"up to {max_bytes} bytes",
            got=f"{header.total_bytes} bytes",
            fix="send what was asked for and nothing more",
        )
    if expected_bytes is not None and header.total_bytes != expected_bytes:
        raise StreamError(
            "a stream has the wrong size",
            expected=f"{expected_bytes} bytes",
            got=f"{header.total_bytes} bytes",
            fix="compare the shapes of the model and the codec at both ends",
        )
    smallest, largest = right_chunk_bytes
    if not smallest <= header.chunk_bytes <= largest:
        raise StreamError("chunk_bytes is out of range", expected=f"{smallest} to {largest}", got=header.chunk_bytes)
    if expected_chunk_bytes is not None and header.chunk_bytes != expected_chunk_bytes:
        raise StreamError(
            "the chunks have the wrong size",
            expected=f"{expected_chunk_bytes} bytes",
            got=f"{header.chunk_bytes} bytes",
            fix="cut the stream into chunks of the expected size",
        )


def _count_within_bound(total_bytes: int, chunk_bytes: int) -> int:
    count = chunk_count(total_bytes, chunk_bytes)
    if count > MAX_CHUNKS:
        raise StreamError("a stream has too many chunks", expected=f"up to {MAX_CHUNKS}", got=count)
    return count


def _views_of(source: Buffer | Iterable[Buffer]) -> list[memoryview] | Iterator[memoryview]:
    if isinstance(source, bytes | bytearray | memoryview | np.ndarray):
        return [_bytes_of(source)]
    return (_bytes_of(buffer) for buffer in source)


def _bytes_of(buffer: Buffer) -> memoryview:
    if isinstance(buffer, np.ndarray):
        return _elements(np.ascontiguousarray(buffer))
    return memoryview(buffer).cast("B")


def _wire_dtype(spec: TensorSpec) -> np.dtype[np.generic]:
    return np.dtype(spec.dtype).newbyteorder("<")


def _elements(array: npt.NDArray[np.generic]) -> memoryview:
    """The bytes of a contiguous array; writable where the array is."""
    return array.reshape(-1).view(np.uint8).data


def _check_booleans(spec: TensorSpec, array: npt.NDArray[np.generic]) -> None:
    # numpy trusts the byte of a boolean; any other value than 0 and 1 gives results that contradict each other.
    if spec.dtype == "bool" and array.size and int(array.view(np.uint8).max()) > 1:
        raise CodecError(f"tensor {spec.name!r} holds bytes that are no booleans", expected="0 or 1")
