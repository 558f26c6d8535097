"""What came of an attempt, as values: the released sum, and the report that operators see."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fl_core.rounds.machine import AbandonReason, RoundState, SiteDropout
from fl_core.rounds.plan import ClientId, JobId


def _empty() -> Mapping[str, float]:
    return MappingProxyType({})


def _no_bytes() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class AggregateInfo:
    """The sum that one attempt released.

    Args:
        session_id: 16 bytes, of the attempt.
        survivors: indices of the sites in the sum, ascending.
        total_weight: the sum's weight coordinate, samples.
        sha256: 32 bytes, of the packed sum.
    """

    session_id: bytes
    survivors: tuple[int, ...]
    total_weight: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class SiteEvaluation:
    """One site's evaluation of one model version; `num_samples` is its weight in the mean."""

    client_id: ClientId
    loss: float
    num_samples: int
    metrics: Mapping[str, float] = field(default_factory=_empty)


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What happened in one session of an attempt.

    Args:
        number: counts from 1 within the attempt.
        session_id: 16 bytes.
        aggregator: id of the aggregator.
        keyserver: id of the key server; empty in a plain session.
        state: present or final.
        abandon_reason: why it was given up, if it was.
        detail: one sentence for the reader.
        invited: sites of its roster.
        survivors: sites in its sum.
        total_weight: of the survivors, samples.
        aggregate_sha256: 32 bytes, of its packed sum; empty before there is one.
    """

    number: int
    session_id: bytes
    aggregator: str
    keyserver: str
    state: RoundState
    abandon_reason: AbandonReason | None = None
    detail: str = ""
    invited: int = 0
    survivors: int = 0
    total_weight: int = 0
    aggregate_sha256: bytes = b""


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What happened in one attempt.

    Args:
        job_id: the job.
        round_id: counts from 1.
        attempt: counts from 1 within the round.
        state: present or final.
        abandon_reason: why it was given up, if it was.
        model_version: the version that it trained from or, once committed, made.
        invited: the cohort, session by session, each by client_id.
        survivors: sites in the sum.
        dropouts: who dropped out, and why.
        phase_seconds: by name of the state.
        round_seconds: from the beginning to the end.
        total_weight: of the survivors, samples.
        aggregate_sha256: 32 bytes, empty before there is a sum. Of one session it is that of its packed sum; of several
            that of the total, each coordinate as a 64-bit integer, little-endian.
        metrics: means over the sites, weighted by samples.
        bytes_up: by client_id, message bytes that the site sent.
        bytes_down: by client_id, message bytes that the site received.
        detail: one sentence for the reader.
        evaluations: one for each site that evaluated the new model.
        sessions: in the order of their numbers.
    """

    job_id: JobId
    round_id: int
    attempt: int
    state: RoundState
    abandon_reason: AbandonReason | None = None
    model_version: int = 0
    invited: tuple[ClientId, ...] = ()
    survivors: tuple[ClientId, ...] = ()
    dropouts: tuple[SiteDropout, ...] = ()
    phase_seconds: Mapping[str, float] = field(default_factory=_empty)
    round_seconds: float = 0.0
    total_weight: int = 0
    aggregate_sha256: bytes = b""
    metrics: Mapping[str, float] = field(default_factory=_empty)
    bytes_up: Mapping[str, int] = field(default_factory=_no_bytes)
    bytes_down: Mapping[str, int] = field(default_factory=_no_bytes)
    detail: str = ""
    evaluations: tuple[SiteEvaluation, ...] = ()
    sessions: tuple[SessionReport, ...] = ()
