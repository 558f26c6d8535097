"""Differences of stored models: for the site that has the version before, once for a cohort, and only where smaller."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_core.codec.lossy_difference import apply_difference
from fl_core.codec.model_difference import decode_difference
from fl_core.codec.model_format import ModelFormat
from fl_core.codec.tensors import Tensors, manifest_of
from fl_core.rounds.plan import JobId
from fl_core.wire.chunks import tensor_bytes
from services.coordinator.differences import ModelDifferences
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord
from services.coordinator.released import ReleasedModel
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


async def lossy(models: ModelStore, versions: Versions, base: int, tensors: Tensors) -> ModelRecord:
    """A version as the coordinator makes it of the one before: rounded, and stored with its difference."""
    before = dict(await models.load(versions.records[base].blob_name))
    released = ReleasedModel(ModelFormat.INT8_DIFFERENCE, np.zeros(MANIFEST.size, np.float32))
    made = released.take(np.asarray(before["w"]), np.asarray(tensors["w"]), slice(0, MANIFEST.size))
    record = await stored(models, base + 1, {"w": made})
    await released.store(models, record.blob_name)
    versions.records[base + 1] = record
    return record


@pytest.fixture
async def chain(tmp_path: Path) -> Any:
    models = ModelStore(BlobStore(str(tmp_path / "blobs")))
    versions = Versions(await stored(models, 1, FIRST))
    for base in (1, 2, 3, 4, 5):
        await lossy(models, versions, base, {"w": FIRST["w"] + np.float32(0.01 * base) * SECOND["w"]})
    return models, versions, ModelDifferences(versions, models, 1 << 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("missed", [1, 2, 3])
async def test_a_lossy_version_comes_as_the_difference_that_made_it_and_those_before(chain: Any, missed: int) -> None:
    models, versions, differences = chain
    newest, held = versions.records[6], versions.records[6 - missed]
    header, *chunks, _ = await differences.find(newest, held.model_digest)
    code = b"".join(part.chunk.data for part in chunks)
    assert len(header.header.step_bytes) == missed
    assert sum(header.header.step_bytes) == len(code) < 0.28 * missed * MANIFEST.nbytes
    content = b"".join(tensor_bytes(await models.load(held.blob_name), MANIFEST))
    for size in header.header.step_bytes:
        content, code = apply_difference(code[:size], content, MANIFEST).tobytes(), code[size:]
    assert content == b"".join(tensor_bytes(await models.load(newest.blob_name), MANIFEST))


async def test_who_missed_so_much_that_it_is_no_smaller_gets_the_whole(chain: Any) -> None:
    _, versions, differences = chain
    assert await differences.find(versions.records[6], versions.records[1].model_digest) is None


async def test_without_the_stored_difference_the_exact_one_is_made_or_the_whole_sent(chain: Any) -> None:
    models, versions, differences = chain
    await models.discard("v6-difference.safetensors")
    header, *_ = await differences.find(versions.records[6], versions.records[5].model_digest)
    assert list(header.header.step_bytes) == []
    assert await differences.find(versions.records[6], versions.records[4].model_digest) is None
