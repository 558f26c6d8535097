"""What the coordinator tells about rounds, jobs and evaluations, as JSON and in words."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Self

from fl_core.rounds.machine import RoundState
from fl_core.rounds.report import RoundReport, SessionReport, SiteEvaluation
from fl_core.wire.reports import evaluation_from_proto, report_from_proto
from fl_core.wire.v1 import coordinator_pb2, status_pb2

ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class JobSummary:
    """How far a job is; see `JobStatus` in status.proto."""

    job_id: str
    name: str
    status: str
    detail: str
    rounds_planned: int
    rounds_committed: int
    model_version: int
    model_digest: bytes
    current: RoundReport | None

    @classmethod
    def from_message(cls, job: status_pb2.JobStatus) -> Self:
        """Take over a status as it came from the coordinator.

        Raises:
            RemoteProtocolError: it is malformed.
        """
        return cls(
            job_id=job.job_id,
            name=job.name,
            status=job.status,
            detail=job.detail,
            rounds_planned=job.rounds_planned,
            rounds_committed=job.rounds_committed,
            model_version=job.model_version,
            model_digest=job.model_digest,
            current=report_from_proto(job.current) if job.HasField("current") else None,
        )

    @property
    def ended(self) -> bool:
        """Whether the job runs no more rounds."""
        return self.status in ENDED

    def to_json(self) -> dict[str, object]:
        """The summary for `json.dumps`."""
        current = None if self.current is None else report_to_json(self.current)
        return {**_plain(self), "model_digest": self.model_digest.hex(), "current": current}


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """What the connected sites measured; see `EvaluateModelResponse` in coordinator.proto."""

    model_version: int
    loss: float
    num_samples: int
    metrics: Mapping[str, float]
    sites: tuple[SiteEvaluation, ...]
    missing: tuple[str, ...]

    @classmethod
    def from_message(cls, answer: coordinator_pb2.EvaluateModelResponse) -> Self:
        """Take over an evaluation as it came from the coordinator."""
        return cls(
            model_version=answer.model_version,
            loss=answer.loss,
            num_samples=answer.num_samples,
            metrics=dict(answer.metrics),
            sites=tuple(evaluation_from_proto(site) for site in answer.sites),
            missing=tuple(answer.missing),
        )

    def to_json(self) -> dict[str, object]:
        """The summary for `json.dumps`."""
        return {**_plain(self), "sites": [_evaluation_to_json(site) for site in self.sites]}


def report_to_json(report: RoundReport) -> dict[str, object]:
    """A report for `json.dumps`; digests in hexadecimal digits."""
    return {
        **_plain(report),
        "aggregate_sha256": report.aggregate_sha256.hex(),
        "dropouts": [asdict(dropout) for dropout in report.dropouts],
        "evaluations": [_evaluation_to_json(evaluation) for evaluation in report.evaluations],
        "sessions": [_session_to_json(session) for session in report.sessions],
    }


def is_committed(report: RoundReport) -> bool:
    """Whether the round released its sum and made a new model."""
    return report.state is RoundState.COMMITTED


def mean_over_survivors(report: RoundReport, counts: Mapping[str, int]) -> float:
    """Mean of `bytes_up` or `bytes_down` of a report over its survivors; 0 when there are none."""
    return fmean(counts.get(client_id, 0) for client_id in report.survivors) if report.survivors else 0.0


def dropouts_in_words(report: RoundReport) -> str:
    """How many sites dropped out, by reason, one reason per line; a dash when nobody did."""
    counts = Counter(words(dropout.reason) for dropout in report.dropouts)
    return "\n".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "-"


def words(name: str) -> str:
    """A name with underscores as people read it."""
    return name.replace("_", " ")


def _session_to_json(session: SessionReport) -> dict[str, object]:
    digests = {"session_id": session.session_id.hex(), "aggregate_sha256": session.aggregate_sha256.hex()}
    return {**asdict(session), **digests}


def _evaluation_to_json(evaluation: SiteEvaluation) -> dict[str, object]:
    return _plain(evaluation)


def _plain(value: JobSummary | EvaluationSummary | RoundReport | SiteEvaluation) -> dict[str, object]:
    """Fields by name, read-only mappings as dictionaries; `asdict` cannot copy those."""
    plain = {name: getattr(value, name) for name in value.__slots__}
    return {name: dict(entry) if isinstance(entry, Mapping) else entry for name, entry in plain.items()}
