"""Global models: safetensors blobs, written and read in pieces, so that memory stays flat whatever their size."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field

import numpy as np

from fl_core.codec.tensors import TensorManifest, Tensors, TensorSpec
from fl_core.errors import CodecError, StorageError
from fl_core.wire.chunks import DEFAULT_CHUNK_BYTES, TensorReader, model_digest_of, tensor_bytes
from fl_core.wire.v1 import tensors_pb2
from services.coordinator.tensor_files import decode_header, encode_header
from services.runtime.blobs import BlobStore
from services.runtime.offload import offload

FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the blob store."""

    blob_name: str
    manifest: TensorManifest = field(repr=False)
    model_digest: bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the tensors."""
        return self.manifest.nbytes


class ModelStore:
    """The versions of the models of all jobs, as blobs."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def receive(self, name: str, manifest: TensorManifest, pieces: AsyncIterator[bytes]) -> StoredModel:
        """Store a model from the bytes of its tensors as they come in.

        Args:
            name: name of the blob.
            manifest: what the bytes are.
            pieces: exactly manifest.nbytes bytes; if it raises, nothing is stored.

        Raises:
            CodecError: a coordinate is NaN or infinite, or a boolean is neither 0 nor 1; names the tensor.
        """
        inspector = TensorInspector(manifest)

        async def content() -> AsyncIterator[bytes]:
            yield encode_header(manifest, {"format": "tacit"})
            async for piece in pieces:
                await offload(inspector.feed, piece)
                yield piece

        await self._blobs.put(name, content())
        return StoredModel(name, manifest, model_digest_of(manifest, inspector.sha256))

    async def store(self, name: str, manifest: TensorManifest, tensors: Tensors) -> StoredModel:
        """Store a model that is in memory. Arguments and errors as `receive`."""

        async def pieces() -> AsyncIterator[bytes]:
            for view in tensor_bytes(tensors, manifest):
                for start in range(0, view.nbytes, DEFAULT_CHUNK_BYTES):
                    yield bytes(view[start : start + DEFAULT_CHUNK_BYTES])

        return await self.receive(name, manifest, pieces())

    async def open(self, blob_name: str, model_digest: bytes | None = None) -> "ModelReader":
        """Open a model for reading; the caller closes what it does not read to the end.

        Args:
            blob_name: name of the blob.
            model_digest: what it must be, 32 bytes; shows when it is read to the end.

        Raises:
            NotFound: the blob is gone.
            StorageError: the blob is no model.
        """
        source = self._blobs.get(blob_name)
        header = _HeaderBuffer(source)
        manifest = await header.decode()
        return ModelReader(manifest, model_digest, header.rest, source)

    async def manifest(self, blob_name: str) -> TensorManifest:
        """Names, dtypes and shapes of a model. Errors as `open`."""
        reader = await self.open(blob_name)
        await reader.close()
        return reader.manifest

    async def load(self, blob_name: str, model_digest: bytes | None = None) -> Tensors:
        """Read a whole model into memory, once. Arguments as `open`.

        Raises:
            StorageError: what lies there is not what was stored.
        """
        reader = await self.open(blob_name, model_digest)
        size = reader.manifest.nbytes
        header = tensors_pb2.StreamHeader(total_bytes=size, chunk_bytes=DEFAULT_CHUNK_BYTES)
        tensors = TensorReader(reader.manifest, header, max_bytes=size)
        async for chunk in reader.chunks(DEFAULT_CHUNK_BYTES):
            tensors.feed(chunk)
        return await offload(tensors.finish, reader.trailer)

    async def discard(self, name: str) -> None:
        """Remove a blob that no version names."""
        await self._blobs.delete(name)


