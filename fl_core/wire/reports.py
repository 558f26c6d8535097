"""Released sums and round reports as protobuf, and back."""

from collections.abc import Iterable

from fl_core.errors import RemoteProtocolError
from fl_core.rounds.machine import SiteDropout
from fl_core.rounds.plan import MAX_SITES, ClientId, JobId
from fl_core.rounds.report import AggregateInfo, RoundReport, SessionReport, SiteEvaluation
from fl_core.wire.checks import DIGEST_BYTES, check_size, digest_from_proto, indices_from_proto, session_id_from_proto
from fl_core.wire.enums import (
    abandon_reason_from_proto,
    abandon_reason_to_proto,
    dropout_reason_from_proto,
    dropout_reason_to_proto,
    round_state_from_proto,
    round_state_to_proto,
)
from fl_core.wire.v1 import round_pb2


def aggregate_to_proto(value: AggregateInfo) -> round_pb2.AggregateInfo:
    """To the wire."""
    return round_pb2.AggregateInfo(
        session_id=value.session_id, survivors=value.survivors, total_weight=value.total_weight, sha256=value.sha256
    )


def aggregate_from_proto(message: round_pb2.AggregateInfo) -> AggregateInfo:
    """From the wire.

    Raises:
        RemoteProtocolError: a size is wrong or the survivors are not distinct and ascending.
    """
    return AggregateInfo(
        session_id=session_id_from_proto(message.session_id),
        survivors=indices_from_proto(message.survivors),
        total_weight=message.total_weight,
        sha256=digest_from_proto("the digest of a sum", message.sha256),
    )


def evaluation_to_proto(value: SiteEvaluation) -> round_pb2.SiteEvaluation:
    """To the wire."""
    return round_pb2.SiteEvaluation(
        client_id=value.client_id, loss=value.loss, num_samples=value.num_samples, metrics=dict(value.metrics)
    )


def evaluation_from_proto(message: round_pb2.SiteEvaluation) -> SiteEvaluation:
    """From the wire."""
    return SiteEvaluation(ClientId(message.client_id), message.loss, message.num_samples, dict(message.metrics))


def report_to_proto(value: RoundReport) -> round_pb2.RoundReport:
    """To the wire."""
    return round_pb2.RoundReport(
        job_id=value.job_id,
        round_id=value.round_id,
        attempt=value.attempt,
        state=round_state_to_proto(value.state),
        abandon_reason=abandon_reason_to_proto(value.abandon_reason),
        model_version=value.model_version,
        invited=value.invited,
        survivors=value.survivors,
        dropouts=[_dropout_to_proto(dropout) for dropout in value.dropouts],
        phase_seconds=dict(value.phase_seconds),
        round_seconds=value.round_seconds,
        total_weight=value.total_weight,
        aggregate_sha256=value.aggregate_sha256,
        metrics=dict(value.metrics),
        bytes_up=dict(value.bytes_up),
        bytes_down=dict(value.bytes_down),
        detail=value.detail,
        evaluations=[evaluation_to_proto(evaluation) for evaluation in value.evaluations],
        sessions=[_session_to_proto(session) for session in value.sessions],
    )


def report_from_proto(message: round_pb2.RoundReport) -> RoundReport:
    """From the wire.

    Raises:
        RemoteProtocolError: an enum is unknown, a list too long, or the digest has the wrong length.
    """
    for what in ("invited", "survivors", "dropouts", "evaluations", "sessions"):
        check_size(f"the list {what} of a report", getattr(message, what), 0, MAX_SITES)
    if message.aggregate_sha256:
        check_size("the digest of a sum", message.aggregate_sha256, DIGEST_BYTES, DIGEST_BYTES)
    if not message.job_id:
        raise RemoteProtocolError("a report names no job", expected="a job_id")
    return RoundReport(
        job_id=JobId(message.job_id),
        round_id=message.round_id,
        attempt=message.attempt,
        state=round_state_from_proto(message.state),
        abandon_reason=abandon_reason_from_proto(message.abandon_reason),
        model_version=message.model_version,
        invited=_ids(message.invited),
        survivors=_ids(message.survivors),
        dropouts=tuple(_dropout_from_proto(dropout) for dropout in message.dropouts),
        phase_seconds=dict(message.phase_seconds),
        round_seconds=message.round_seconds,
        total_weight=message.total_weight,
        aggregate_sha256=message.aggregate_sha256,
        metrics=dict(message.metrics),
        bytes_up=dict(message.bytes_up),
        bytes_down=dict(message.bytes_down),
        detail=message.detail,
        evaluations=tuple(evaluation_from_proto(evaluation) for evaluation in message.evaluations),
        sessions=tuple(_session_from_proto(session) for session in message.sessions),
    )


def _ids(names: Iterable[str]) -> tuple[ClientId, ...]:
    return tuple(ClientId(name) for name in names)


def _session_to_proto(value: SessionReport) -> round_pb2.SessionReport:
    return round_pb2.SessionReport(
        number=value.number,
        session_id=value.session_id,
        aggregator=value.aggregator,
        keyserver=value.keyserver,
        state=round_state_to_proto(value.state),
        abandon_reason=abandon_reason_to_proto(value.abandon_reason),
        detail=value.detail,
        invited=value.invited,
        survivors=value.survivors,
        total_weight=value.total_weight,
        aggregate_sha256=value.aggregate_sha256,
    )


def _session_from_proto(message: round_pb2.SessionReport) -> SessionReport:
    if message.aggregate_sha256:
        check_size("the digest of a sum", message.aggregate_sha256, DIGEST_BYTES, DIGEST_BYTES)
    return SessionReport(
        number=message.number,
        session_id=session_id_from_proto(message.session_id),
        aggregator=message.aggregator,
        keyserver=message.keyserver,
        state=round_state_from_proto(message.state),
        abandon_reason=abandon_reason_from_proto(message.abandon_reason),
        detail=message.detail,
        invited=message.invited,
        survivors=message.survivors,
        total_weight=message.total_weight,
        aggregate_sha256=message.aggregate_sha256,
    )


def _dropout_to_proto(value: SiteDropout) -> round_pb2.SiteDropout:
    return round_pb2.SiteDropout(
        client_id=value.client_id,
        reason=dropout_reason_to_proto(value.reason),
        phase=round_state_to_proto(value.phase),
    )


def _dropout_from_proto(message: round_pb2.SiteDropout) -> SiteDropout:
    return SiteDropout(
        ClientId(message.client_id), dropout_reason_from_proto(message.reason), round_state_from_proto(message.phase)
    )
