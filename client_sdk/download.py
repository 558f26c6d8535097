"""The global model: downloaded into its own arrays, checked against the digest that the site was told, and kept."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog

from client_sdk.trainer import Array
from fl_core.codec.lossy_difference import MOST_STEPS, apply_difference
from fl_core.codec.model_difference import decode_difference
from fl_core.codec.packing import Buffer
from fl_core.codec.tensors import TensorManifest
from fl_core.errors import CodecError, PeerLost, RemoteProtocolError, StreamError, TacitError
from fl_core.transport.errors import rpc_errors
from fl_core.transport.retry import Backoff
from fl_core.wire.chunks import (
    RESUMED_CHUNK_BYTES,
    SMALLEST_CHUNK_BYTES,
    ChunkReader,
    ChunkWriter,
    TensorReader,
    tensor_bytes,
)
from fl_core.wire.convert import manifest_from_proto
from fl_core.wire.v1 import coordinator_pb2, tensors_pb2

if TYPE_CHECKING:
    from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceAsyncStub

log = structlog.get_logger(__name__)

LARGEST_DIFFERENCE = 64 << 20
"""Bytes of a model beyond which it is downloaded whole."""

_Parts = AsyncIterator[coordinator_pb2.GetParametersResponse]


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as an invitation or an evaluation task names it."""

    job_id: str
    model_version: int
    model_digest: bytes
    manifest: TensorManifest


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is here and has the digest of its reference."""

    reference: ModelReference
    tensors: dict[str, Array] = field(repr=False)

    @property
    def manifest(self) -> TensorManifest:
        """Names, dtypes and shapes."""
        return self.reference.manifest

    def copy(self) -> dict[str, Array]:
        """New arrays with the same content, for a trainer that may change them."""
        return {name: np.array(tensor) for name, tensor in self.tensors.items()}


class ModelDownload:
    """Gets models from the coordinator and keeps the last one, which most tasks ask for again.

    A stream that breaks is gone on with by the next call, from the byte that arrived.
    """

    def __init__(self) -> None:
        self._model: Model | None = None
        self._arriving: _Arriving | None = None
        self._one_at_a_time = asyncio.Lock()
        self.backoff = Backoff()
        """For those who call again; short again after each stream that brought something."""

    async def get(self, coordinator: "CoordinatorServiceAsyncStub", wanted: ModelReference, timeout_s: float) -> Model:
        """Download a model, or the rest of it, unless it is here. After a `retryable` error it may be called again.

        Raises:
            RemoteProtocolError: the coordinator offers another model than the one it named.
            StreamError: the download is truncated, too large, or has another digest.
            PeerLost: the connection broke.
        """
        async with self._one_at_a_time:
            if self._model is not None and self._model.reference.model_digest == wanted.model_digest:
                return Model(wanted, self._model.tensors)
            return await self._get(coordinator, wanted, timeout_s)

    async def _get(self, coordinator: "CoordinatorServiceAsyncStub", wanted: ModelReference, timeout_s: float) -> Model:
        base = self._base_for(wanted)
        # The old model stays only where it is of use.
        self._model = base
        if self._arriving is None or self._arriving.wanted != wanted:
            self._arriving = _Arriving(wanted, base, self.backoff)
        try:
            model = await self._finish(coordinator, self._arriving, timeout_s)
        except (CodecError, StreamError) as error:
            if self._arriving.base is None:
                raise
            # A difference saves bytes and nothing else: the whole model is right whatever was wrong with it.
            log.warning("difference_not_used", error=str(error))
            self._model, self._arriving = None, _Arriving(wanted, None, self.backoff)
            model = await self._finish(coordinator, self._arriving, timeout_s)
        self._model, self._arriving = model, None
        return model

    async def _finish(
        self, coordinator: "CoordinatorServiceAsyncStub", arriving: "_Arriving", timeout_s: float
    ) -> Model:
        try:
            return await arriving.run(coordinator, timeout_s)
        except TacitError as error:
            if not error.retryable:
                # What arrived is worth nothing.
                arriving.forget()
            raise

    def _base_for(self, wanted: ModelReference) -> Model | None:
        """The model that is here, when the wanted one may be a later version of it."""
        held = self._model
        if held is None or (held.reference.job_id, held.manifest) != (wanted.job_id, wanted.manifest):
            return None
        # The old model stays in memory meanwhile, which a large one is not worth.
        return held if held.manifest.nbytes <= LARGEST_DIFFERENCE else None


class _Arriving:
    """One model on its way, whatever the number of streams that it takes.

    Args:
        wanted: the model.
        base: what a difference may be to.
        backoff: made short again when something arrived.
    """

    def __init__(self, wanted: ModelReference, base: Model | None, backoff: Backoff) -> None:
        self.wanted = wanted
        self.base = base
        self._backoff = backoff
        self._receiver: _Receiver | None = None
        self._chunk_bytes = 0

    def forget(self) -> None:
        """Begin anew with the next stream."""
        self._receiver = None

    async def run(self, coordinator: "CoordinatorServiceAsyncStub", timeout_s: float) -> Model:
        """Receive the model, or the rest of it. After a `retryable` error it may be called again.

        Raises:
            RemoteProtocolError, StreamError, CodecError, PeerLost: as `ModelDownload.get`.
        """
        wanted, base = self.wanted, self.base
        first_byte = self._receiver.received_bytes if self._receiver else 0
        request = coordinator_pb2.GetParametersRequest(
            job_id=wanted.job_id,
            model_version=wanted.model_version,
            have_digest=b"" if base is None else base.reference.model_digest,
            accepts_difference=base is not None,
            first_byte=first_byte,
            chunk_bytes=self._chunk_bytes,
        )
        call = coordinator.GetParameters(request, timeout=timeout_s)
        try:
            with rpc_errors():
                return await self._read(call.__aiter__(), first_byte)
        except PeerLost:
            self._adapt(first_byte)
            raise
        finally:
            call.cancel()

    async def _read(self, parts: _Parts, first_byte: int) -> Model:
        header = (await _next(parts, "header")).header
        _check_header(header, self.wanted)
        receiver = self._receiver
        if first_byte and receiver is not None and receiver.continues_with(header):
            receiver.resume(header.stream, first_byte)
        elif first_byte:
            self.forget()
            raise PeerLost("the coordinator does not go on with a download that broke", fix="begin anew")
        else:
            receiver = self._receiver = _receiver_of(header, self.wanted, self.base)
        assert receiver is not None
        trailer = await _feed(parts, receiver.feed)
        # Reads the end, because a cancelled call is an error in the service's log.
        await anext(parts, None)
        digest, tensors = await receiver.finish(trailer)
        if digest != self.wanted.model_digest:
            raise StreamError(
                "the model is not the one that was announced",
                expected=f"digest {self.wanted.model_digest.hex()[:16]}",
                got=f"digest {digest.hex()[:16]}",
            )
        return Model(self.wanted, tensors)

    def _adapt(self, first_byte: int) -> None:
        """After a stream that broke: smaller chunks, and a short pause when something came."""
        arrived = self._receiver.received_bytes if self._receiver else 0
        if arrived > first_byte:
            self._backoff.reset()
            self._chunk_bytes = self._chunk_bytes or RESUMED_CHUNK_BYTES
        else:
            # One that never gets through would be sent for ever.
            self._chunk_bytes = max(self._chunk_bytes // 2 or RESUMED_CHUNK_BYTES, SMALLEST_CHUNK_BYTES)


class _Receiver(Protocol):
    """What takes the chunks of one kind of stream."""

    @property
    def received_bytes(self) -> int: ...

    def continues_with(self, header: coordinator_pb2.ModelHeader) -> bool:
        """Whether a stream with this header is the rest of the one that broke."""

    def resume(self, header: tensors_pb2.StreamHeader, first_byte: int) -> None: ...

    def feed(self, chunk: tensors_pb2.Chunk) -> None: ...

    async def finish(self, trailer: tensors_pb2.StreamTrailer) -> tuple[bytes, dict[str, Array]]:
        """The model and its digest."""


class _WholeModel:
    """A model as it is, received into its own arrays."""

    def __init__(self, header: coordinator_pb2.ModelHeader, wanted: ModelReference) -> None:
        self._reader = TensorReader(wanted.manifest, header.stream, max_bytes=wanted.manifest.nbytes)

    @property
    def received_bytes(self) -> int:
        return self._reader.received_bytes

    def continues_with(self, header: coordinator_pb2.ModelHeader) -> bool:
        return not header.base_digest

    def resume(self, header: tensors_pb2.StreamHeader, first_byte: int) -> None:
        self._reader.resume(header, first_byte)

    def feed(self, chunk: tensors_pb2.Chunk) -> None:
        self._reader.feed(chunk)

    async def finish(self, trailer: tensors_pb2.StreamTrailer) -> tuple[bytes, dict[str, Array]]:
        tensors = self._reader.finish(trailer)
        return self._reader.model_digest, tensors


class _Difference:
    """A difference to a model that is here."""

    def __init__(self, header: coordinator_pb2.ModelHeader, wanted: ModelReference, base: Model) -> None:
        self._header = header
        self._wanted = wanted
        self._base = base
        self._stream = ChunkReader(header.stream, max_bytes=wanted.manifest.nbytes)
        self._code = bytearray()

    @property
    def received_bytes(self) -> int:
        return self._stream.received_bytes

    def continues_with(self, header: coordinator_pb2.ModelHeader) -> bool:
        # The size is compared by `resume`.
        ours = self._header
        return header.base_digest == ours.base_digest and header.step_bytes == ours.step_bytes

    def resume(self, header: tensors_pb2.StreamHeader, first_byte: int) -> None:
        self._stream.resume(header, first_byte)

    def feed(self, chunk: tensors_pb2.Chunk) -> None:
        self._code.extend(self._stream.feed(chunk))

    async def finish(self, trailer: tensors_pb2.StreamTrailer) -> tuple[bytes, dict[str, Array]]:
        self._stream.finish(trailer)
        reader, tensors = await _decode_difference(self._code, self._header, self._wanted, self._base)
        return reader.model_digest, tensors


def _receiver_of(header: coordinator_pb2.ModelHeader, wanted: ModelReference, base: Model | None) -> _Receiver:
    if not header.base_digest:
        return _WholeModel(header, wanted)
    if base is None or header.base_digest != base.reference.model_digest:
        raise StreamError("the coordinator sends the difference to a model that is not here", expected="the model")
    return _Difference(header, wanted, base)


async def _feed(parts: _Parts, feed: Callable[[tensors_pb2.Chunk], object]) -> tensors_pb2.StreamTrailer:
    while (part := await _next(parts, "chunk", "trailer")).WhichOneof("part") == "chunk":
        feed(part.chunk)
    return part.trailer


async def _decode_difference(
    code: bytearray, header: coordinator_pb2.ModelHeader, wanted: ModelReference, base: Model
) -> tuple[TensorReader, dict[str, Array]]:
    before = b"".join(tensor_bytes(base.tensors, base.manifest))
    steps = list(header.step_bytes)
    content = await asyncio.to_thread(_apply_steps if steps else _apply_exact, bytes(code), steps, before, wanted)
    writer = ChunkWriter(content)
    reader = TensorReader(wanted.manifest, writer.header, max_bytes=wanted.manifest.nbytes)
    for chunk in writer.chunks():
        reader.feed(chunk)
    return reader, reader.finish(writer.trailer)


def _apply_exact(code: bytes, _steps: Sequence[int], before: bytes, wanted: ModelReference) -> Buffer:
    return decode_difference(code, before, wanted.manifest)


def _apply_steps(code: bytes, steps: Sequence[int], before: bytes, wanted: ModelReference) -> Buffer:
    """One version after the other, up to the wanted one; only the last one's digest is known, and proves them all."""
    if len(steps) > MOST_STEPS:
        raise CodecError("a difference has too many steps", expected=f"up to {MOST_STEPS}", got=len(steps))
    if sum(steps) != len(code):
        raise CodecError("the steps of a difference do not fill it", expected=f"{len(code)} bytes", got=sum(steps))
    content: Buffer = before
    start = 0
    for size in steps:
        content = apply_difference(code[start : start + size], content, wanted.manifest)
        start += size
    return content


def _check_header(header: coordinator_pb2.ModelHeader, wanted: ModelReference) -> None:
    if (header.job_id, header.model_version) != (wanted.job_id, wanted.model_version):
        raise RemoteProtocolError(
            "the coordinator sends the wrong model version",
            expected=f"version {wanted.model_version} of job {wanted.job_id!r}",
            got=f"version {header.model_version} of job {header.job_id!r}",
        )
    if manifest_from_proto(header.manifest) != wanted.manifest:
        raise RemoteProtocolError("the coordinator sends a model of another form", expected="the announced manifest")


async def _next(parts: _Parts, *kinds: str) -> coordinator_pb2.GetParametersResponse:
    try:
        part = await anext(parts)
    except StopAsyncIteration:
        raise StreamError("the download is truncated", expected=" or ".join(kinds), got="the end") from None
    if part.WhichOneof("part") not in kinds:
        raise StreamError(
            "a part of the download is out of turn", expected=" or ".join(kinds), got=part.WhichOneof("part")
        )
    return part
