"""Differences of stored models: for the site that has the version before, once for a cohort, and only where smaller."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_core.codec.model_difference import decode_difference
from fl_core.codec.tensors import Tensors, manifest_of
from fl_core.rounds.plan import JobId
from fl_core.wire.chunks import tensor_bytes
from services.coordinator.differences import ModelDifferences
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord
from services.runtime.blobs import BlobStore

DRAW = np.random.default_rng(1)
FIRST: Tensors = {"w": DRAW.standard_normal(5000).astype(np.float32)}
SECOND: Tensors = {"w": FIRST["w"] + np.float32(1e-4)}
OTHER: Tensors = {"w": np.frombuffer(DRAW.bytes(20_000), np.int32)}
MANIFEST = manifest_of(FIRST)


class Versions:
    def __init__(self, *records: ModelRecord) -> None:
        self.records = {record.version: record for record in records}
        self.asked = 0

    async def find(self, job_id: str, version: int) -> ModelRecord:
        self.asked += 1
        return self.records[version]


async def stored(models: ModelStore, version: int, tensors: Tensors) -> ModelRecord:
    blob = await models.store(f"v{version}", manifest_of(tensors), tensors)
    return ModelRecord(JobId("j"), version, blob.model_digest, blob.blob_name, blob.total_bytes, 0.0)


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    models = ModelStore(BlobStore(str(tmp_path / "blobs")))
    first, second = await stored(models, 1, FIRST), await stored(models, 2, SECOND)
    versions = Versions(first, second, await stored(models, 3, OTHER))
    return models, versions, ModelDifferences(versions, models, 1 << 20)  # type: ignore[arg-type]


async def test_the_difference_gives_the_next_version(world: Any) -> None:
    _, versions, differences = world
    header, *chunks, trailer = await differences.find(versions.records[2], versions.records[1].model_digest)
    assert header.header.base_digest == versions.records[1].model_digest
    code = b"".join(part.chunk.data for part in chunks)
    assert len(code) == header.header.stream.total_bytes < MANIFEST.nbytes
    assert trailer.trailer.chunk_count == len(chunks)
    before, after = (b"".join(tensor_bytes(tensors, MANIFEST)) for tensors in (FIRST, SECOND))
    assert decode_difference(code, before, MANIFEST).tobytes() == after
    again = await differences.find(versions.records[2], versions.records[1].model_digest)
    assert again[0] is header, "made once"


async def test_whoever_has_something_else_gets_the_whole(world: Any) -> None:
    models, versions, differences = world
    assert await differences.find(versions.records[2], bytes(32)) is None
    assert await differences.find(versions.records[2], versions.records[2].model_digest) is None
    assert await differences.find(versions.records[1], versions.records[1].model_digest) is None, "it has no base"
    assert await differences.find(versions.records[3], versions.records[2].model_digest) is None, "another form"
    small = ModelDifferences(versions, models, MANIFEST.nbytes)
    assert await small.find(versions.records[2], versions.records[1].model_digest) is None, "beyond the budget"


async def test_a_base_whose_blob_is_gone_is_no_reason_to_fail(world: Any) -> None:
    models, versions, differences = world
    await models.discard("v1")
    assert await differences.find(versions.records[2], versions.records[1].model_digest) is None