class ModelReader:
    """One pass over the tensors of a stored model."""

    def __init__(
        self, manifest: TensorManifest, model_digest: bytes | None, first: bytes, source: AsyncIterator[bytes]
    ) -> None:
        self.manifest = manifest
        self._model_digest = model_digest
        self._first = first
        self._source = source
        self._digest = hashlib.sha256()
        self._count = 0

    async def chunks(self, chunk_bytes: int) -> AsyncGenerator[tensors_pb2.Chunk, None]:
        """The bytes of the tensors in chunks, in order.

        Raises:
            StorageError: the stored bytes are not those of the model, which shows at the end.
        """
        held = bytearray(self._first)
        try:
            async for piece in self._source:
                held += piece
                while len(held) >= chunk_bytes:
                    yield self._chunk(bytes(memoryview(held)[:chunk_bytes]))
                    del held[:chunk_bytes]
        finally:
            await self.close()
        for start in range(0, len(held), chunk_bytes):
            yield self._chunk(bytes(held[start : start + chunk_bytes]))
        self._check_digest()

    @property
    def trailer(self) -> tensors_pb2.StreamTrailer:
        """The proof of the stream; complete once all chunks were taken."""
        return tensors_pb2.StreamTrailer(chunk_count=self._count, sha256=self._digest.digest())

    async def close(self) -> None:
        """Let go of the blob."""
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

    def _check_digest(self) -> None:
        digest = model_digest_of(self.manifest, self._digest.digest())
        if self._model_digest not in (None, digest):
            raise StorageError(
                "a stored model is not what was stored", expected=self._model_digest and self._model_digest.hex()
            )

    def _chunk(self, data: bytes) -> tensors_pb2.Chunk:
        self._digest.update(data)
        self._count += 1
        return tensors_pb2.Chunk(index=self._count - 1, data=data)


class _HeaderBuffer:
    """Reads just as much of a blob as its header needs; `rest` is what came with it."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self.rest = b""

    async def decode(self) -> TensorManifest:
        head = bytearray()
        needed = 8
        while len(head) < needed:
            piece = await anext(self._source, b"")
            if not piece:
                raise StorageError("a stored model is truncated", expected=f"{needed} bytes of header", got=len(head))
            head += piece
            needed = 8 + int.from_bytes(head[:8], "little") if len(head) >= 8 else 8
        self.rest = bytes(head[needed:])
        reading = iter((bytes(head[:8]), bytes(head[8:needed])))
        return decode_header(lambda _: next(reading))


class TensorInspector:
    """Looks at the bytes of a model as they pass: every float finite, every boolean 0 or 1, and their SHA-256.

    Args:
        manifest: what the bytes are.
    """

    def __init__(self, manifest: TensorManifest) -> None:
        self._specs = iter(manifest.tensors)
        self._spec: TensorSpec | None = None
        self._left = 0
        self._carry = b""
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> bytes:
        """Digest of all bytes so far."""
        return self._digest.digest()

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes.

        Raises:
            CodecError: a value that no model may hold; names its tensor.
        """
        self._digest.update(piece)
        for spec, part in self._parts(memoryview(piece)):
            width = np.dtype(spec.dtype).itemsize
            data = self._carry + bytes(part)
            whole = len(data) - len(data) % width
            self._carry = data[whole:]
            _check_values(spec, data[:whole])

    def _parts(self, view: memoryview) -> Iterator[tuple[TensorSpec, memoryview]]:
        while view.nbytes:
            while not self._left:
                self._spec = next(self._specs, None)
                if self._spec is None:
                    raise CodecError("a model has more bytes than its manifest")
                self._left = self._spec.nbytes
            if self._spec is None:
                return
            part = view[: self._left]
            self._left -= part.nbytes
            view = view[part.nbytes :]
            yield self._spec, part


def _check_values(spec: TensorSpec, data: bytes) -> None:
    if spec.dtype == "bool" and data and max(data) > 1:
        raise CodecError(f"tensor {spec.name!r} holds bytes that are no booleans", expected="0 or 1")
    if spec.dtype not in FLOATS:
        return
    values = np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<"))
    if not np.isfinite(values).all():
        raise CodecError(
            f"tensor {spec.name!r} holds NaN or infinity",
            expected="finite values",
            fix="start from a model whose parameters are finite",
        )
