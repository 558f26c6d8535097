"""What a site must remember through a restart: its highest attempt, whom it signed for, and what it unmasked.

Every record is on the disk before the step that depends on it. One process owns the folder at a time.
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fl_core.errors import ConfigError, LocalProtocolError, StaleMessage, StorageError

JOURNAL_NAME = "journal.jsonl"
LOCK_NAME = "lock"

Attempt = tuple[int, int]
"""Round and attempt; later ones are greater."""


class SiteJournal:
    """The journal in `state_dir`, opened for this process alone.

    Raises:
        ConfigError: the folder cannot be written or belongs to another running site.
        StorageError: the journal is damaged.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / JOURNAL_NAME
        self._attempts: dict[str, Attempt] = {}
        self._unmasked: set[str] = set()
        self._survivors: dict[str, set[frozenset[str]]] = {}
        self._lock = _lock(state_dir)
        try:
            self._load()
            self._file = self._rewrite()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back."""
        self._file.close()
        self._lock.close()

    def highest_attempt(self, job_id: str) -> Attempt | None:
        """The latest round and attempt of a job that this site answered to."""
        return self._attempts.get(job_id)

    def record_attempt(self, job_id: str, round_id: int, attempt: int) -> None:
        """Write down that this site answers to an attempt, before it does.

        Raises:
            StaleMessage: the attempt is not later than the latest one.
            StorageError: the disk refused.
        """
        highest = self._attempts.get(job_id)
        if highest is not None and (round_id, attempt) <= highest:
            raise StaleMessage(
                f"an invitation to job {job_id!r} is not new",
                expected=f"later than round {highest[0]}, attempt {highest[1]}",
                got=f"round {round_id}, attempt {attempt}",
                fix="wait for the next attempt",
            )
        self._append({"kind": "attempt", "job_id": job_id, "round_id": round_id, "attempt": attempt})
        self._attempts[job_id] = (round_id, attempt)

    def record_unmasked(self, session_id: bytes) -> None:
        """Write down that this site reveals its shares of a session, before it does.

        Raises:
            LocalProtocolError: it did already. A second answer could expose a site.
            StorageError: the disk refused.
        """
        name = session_id.hex()
        if name in self._unmasked:
            raise LocalProtocolError("shares of this session were revealed before", expected="one unmasking", got=name)
        self._append({"kind": "unmasked", "session_id": name})
        self._unmasked.add(name)

    def survivors_signed(self) -> frozenset[frozenset[str]]:
        """Each set of survivors that this site has signed, as client_ids, of all jobs.

        Whoever submits jobs may give the same model to two of them: their sums can be subtracted as well.
        """
        return frozenset().union(*self._survivors.values())

    def record_survivors(self, job_id: str, survivors: frozenset[str]) -> None:
        """Write down which survivors this site signs, before it does; a set that is known takes no room.

        Raises:
            StorageError: the disk refused.
        """
        if survivors in self._survivors.get(job_id, ()):
            return
        self._append({"kind": "survivors", "job_id": job_id, "survivors": sorted(survivors)})
        self._survivors.setdefault(job_id, set()).add(survivors)

    def _append(self, record: dict[str, object]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except (OSError, ValueError) as error:
            raise StorageError(f"the journal {self._path} cannot be written", got=str(error)) from error

    def _load(self) -> None:
        try:
            lines = self._path.read_text().split("\n")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"the journal {self._path} cannot be read", got=str(error)) from error
        # What follows the last line feed is a record that a crash cut off: nothing was done that depends on it.
        for number, line in enumerate(lines[:-1], start=1):
            self._remember(number, line)

    def _remember(self, number: int, line: str) -> None:
        try:
            record = json.loads(line)
            if record["kind"] == "unmasked":
                self._unmasked.add(bytes.fromhex(record["session_id"]).hex())
            elif record["kind"] == "survivors":
                names = frozenset(str(name) for name in record["survivors"])
                self._survivors.setdefault(str(record["job_id"]), set()).add(names)
            else:
                job_id, attempt = str(record["job_id"]), (int(record["round_id"]), int(record["attempt"]))
                self._attempts[job_id] = max(attempt, self._attempts.get(job_id, attempt))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StorageError(
                f"line {number} of the journal {self._path} is damaged",
                fix="restore the state folder; an empty one makes this site forget which sessions it helped to unmask",
            ) from error

    def _rewrite(self) -> IO[str]:
        """Replace the journal by its shortest form, whole or not at all, and open that for appending."""
        records: list[dict[str, object]] = [
            {"kind": "attempt", "job_id": job_id, "round_id": round_id, "attempt": attempt}
            for job_id, (round_id, attempt) in self._attempts.items()
        ]
        records += [{"kind": "unmasked", "session_id": name} for name in sorted(self._unmasked)]
        records += [
            {"kind": "survivors", "job_id": job_id, "survivors": sorted(names)}
            for job_id, sets in self._survivors.items()
            for names in sets
        ]
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("w") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
            _sync_folder(self._path.parent)
            return self._path.open("a")
        except OSError as error:
            raise StorageError(f"the journal {self._path} cannot be written", got=str(error)) from error


def _lock(state_dir: Path) -> IO[str]:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (state_dir / LOCK_NAME).open("w")
    except OSError as error:
        raise ConfigError(
            f"state_dir {state_dir} cannot be used", got=error.strerror, fix="name a folder that this user may write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"state_dir {state_dir} is in use by another site", fix="give each site a folder of its own"
        ) from error
    return lock


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
