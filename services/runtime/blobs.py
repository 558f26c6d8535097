"""Blobs: large values by name, in a folder or any store that fsspec knows, each checked by its SHA-256."""

import hashlib
import os
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from io import UnsupportedOperation
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fl_core.errors import ConfigError, NotFound, StorageError
from services.runtime.offload import offload

READ_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_PARTIAL = ".partial"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What was stored.

    Args:
        name: name of the blob.
        size: bytes.
        sha256: 32 bytes.
    """

    name: str
    size: int
    sha256: bytes


class BlobStore:
    """Blobs below one URL. A blob appears whole or not at all, and is never changed in place.

    Args:
        url: a folder (`/var/lib/tacit/blobs`) or an fsspec URL (`s3://bucket/prefix`, `memory://name`).

    Raises:
        ConfigError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, root = fsspec.core.url_to_fs(url)
            self._files.makedirs(root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(
                "blob_url cannot be used",
                got=f"{url}: {type(error).__name__}",
                fix="give a folder or an fsspec URL whose driver is installed",
            ) from error
        self._root = str(root).rstrip("/")

    async def put(self, name: str, chunks: AsyncIterable[bytes], *, sha256: bytes | None = None) -> BlobInfo:
        """Store a blob from its chunks; memory stays flat.

        Args:
            name: letters, digits, `.`, `_`, `-`, and `/` between parts. An existing blob is replaced.
            chunks: the content, in order.
            sha256: 32 bytes that the content must have.

        Raises:
            StorageError: the store failed, or the content has another digest; nothing is stored then.
        """
        target = self._path(name)
        partial = f"{target}.{uuid4().hex}{_PARTIAL}"
        digest, size = hashlib.sha256(), 0
        await self._run(self._files.makedirs, target.rsplit("/", 1)[0], exist_ok=True)
        stream = await self._run(self._files.open, partial, "wb")
        try:
            async for chunk in chunks:
                await self._run(_append, stream, digest, chunk)
                size += len(chunk)
            await self._run(_close_durably, stream)
            _check_digest(name, sha256, digest.digest())
            await self._run(self._publish, partial, target)
        except BaseException:
            await self._run(self._discard, stream, partial)
            raise
        return BlobInfo(name, size, digest.digest())

    async def put_bytes(self, name: str, content: bytes, *, sha256: bytes | None = None) -> BlobInfo:
        """Store a blob that is in memory. Errors as `put`."""

        async def chunks() -> AsyncIterator[bytes]:
            view = memoryview(content)
            for start in range(0, len(view), READ_BYTES):
                yield bytes(view[start : start + READ_BYTES])

        return await self.put(name, chunks(), sha256=sha256)

    async def get(self, name: str, *, sha256: bytes | None = None) -> AsyncIterator[bytes]:
        """Read a blob in chunks of `READ_BYTES`.

        The digest is known only at the end: do not act on the content before the iteration has ended.

        Args:
            name: name of the blob.
            sha256: 32 bytes that the content must have.

        Raises:
            NotFound: there is no such blob.
            StorageError: the store failed, or the content has another digest.
        """
        digest = hashlib.sha256()
        stream = await self._run(self._open, name)
        try:
            while chunk := await self._run(stream.read, READ_BYTES):
                await offload(digest.update, chunk)
                yield chunk
        finally:
            await self._run(stream.close)
        _check_digest(name, sha256, digest.digest())

    async def get_bytes(self, name: str, *, sha256: bytes | None = None) -> bytes:
        """Read a whole blob. Errors as `get`."""
        return b"".join([chunk async for chunk in self.get(name, sha256=sha256)])

    async def exists(self, name: str) -> bool:
        """Whether there is a blob of this name."""
        return bool(await self._run(self._files.isfile, self._path(name)))

    async def delete(self, name: str) -> None:
        """Remove a blob; one that does not exist is no error."""
        await self._run(self._remove, self._path(name))

    async def names(self, prefix: str = "") -> list[str]:
        """Names of all blobs that begin with `prefix`, sorted."""
        found = await self._run(self._files.find, self._root)
        start = len(self._root) + 1
        names = (str(path)[start:] for path in found if not str(path).endswith(_PARTIAL))
        return sorted(name for name in names if name.startswith(prefix))

    async def sweep(self, older_than_s: float) -> int:
        """Remove what is left of blobs whose writer died before they were whole; how many that were.

        Args:
            older_than_s: seconds since they were last written; younger ones may still be written by somebody.
        """
        left = await self._run(self._left_over, older_than_s)
        for path in left:
            await self._run(self._remove, path)
        return len(left)

    def _left_over(self, older_than_s: float) -> list[str]:
        before = time.time() - older_than_s
        partial = (str(path) for path in self._files.find(self._root) if str(path).endswith(_PARTIAL))
        return [path for path in partial if self._files.modified(path).timestamp() <= before]

    def local_path(self, name: str) -> Path | None:
        """Where a blob lies when the store is a local folder, for mapping it into memory; else None."""
        return Path(self._path(name)) if isinstance(self._files, LocalFileSystem) else None

    def _path(self, name: str) -> str:
        if not _NAME.fullmatch(name) or name.endswith(_PARTIAL):
            raise StorageError(
                "the name of a blob is not valid",
                expected="letters, digits, '.', '_', '-' and '/'",
                got=repr(name[:100]),
            )
        return f"{self._root}/{name}"

    def _open(self, name: str) -> Any:
        try:
            return self._files.open(self._path(name), "rb")
        except FileNotFoundError as error:
            raise NotFound("there is no such blob", got=name) from error

    def _publish(self, partial: str, target: str) -> None:
        if not isinstance(self._files, LocalFileSystem):
            self._files.mv(partial, target)
            return
        os.replace(partial, target)  # noqa: PTH105 - the paths are strings of fsspec
        _sync_folder(Path(target).parent)

    def _discard(self, stream: Any, partial: str) -> None:
        stream.close()
        self._remove(partial)

    def _remove(self, path: str) -> None:
        if self._files.exists(path):
            self._files.rm_file(path)

    async def _run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        try:
            return await offload(work, *args, **kwargs)
        except OSError as error:
            raise StorageError("the blob store failed", got=error.strerror or type(error).__name__) from error


def _append(stream: Any, digest: "hashlib._Hash", chunk: bytes) -> None:
    stream.write(chunk)
    digest.update(chunk)


def _close_durably(stream: Any) -> None:
    stream.flush()
    # Only files of this machine have a descriptor; other stores are durable when closed.
    with suppress(AttributeError, UnsupportedOperation):
        os.fsync(stream.fileno())
    stream.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_digest(name: str, expected: bytes | None, got: bytes) -> None:
    if expected is not None and expected != got:
        raise StorageError(
            f"the content of blob {name} has another digest than announced",
            expected=expected.hex(),
            got=got.hex(),
        )
