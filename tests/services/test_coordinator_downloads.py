"""A cohort that asks for its model at once: one reading for all, bounded memory, no memory of failures."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_core.codec.tensors import manifest_of
from fl_core.errors import StorageError
from fl_core.rounds.plan import JobId
from fl_core.wire.chunks import TensorReader
from services.coordinator.downloads import ModelDownloads
from services.coordinator.models import ModelStore, StoredModel
from services.coordinator.records import ModelRecord
from services.runtime.blobs import BlobStore

MODEL = {"w": np.arange(100_000, dtype=np.float32)}
SIZE = MODEL["w"].nbytes


class CountedStore(ModelStore):
    """A store that says how often it was opened, and fails when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(BlobStore(str(folder)))
        self.opened = 0
        self.broken = False

    async def open(self, blob_name: str, model_digest: bytes | None = None) -> Any:
        self.opened += 1
        if self.broken:
            raise StorageError("the blob store failed")
        return await super().open(blob_name, model_digest)


class CountedJobs:
    """Knows one version, and says how often it was asked."""

    def __init__(self, record: ModelRecord) -> None:
        self.record = record
        self.asked = 0

    async def model(self, job_id: str, version: int = 0) -> ModelRecord:
        self.asked += 1
        return self.record


def record_of(stored: StoredModel, version: int = 1) -> ModelRecord:
    return ModelRecord(JobId("job"), version, stored.model_digest, stored.blob_name, stored.total_bytes, 0.0)


async def downloads(folder: Path, budget_bytes: int) -> tuple[ModelDownloads, CountedStore, ModelRecord]:
    store = CountedStore(folder)
    record = record_of(await store.store("models/job/v1.safetensors", manifest_of(MODEL), MODEL))
    jobs: Any = CountedJobs(record)
    return ModelDownloads(jobs, store, budget_bytes), store, record


async def read(found: ModelDownloads, record: ModelRecord) -> np.ndarray:
    parts = [part async for part in found.stream(record)]
    reader = TensorReader(manifest_of(MODEL), parts[0].header.stream, max_bytes=SIZE)
    for part in parts[1:-1]:
        reader.feed(part.chunk)
    tensors = reader.finish(parts[-1].trailer)
    assert reader.model_digest == record.model_digest == parts[0].header.model_digest
    return tensors["w"]


async def test_a_cohort_reads_the_store_once(tmp_path: Path) -> None:
    found, store, record = await downloads(tmp_path, SIZE)
    models = await asyncio.gather(*(read(found, record) for _ in range(20)))
    assert all((model == MODEL["w"]).all() for model in models)
    assert store.opened == 1


async def test_a_model_beyond_the_budget_is_read_for_each(tmp_path: Path) -> None:
    found, store, record = await downloads(tmp_path, SIZE - 1)
    assert ((await read(found, record)) == (await read(found, record))).all()
    assert store.opened == 2


async def test_the_model_that_was_asked_for_last_stays(tmp_path: Path) -> None:
    found, store, first = await downloads(tmp_path, SIZE)
    second = record_of(await store.store("models/job/v2.safetensors", manifest_of(MODEL), MODEL), version=2)
    for record in (first, second, second, first):
        await read(found, record)
    assert store.opened == 3


async def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    found, store, record = await downloads(tmp_path, SIZE)
    store.broken = True
    with pytest.raises(StorageError):
        await read(found, record)
    store.broken = False
    assert ((await read(found, record)) == MODEL["w"]).all()


async def test_who_hangs_up_takes_nothing_from_the_others(tmp_path: Path) -> None:
    found, store, record = await downloads(tmp_path, SIZE)
    first = asyncio.create_task(read(found, record))
    other = asyncio.create_task(read(found, record))
    await asyncio.sleep(0)
    first.cancel()
    assert ((await other) == MODEL["w"]).all()
    assert store.opened == 1


async def test_a_version_is_looked_up_once_and_the_newest_each_time(tmp_path: Path) -> None:
    found, _, record = await downloads(tmp_path, SIZE)
    jobs: Any = found._jobs
    for _ in range(3):
        assert await found.find("job", 1) == record
    assert jobs.asked == 1
    for _ in range(3):
        assert await found.find("job", 0) == record
    assert jobs.asked == 4
