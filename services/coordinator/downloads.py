"""Models on their way to sites: the newest ones stay in memory, so that each is looked up, read and checked once."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from fl_core.wire.chunks import DEFAULT_CHUNK_BYTES
from fl_core.wire.convert import manifest_to_proto
from fl_core.wire.v1 import coordinator_pb2 as pb
from fl_core.wire.v1 import tensors_pb2
from services.coordinator.job_store import JobStore
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord

REMEMBERED_RECORDS = 1024

Parts = AsyncGenerator[pb.GetParametersResponse, None]


class _Kept(NamedTuple):
    total_bytes: int
    reading: "asyncio.Task[list[pb.GetParametersResponse]]"


class ModelDownloads:
    """What `GetParameters` answers with.

    A round's model is asked for by its whole cohort at once. All streams share the messages of one reading; they are
    never changed. A model beyond the budget is read from the store for each stream, with flat memory.

    Args:
        jobs: where versions are looked up.
        models: where they lie.
        budget_bytes: of the models that stay in memory, together; the one that was asked for last stays longest.
    """

    def __init__(self, jobs: JobStore, models: ModelStore, budget_bytes: int) -> None:
        self._jobs = jobs
        self._models = models
        self._budget_bytes = budget_bytes
        self._records: OrderedDict[tuple[str, int], ModelRecord] = OrderedDict()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def find(self, job_id: str, version: int) -> ModelRecord:
        """Look up a version, the newest when it is 0. A version never changes once it is there.

        Raises:
            NotFound: there is no such job or version.
        """
        known = self._records.get((job_id, version)) if version else None
        if known is not None:
            return known
        record = await self._jobs.model(job_id, version)
        self._records[job_id, record.version] = record
        if len(self._records) > REMEMBERED_RECORDS:
            self._records.popitem(last=False)
        return record

    async def stream(self, model: ModelRecord) -> Parts:
        """Header, chunks and trailer of a model.

        Raises:
            NotFound: its blob is gone.
            StorageError: what lies there is not what was stored.
        """
        if model.total_bytes > self._budget_bytes:
            async with aclosing(self._read(model)) as parts:
                async for part in parts:
                    yield part
            return
        # A site that hangs up must not take the reading from the others.
        for part in await asyncio.shield(self._keep(model)):
            yield part

    def _keep(self, model: ModelRecord) -> "asyncio.Task[list[pb.GetParametersResponse]]":
        name = model.blob_name
        if name not in self._kept:
            self._make_room(model.total_bytes)
            reading = asyncio.create_task(self._read_whole(model))
            reading.add_done_callback(lambda done: self._forget_failed(name, done))
            self._kept[name] = _Kept(model.total_bytes, reading)
        self._kept.move_to_end(name)
        return self._kept[name].reading

    def _make_room(self, total_bytes: int) -> None:
        while self._kept and total_bytes + sum(kept.total_bytes for kept in self._kept.values()) > self._budget_bytes:
            self._kept.popitem(last=False)

    def _forget_failed(self, name: str, reading: "asyncio.Task[list[pb.GetParametersResponse]]") -> None:
        # The next one who asks tries again.
        failed = reading.cancelled() or reading.exception() is not None
        if failed and name in self._kept and self._kept[name].reading is reading:
            del self._kept[name]

    async def _read_whole(self, model: ModelRecord) -> list[pb.GetParametersResponse]:
        async with aclosing(self._read(model)) as parts:
            return [part async for part in parts]

    async def _read(self, model: ModelRecord) -> Parts:
        reader = await self._models.open(model.blob_name, model.model_digest)
        header = pb.ModelHeader(
            job_id=model.job_id,
            model_version=model.version,
            model_digest=model.model_digest,
            manifest=manifest_to_proto(reader.manifest),
            stream=tensors_pb2.StreamHeader(total_bytes=reader.manifest.nbytes, chunk_bytes=DEFAULT_CHUNK_BYTES),
        )
        async with aclosing(reader.chunks(DEFAULT_CHUNK_BYTES)) as chunks:
            yield pb.GetParametersResponse(header=header)
            async for chunk in chunks:
                yield pb.GetParametersResponse(chunk=chunk)
        yield pb.GetParametersResponse(trailer=reader.trailer)
