"""Models as differences to the version before, for sites that have it: made once for a cohort, sent where smaller."""

import asyncio
from collections import OrderedDict
from contextlib import aclosing

from fl_core.codec.model_difference import encode_difference
from fl_core.codec.tensors import TensorManifest
from fl_core.errors import TacitError
from fl_core.wire.chunks import DEFAULT_CHUNK_BYTES, ChunkWriter
from fl_core.wire.convert import manifest_to_proto
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.downloads import ModelDownloads
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord
from services.runtime.offload import offload

WORTH = 0.95
"""A difference that is not smaller than this part of the model is not sent."""
KEPT = 4
"""Differences that stay in memory."""

Messages = list[pb.GetParametersResponse]


class ModelDifferences:
    """What `GetParameters` answers to a site that has the version before.

    Args:
        downloads: where versions are looked up.
        models: where they lie.
        budget_bytes: of two models that are in memory while they are compared; larger ones are sent in full.
    """

    def __init__(self, downloads: ModelDownloads, models: ModelStore, budget_bytes: int) -> None:
        self._downloads = downloads
        self._models = models
        self._budget_bytes = budget_bytes
        self._made: OrderedDict[str, asyncio.Task[Messages | None]] = OrderedDict()

    async def find(self, model: ModelRecord, have_digest: bytes) -> Messages | None:
        """The messages of a difference to the model with this digest; None when the whole model must be sent."""
        if 2 * model.total_bytes > self._budget_bytes or model.version <= 1:
            return None
        base = await self._downloads.find(model.job_id, model.version - 1)
        if base.model_digest != have_digest:
            return None
        name = model.blob_name
        if name not in self._made:
            self._made[name] = asyncio.create_task(self._make(model, base))
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        # A site that hangs up must not take the work from the others.
        return await asyncio.shield(self._made[name])

    async def _make(self, model: ModelRecord, base: ModelRecord) -> Messages | None:
        try:
            manifest, after = await self._read(model)
            other, before = await self._read(base)
        except TacitError:
            # The whole model says by itself what is wrong with it.
            return None
        if other != manifest:
            return None
        code = await offload(encode_difference, after, before, manifest)
        if len(code) > WORTH * len(after):
            return None
        writer = ChunkWriter(code, chunk_bytes=DEFAULT_CHUNK_BYTES)
        header = pb.ModelHeader(
            job_id=model.job_id,
            model_version=model.version,
            model_digest=model.model_digest,
            manifest=manifest_to_proto(manifest),
            stream=writer.header,
            base_digest=base.model_digest,
        )
        messages = [pb.GetParametersResponse(header=header)]
        messages += [pb.GetParametersResponse(chunk=chunk) for chunk in writer.chunks()]
        return [*messages, pb.GetParametersResponse(trailer=writer.trailer)]

    async def _read(self, model: ModelRecord) -> tuple[TensorManifest, bytes]:
        reader = await self._models.open(model.blob_name, model.model_digest)
        async with aclosing(reader.chunks(DEFAULT_CHUNK_BYTES)) as chunks:
            return reader.manifest, b"".join([chunk.data async for chunk in chunks])
