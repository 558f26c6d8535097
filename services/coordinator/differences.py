"""Models as differences to a version that a site has: made once for a cohort, sent where smaller.

A version whose format is a difference was stored with it: that is sent, and to a site that missed some rounds those of
all versions that it lacks. Of any other version the exact difference to the one before is made.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import aclosing

from fl_core.codec.lossy_difference import MOST_STEPS
from fl_core.codec.model_difference import encode_difference
from fl_core.codec.tensors import TensorManifest
from fl_core.errors import TacitError
from fl_core.wire.chunks import DEFAULT_CHUNK_BYTES, ChunkWriter
from fl_core.wire.convert import manifest_to_proto
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.downloads import ModelDownloads
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord
from services.coordinator.released import load_difference
from services.runtime.offload import offload

WORTH = 0.95
"""A difference that is not smaller than this part of the model is not sent."""
KEPT = 4
"""Differences that stay in memory."""

Messages = list[pb.GetParametersResponse]


class ModelDifferences:
    """What `GetParameters` answers to a site that has an older version.

    Args:
        downloads: where versions are looked up.
        models: where they lie.
        budget_bytes: of the model, or of both that are in memory while they are compared; larger ones are sent in full.
    """

    def __init__(self, downloads: ModelDownloads, models: ModelStore, budget_bytes: int) -> None:
        self._downloads = downloads
        self._models = models
        self._budget_bytes = budget_bytes
        self._made: OrderedDict[tuple[str, int], asyncio.Task[Messages | None]] = OrderedDict()

    async def find(self, model: ModelRecord, have_digest: bytes) -> Messages | None:
        """The messages of a difference to the model with this digest; None when the whole model must be sent."""
        if model.total_bytes > self._budget_bytes:
            return None
        base = await self._base(model, have_digest)
        if base is None:
            return None
        key = (model.blob_name, base.version)
        if key not in self._made:
            self._made[key] = asyncio.create_task(self._make(model, base))
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        # A site that hangs up must not take the work from the others.
        return await asyncio.shield(self._made[key])

    async def _base(self, model: ModelRecord, have_digest: bytes) -> ModelRecord | None:
        for version in range(model.version - 1, max(0, model.version - 1 - MOST_STEPS), -1):
            base = await self._downloads.find(model.job_id, version)
            if base.model_digest == have_digest:
                return base
        return None

    async def _make(self, model: ModelRecord, base: ModelRecord) -> Messages | None:
        try:
            steps = await self._steps(model, base)
            if steps:
                return _messages(model, base, await self._models.manifest(model.blob_name), b"".join(steps), steps)
            if 2 * model.total_bytes > self._budget_bytes or base.version != model.version - 1:
                return None
            manifest, after = await self._read(model)
            other, before = await self._read(base)
        except TacitError:
            # The whole model says by itself what is wrong with it.
            return None
        if other != manifest:
            return None
        code = await offload(encode_difference, after, before, manifest)
        return _messages(model, base, manifest, code)

    async def _steps(self, model: ModelRecord, base: ModelRecord) -> Sequence[bytes]:
        """The codes that were stored with the versions after `base`; none when one has none."""
        steps: list[bytes] = []
        for version in range(base.version + 1, model.version + 1):
            code = await load_difference(self._models, await self._downloads.find(model.job_id, version))
            if code is None:
                return ()
            steps.append(code)
        return steps

    async def _read(self, model: ModelRecord) -> tuple[TensorManifest, bytes]:
        reader = await self._models.open(model.blob_name, model.model_digest)
        async with aclosing(reader.chunks(DEFAULT_CHUNK_BYTES)) as chunks:
            return reader.manifest, b"".join([chunk.data async for chunk in chunks])


def _messages(
    model: ModelRecord, base: ModelRecord, manifest: TensorManifest, code: bytes, steps: Sequence[bytes] = ()
) -> Messages | None:
    if len(code) > WORTH * model.total_bytes:
        return None
    writer = ChunkWriter(code, chunk_bytes=DEFAULT_CHUNK_BYTES)
    header = pb.ModelHeader(
        job_id=model.job_id,
        model_version=model.version,
        model_digest=model.model_digest,
        manifest=manifest_to_proto(manifest),
        stream=writer.header,
        base_digest=base.model_digest,
        step_bytes=[len(step) for step in steps],
    )
    messages = [pb.GetParametersResponse(header=header)]
    messages += [pb.GetParametersResponse(chunk=chunk) for chunk in writer.chunks()]
    return [*messages, pb.GetParametersResponse(trailer=writer.trailer)]
