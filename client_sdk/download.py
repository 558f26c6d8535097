"""The global model: downloaded into its own arrays, checked against the digest that the site was told, and kept."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from client_sdk.trainer import Array
from fl_core.codec.tensors import TensorManifest
from fl_core.errors import RemoteProtocolError, StreamError
from fl_core.transport.errors import rpc_errors
from fl_core.wire.chunks import TensorReader
from fl_core.wire.convert import manifest_from_proto
from fl_core.wire.v1 import coordinator_pb2

if TYPE_CHECKING:
    from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceAsyncStub

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
        # Let go of the old model first: two models need not be in memory at once.
        self._model = None
        request = coordinator_pb2.GetParametersRequest(job_id=wanted.job_id, model_version=wanted.model_version)
        call = coordinator.GetParameters(request, timeout=timeout_s)
        try:
            with rpc_errors():
                self._model = await _read(call.__aiter__(), wanted)
        finally:
            call.cancel()
        return self._model


async def _read(parts: _Parts, wanted: ModelReference) -> Model:
    header = await _next(parts, "header")
    _check_header(header.header, wanted)
    reader = TensorReader(wanted.manifest, header.header.stream, max_bytes=wanted.manifest.nbytes)
    while (part := await _next(parts, "chunk", "trailer")).WhichOneof("part") == "chunk":
        reader.feed(part.chunk)
    tensors = reader.finish(part.trailer)
    # Reads the end, because a cancelled call is an error in the service's log.
    await anext(parts, None)
    if reader.model_digest != wanted.model_digest:
        raise StreamError(
            "the model is not the one that was announced",
            expected=f"digest {wanted.model_digest.hex()[:16]}",
            got=f"digest {reader.model_digest.hex()[:16]}",
        )
    return Model(wanted, dict(tensors))


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
