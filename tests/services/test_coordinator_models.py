"""Stored models: safetensors in and out, checked as they pass, whatever the pieces are."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from fl_core.codec.tensors import TensorManifest, TensorSpec, manifest_of
from fl_core.errors import CodecError, NotFound, StorageError
from fl_core.wire.chunks import model_digest, tensor_bytes
from services.coordinator.models import ModelStore, TensorInspector
from services.coordinator.tensor_files import decode_header, encode_header
from services.runtime.blobs import BlobStore

MODEL = {
    "half": np.array([1, 2, 3], np.float16),
    "wide": np.linspace(0, 1, 7).reshape(7, 1),
    "empty": np.zeros((2, 0), np.float32),
    "mask": np.array([True, False, True]),
    "count": np.array(5, np.int64),
}
MANIFEST = manifest_of(MODEL)
BYTES = b"".join(bytes(view) for view in tensor_bytes(MODEL, MANIFEST))


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(BlobStore(str(tmp_path / "blobs")))


async def pieces_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 7, 64])
async def test_a_model_comes_back_whatever_the_pieces_were(models: ModelStore, size: int) -> None:
    stored = await models.receive("m", MANIFEST, pieces_of(BYTES, size))
    assert stored.model_digest == model_digest(MODEL, MANIFEST)
    tensors = await models.load("m", stored.model_digest)
    assert await models.manifest("m") == MANIFEST
    for name, array in MODEL.items():
        np.testing.assert_array_equal(tensors[name], array)


async def test_a_changed_blob_is_noticed(models: ModelStore, tmp_path: Path) -> None:
    stored = await models.store("m", MANIFEST, MODEL)
    path = tmp_path / "blobs" / "m"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not what was stored"):
        await models.load("m", stored.model_digest)


async def test_a_blob_that_is_gone_or_no_model_is_an_error(models: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await models.load("nothing")
    for content in (b"", b"\x05\0\0\0\0\0\0\0nojso", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"):
        (tmp_path / "blobs" / "bad").write_bytes(content)
        with pytest.raises(StorageError):
            await models.manifest("bad")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_value_that_is_not_finite_is_found_even_across_pieces(dtype: str, size: int) -> None:
    spoiled = {"good": np.ones(3, dtype), "bad": np.array([1, 2, np.nan, 4], dtype)}
    manifest = manifest_of(spoiled)
    data = b"".join(bytes(view) for view in tensor_bytes(spoiled, manifest))
    inspector = TensorInspector(manifest)

    def feed_all() -> None:
        for start in range(0, len(data), size):
            inspector.feed(data[start : start + size])

    with pytest.raises(CodecError, match="'bad'"):
        feed_all()


async def test_a_boolean_that_is_neither_0_nor_1_is_refused_and_nothing_is_stored(
    models: ModelStore, tmp_path: Path
) -> None:
    manifest = TensorManifest((TensorSpec("mask", "bool", (2,)),))
    with pytest.raises(CodecError, match="'mask'"):
        await models.receive("m", manifest, pieces_of(b"\x01\x02", 1))
    assert list((tmp_path / "blobs").rglob("m*")) == []


def test_a_name_that_the_format_reserves_is_refused() -> None:
    with pytest.raises(CodecError, match="__metadata__"):
        encode_header(TensorManifest((TensorSpec("__metadata__", "float32", (1,)),)), {})


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__" and name.isprintable())
manifests = st.dictionaries(names, st.tuples(st.sampled_from(["float32", "int8", "bool"]), shapes), min_size=1).map(
    lambda specs: TensorManifest(tuple(TensorSpec(name, dtype, shape) for name, (dtype, shape) in specs.items()))
)


@settings(max_examples=50, deadline=None)
@given(manifests)
def test_the_reference_implementation_reads_every_header_that_we_write(manifest: TensorManifest) -> None:
    content = encode_header(manifest, {"format": "tacit"}) + bytes(manifest.nbytes)
    assert {name: array.shape for name, array in load(content).items()} == {
        spec.name: spec.shape for spec in manifest.tensors
    }
    view = memoryview(content)
    position = 0

    def read(count: int) -> bytes:
        nonlocal position
        position += count
        return bytes(view[position - count : position])

    assert decode_header(read) == manifest
