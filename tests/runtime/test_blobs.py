"""Blobs: whole or not at all, checked by digest, in a folder and in another store."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from settling import settle

from fl_core.errors import ConfigError, NotFound, StorageError
from services.runtime.blobs import READ_BYTES, BlobStore

CONTENT = bytes(range(256)) * (READ_BYTES // 128)
DIGEST = sha256(CONTENT).digest()


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs") if request.param == "folder" else f"memory://{uuid4().hex}")


async def pieces(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def test_what_is_stored_comes_back(store: BlobStore) -> None:
    info = await store.put("models/v1.safetensors", pieces(CONTENT), sha256=DIGEST)
    assert (info.size, info.sha256) == (len(CONTENT), DIGEST)
    chunks = [chunk async for chunk in store.get("models/v1.safetensors", sha256=DIGEST)]
    assert b"".join(chunks) == CONTENT
    assert max(map(len, chunks)) <= READ_BYTES
    assert await store.exists("models/v1.safetensors")
    assert await store.names("models/") == ["models/v1.safetensors"]


async def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    await store.put_bytes("empty", b"")
    assert await store.get_bytes("empty", sha256=sha256(b"").digest()) == b""


async def test_content_of_another_digest_is_not_stored_and_the_old_blob_stays(store: BlobStore) -> None:
    await store.put_bytes("a", b"old")
    with pytest.raises(StorageError, match="has another digest than announced"):
        await store.put("a", pieces(CONTENT), sha256=bytes(32))
    assert await store.get_bytes("a") == b"old"
    assert await store.names() == ["a"]


async def test_a_writer_that_fails_half_way_leaves_nothing(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.put("a", broken())
    assert not await store.exists("a")
    assert await store.names() == []


async def test_a_writer_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path / "blobs"))

    async def slow() -> AsyncIterator[bytes]:
        yield b"half"
        await asyncio.sleep(60)

    task = asyncio.create_task(store.put("a", slow()))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "blobs").rglob("*")) == []


async def test_a_blob_that_rotted_on_disk_is_refused(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path))
    await store.put_bytes("a", b"content")
    path = store.local_path("a")
    assert path is not None
    path.write_bytes(b"cOntent")
    with pytest.raises(StorageError, match="another digest"):
        await store.get_bytes("a", sha256=sha256(b"content").digest())


async def test_a_missing_blob_is_named(store: BlobStore) -> None:
    with pytest.raises(NotFound, match="no such blob: got models/none"):
        await store.get_bytes("models/none")
    await store.delete("models/none")


async def test_a_deleted_blob_is_gone(store: BlobStore) -> None:
    await store.put_bytes("a", b"x")
    await store.delete("a")
    assert not await store.exists("a")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", ".hidden", "a b", "a.partial"])
async def test_a_name_that_leaves_the_store_is_refused(store: BlobStore, name: str) -> None:
    with pytest.raises(StorageError, match="the name of a blob is not valid"):
        await store.put_bytes(name, b"x")


def test_only_a_folder_has_local_paths(tmp_path: Path) -> None:
    assert BlobStore(str(tmp_path)).local_path("a") == tmp_path / "a"
    assert BlobStore("memory://x").local_path("a") is None


@pytest.mark.parametrize("url", ["nonsense://x", "/proc/none/blobs"])
def test_a_store_that_cannot_be_used_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="blob_url cannot be used"):
        BlobStore(url)


async def test_what_a_dead_writer_left_is_swept_and_what_is_written_now_is_not(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path))
    await store.put_bytes("models/v1", b"whole")
    (tmp_path / "models" / f"v2.{'0' * 32}.partial").write_bytes(b"half")
    assert await store.sweep(3600) == 0
    assert await store.sweep(0) == 1
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["v1"]
