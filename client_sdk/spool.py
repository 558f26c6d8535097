"""The update that was trained last, on the disk of the site: a site that restarts does not train again.

An update tells about the data that it came from, so it is never on the disk in the clear: it is sealed under a key
that only the holder of the site's private key can derive. The file appears whole or not at all, and goes when its
round is over. One that does not open, for whatever reason, is no update: the site trains again.

The first line says the task and the sizes, in the clear and authenticated with every block. The facts follow, then the
update in blocks of `BLOCK_BYTES`. Each is sealed under a key of its own for its place, so that what was cut off, moved
or mixed does not open.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Self

import numpy as np
import structlog

from client_sdk.trained import Task, TrainedUpdate
from fl_core.crypto import labels
from fl_core.crypto.aead import KEY_BYTES, TAG_BYTES, open_sealed, seal
from fl_core.crypto.agreement import derive_key
from fl_core.errors import CryptoError
from fl_core.privacy.events import event_from_json

log = structlog.get_logger(__name__)

SPOOL_NAME = "trained.sealed"
BLOCK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 16
MAX_FACTS_BYTES = 1 << 20
SALT_BYTES = 32
COORDINATE_BYTES = 4


@dataclass(frozen=True, slots=True)
class UpdateSpool:
    """At most one trained update, in the state folder of the site.

    Args:
        folder: of this site alone.
        key: 32 bytes that nobody but this site can derive.
        worth_s: seconds that training must have taken for its update to be kept; less is sooner done again.
    """

    folder: Path
    key: bytes = field(repr=False)
    worth_s: float = 1.0

    @property
    def path(self) -> Path:
        """Where the update lies, if there is one."""
        return self.folder / SPOOL_NAME

    def task(self) -> Task | None:
        """The task that the update on the disk answers to, as its first line says; `load` proves it."""
        try:
            with self.path.open("rb") as file:
                return _Header.read(file).task
        except (OSError, CryptoError):
            return None

    def save(self, task: Task, trained: TrainedUpdate) -> None:
        """Keep an update in the place of the one before. A disk that refuses costs a training, not the round."""
        if trained.seconds < self.worth_s:
            return
        fresh = self.path.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for part in _sealed(self.key, task, trained):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            log.warning("update_not_kept", error=error.strerror)

    def load(self, task: Task) -> TrainedUpdate | None:
        """The update that answers to `task`, if it is on the disk, whole and ours."""
        try:
            with self.path.open("rb") as file:
                header = _Header.read(file)
                return _opened(self.key, header, file) if header.task == task else None
        except FileNotFoundError:
            return None
        except (OSError, CryptoError) as error:
            log.warning("update_not_taken_up", error=str(error))
            return None

    def forget(self) -> None:
        """Remove the update."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("update_not_removed", error=error.strerror)


@dataclass(frozen=True, slots=True)
class _Header:
    """The first line of the file."""

    task: Task
    salt: bytes
    facts_bytes: int
    update_bytes: int

    @classmethod
    def read(cls, file: IO[bytes]) -> Self:
        """Read the first line, and check that the file is as long as it says.

        Raises:
            CryptoError: it is damaged.
        """
        try:
            header = cls._parse(json.loads(file.readline(MAX_HEADER_BYTES)))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CryptoError("the first line of a kept update cannot be read") from error
        # So a damaged line cannot ask for memory that the file does not fill.
        size = os.fstat(file.fileno()).st_size
        if size != header.file_bytes or not 0 <= header.facts_bytes <= MAX_FACTS_BYTES:
            raise CryptoError("a kept update has the wrong length", expected=f"{header.file_bytes} bytes", got=size)
        return header

    @classmethod
    def _parse(cls, line: Any) -> Self:
        task = Task(str(line["job_id"]), int(line["round_id"]), bytes.fromhex(line["model_digest"]))
        return cls(task, bytes.fromhex(line["salt"]), int(line["facts_bytes"]), int(line["update_bytes"]))

    @property
    def line(self) -> bytes:
        """As it stands in the file, and as every block authenticates it."""
        task = {**self.task._asdict(), "model_digest": self.task.model_digest.hex()}
        sizes = {"facts_bytes": self.facts_bytes, "update_bytes": self.update_bytes}
        return json.dumps({**task, "salt": self.salt.hex(), **sizes}).encode() + b"\n"

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        blocks = 1 + -(-self.update_bytes // BLOCK_BYTES)
        return len(self.line) + self.facts_bytes + self.update_bytes + blocks * TAG_BYTES

    def pieces(self) -> Iterator[range]:
        """The bytes of the update that one block holds each."""
        for start in range(0, self.update_bytes, BLOCK_BYTES):
            yield range(start, min(start + BLOCK_BYTES, self.update_bytes))

    def key_of(self, key: bytes, block: int) -> bytes:
        """The key that seals one block of this file and nothing else: the salt is of this file alone."""
        info = labels.encode_fields(labels.SPOOL, block)
        return derive_key(key, salt=self.salt, info=info, length=KEY_BYTES)


def _sealed(key: bytes, task: Task, trained: TrainedUpdate) -> Iterator[bytes]:
    facts = {
        "num_samples": trained.num_samples,
        "metrics": dict(trained.metrics),
        "seconds": trained.seconds,
        "privacy": None if trained.privacy is None else trained.privacy.to_json(),
    }
    body = json.dumps(facts).encode()
    update = np.ascontiguousarray(trained.update, "<f4").view(np.uint8).data
    header = _Header(task, os.urandom(SALT_BYTES), len(body), update.nbytes)
    yield header.line
    yield seal(header.key_of(key, 0), body, header.line)
    for block, piece in enumerate(header.pieces(), start=1):
        yield seal(header.key_of(key, block), bytes(update[piece.start : piece.stop]), header.line)


def _opened(key: bytes, header: _Header, file: IO[bytes]) -> TrainedUpdate:
    facts = json.loads(open_sealed(header.key_of(key, 0), file.read(header.facts_bytes + TAG_BYTES), header.line))
    update = np.empty(header.update_bytes // COORDINATE_BYTES, "<f4")
    target = update.view(np.uint8).data
    for block, piece in enumerate(header.pieces(), start=1):
        sealed = file.read(len(piece) + TAG_BYTES)
        target[piece.start : piece.stop] = open_sealed(header.key_of(key, block), sealed, header.line)
    return TrainedUpdate(
        update.astype(np.float32, copy=False),
        facts["num_samples"],
        MappingProxyType(facts["metrics"]),
        facts["seconds"],
        None if facts["privacy"] is None else event_from_json(facts["privacy"]),
    )
