"""What the coordinator's database holds about jobs, models and attempts, as values."""

from dataclasses import dataclass
from enum import StrEnum

from fl_core.rounds.machine import RoundState
from fl_core.rounds.plan import JobId, RosterEntry

FIRST_VERSION = 1
"""The model that comes with a job. On the wire a version of 0 asks for the newest one."""


class JobStatus(StrEnum):
    """How far a job has come. The last three are its end."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing happens to this job any more."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job and how far it has come. Times are seconds since the epoch."""

    job_id: JobId
    name: str
    spec_json: str
    submitted_by: str
    submitted_at: float
    status: JobStatus = JobStatus.QUEUED
    detail: str = ""
    ended_at: float | None = None
    rounds_committed: int = 0
    model_version: int = FIRST_VERSION


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One version of a model: its digest (see `fl_core.wire.chunks`) and where its tensors lie in the blob store."""

    job_id: JobId
    version: int
    model_digest: bytes
    blob_name: str
    total_bytes: int
    created_at: float
    optimizer_blob: str | None = None

    @property
    def parent_version(self) -> int | None:
        """The version that this one was computed from."""
        return self.version - 1 if self.version > FIRST_VERSION else None


@dataclass(frozen=True, slots=True, order=True)
class AttemptKey:
    """One attempt at one round of one job; both count from 1."""

    job_id: JobId
    round_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What one session of an attempt is bound to once its plan stands: its id, its services and its sites."""

    session_id: bytes
    roster: tuple[RosterEntry, ...]
    aggregator: str = ""
    keyserver: str = ""


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What a step decides about a session.

    Args:
        survivors: places of the sites in its sum, among all sites of the attempt.
        total_weight: of its sum.
        aggregate_sha256: of its packed sum.
    """

    survivors: tuple[int, ...] = ()
    total_weight: int | None = None
    aggregate_sha256: bytes | None = None

    @property
    def columns(self) -> dict[str, object]:
        """What is kept in the row of the session itself."""
        known = {"total_weight": self.total_weight, "aggregate_sha256": self.aggregate_sha256}
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Step:
    """A session, or an attempt, goes from one state to another; the same twice stands for no step."""

    before: RoundState
    after: RoundState

    @property
    def moves(self) -> bool:
        """Whether it is one."""
        return self.before is not self.after


@dataclass(frozen=True, slots=True)
class SiteBytes:
    """Message bytes from a site (up) and to it (down)."""

    up: int = 0
    down: int = 0

    def __add__(self, other: "SiteBytes") -> "SiteBytes":
        return SiteBytes(self.up + other.up, self.down + other.down)
