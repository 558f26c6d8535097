"""The global model: downloaded into its own arrays, checked against the digest that the site was told, and kept."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import structlog

from client_sdk.trainer import Array
from fl_core.codec.lossy_difference import MOST_STEPS, apply_difference
from fl_core.codec.model_difference import decode_difference
from fl_core.codec.packing import Buffer
from fl_core.codec.tensors import TensorManifest
from fl_core.errors import CodecError, RemoteProtocolError, StreamError
from fl_core.transport.errors import rpc_errors
from fl_core.wire.chunks import ChunkReader, ChunkWriter, TensorReader, tensor_bytes
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
    """Gets models from the coordinator and keeps the last one, which most tasks ask for again."""

    def __init__(self) -> None:
        self._model: Model | None = None

    async def get(self, coordinator: "CoordinatorServiceAsyncStub", wanted: ModelReference, timeout_s: float) -> Model:
        """Download a model, unless it is here.

        Raises:
            RemoteProtocolError: the coordinator offers another model than the one it named.
            StreamError: the download is truncated, too large, or has another digest.
            PeerLost: the connection broke.
        """
        if self._model is not None and self._model.reference.model_digest == wanted.model_digest:
            return Model(wanted, self._model.tensors)
        base, self._model = self._base_for(wanted), None
        if base is not None:
            try:
                self._model = await _download(coordinator, wanted, timeout_s, base)
                return self._model
            except (CodecError, StreamError) as error:
                # A difference saves bytes and nothing else: the whole model is right whatever was wrong with it.
                log.warning("difference_not_used", error=str(error))
        self._model = await _download(coordinator, wanted, timeout_s, None)
        return self._model

    def _base_for(self, wanted: ModelReference) -> Model | None:
        """The model that is here, when the wanted one may be a later version of it."""
        held = self._model
        if held is None or (held.reference.job_id, held.manifest) != (wanted.job_id, wanted.manifest):
            return None
        # The old model stays in memory meanwhile, which a large one is not worth.
        return held if held.manifest.nbytes <= LARGEST_DIFFERENCE else None


async def _download(
    coordinator: "CoordinatorServiceAsyncStub", wanted: ModelReference, timeout_s: float, base: Model | None
) -> Model:
    request = coordinator_pb2.GetParametersRequest(
        job_id=wanted.job_id,
        model_version=wanted.model_version,
        have_digest=b"" if base is None else base.reference.model_digest,
        accepts_difference=base is not None,
    )
    call = coordinator.GetParameters(request, timeout=timeout_s)
    try:
        with rpc_errors():
            return await _read(call.__aiter__(), wanted, base)
    finally:
        call.cancel()


async def _read(parts: _Parts, wanted: ModelReference, base: Model | None) -> Model:
    header = (await _next(parts, "header")).header
    _check_header(header, wanted)
    if header.base_digest:
        reader, tensors = await _read_difference(parts, header, wanted, base)
    else:
        reader = TensorReader(wanted.manifest, header.stream, max_bytes=wanted.manifest.nbytes)
        tensors = reader.finish(await _feed(parts, reader.feed))
    # Reads the end, because a cancelled call is an error in the service's log.
    await anext(parts, None)
    if reader.model_digest != wanted.model_digest:
        raise StreamError(
            "the model is not the one that was announced",
            expected=f"digest {wanted.model_digest.hex()[:16]}",
            got=f"digest {reader.model_digest.hex()[:16]}",
        )
    return Model(wanted, dict(tensors))


async def _feed(parts: _Parts, feed: Callable[[tensors_pb2.Chunk], object]) -> tensors_pb2.StreamTrailer:
    while (part := await _next(parts, "chunk", "trailer")).WhichOneof("part") == "chunk":
        feed(part.chunk)
    return part.trailer


async def _read_difference(
    parts: _Parts, header: coordinator_pb2.ModelHeader, wanted: ModelReference, base: Model | None
) -> tuple[TensorReader, dict[str, Array]]:
    if base is None or header.base_digest != base.reference.model_digest:
        raise StreamError("the coordinator sends the difference to a model that is not here", expected="the model")
    stream = ChunkReader(header.stream, max_bytes=wanted.manifest.nbytes)
    code = bytearray()
    stream.finish(await _feed(parts, lambda chunk: code.extend(stream.feed(chunk))))
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
