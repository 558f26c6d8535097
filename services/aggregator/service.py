"""The RPCs of the aggregator."""

from collections.abc import AsyncIterator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import structlog

import fl_core
from fl_core.errors import Overloaded, RemoteProtocolError
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.secagg.transcript import frozen_body, sign_part
from fl_core.transport.identity import Identity, Role
from fl_core.transport.tls import LiveCredentials
from fl_core.wire.convert import (
    dropout_reason_to_proto,
    indices_from_proto,
    part_to_proto,
    plan_from_proto,
    session_id_from_proto,
)
from fl_core.wire.v1 import aggregator_pb2, aggregator_pb2_grpc, status_pb2
from services.aggregator.intake import UploadIntake
from services.aggregator.partial import Kept, PartialUploads, UploadKey
from services.aggregator.reporting import AggregateReporter
from services.aggregator.session import AggregationSession, Upload, sum_bytes
from services.aggregator.settings import AggregatorSettings
from services.aggregator.workspace import Workspace
from services.runtime.identity import Context, caller, role_table
from services.runtime.membership import check_addressed, check_service, check_site
from services.runtime.metrics import watch_sessions, watch_staging
from services.runtime.sessions import SessionTable, StreamSlots
from services.runtime.staging import StagingArea
from services.runtime.streams import expect_message

if TYPE_CHECKING:
    from services.aggregator.encrypted import EncryptedSum

log = structlog.get_logger(__name__)

ROLES = role_table(
    "fl_core.wire.v1.AggregatorService",
    {
        "UpdateParameters": {Role.SITE},
        "GetUpload": {Role.SITE},
        "OpenAggregation": {Role.COORDINATOR},
        "WatchAggregation": {Role.COORDINATOR},
        "AdmitUploads": {Role.COORDINATOR},
        "FreezeSurvivors": {Role.COORDINATOR},
        "SubmitMask": {Role.KEYSERVER},
        "AbandonAggregation": {Role.COORDINATOR},
        "GetStatus": set(Role),
    },
)


class AggregatorService(aggregator_pb2_grpc.AggregatorServiceServicer):
    """Adds what sites upload.

    Args:
        settings: of the aggregator.
        credentials: its certificate as it is now.
    """

    def __init__(self, settings: AggregatorSettings, credentials: LiveCredentials) -> None:
        self._settings = settings
        self._credentials = credentials
        self._started = monotonic()
        self._sessions: SessionTable[AggregationSession] = SessionTable(settings.max_sessions)
        self._streams = StreamSlots(settings.streams_per_caller)
        self._workspace = Workspace()
        staging = StagingArea(settings.state_dir / "spool", settings.memory_budget_bytes)
        watch_sessions(lambda: len(self._sessions.open_sessions))
        watch_staging(lambda: staging.free_bytes, settings.memory_budget_bytes)
        self._partial = PartialUploads(staging, settings.max_partial_uploads)
        self._intake = UploadIntake(
            staging, self._partial, settings.max_uploads, settings.max_waiting_uploads, settings.stall_timeout_seconds
        )
        self._reporter = AggregateReporter(
            settings.coordinator, lambda: credentials.current, settings.report_timeout_seconds
        )

    async def drain(self, patience_s: float) -> None:
        """Take no session any more, and wait for those that are open."""
        await self._sessions.drain(patience_s)

    def close(self) -> None:
        """Drop every session."""
        self._sessions.close()

    async def UpdateParameters(  # noqa: N802 - named by the wire
        self, request_iterator: AsyncIterator[aggregator_pb2.UpdateParametersRequest], context: Context
    ) -> aggregator_pb2.UpdateParametersResponse:
        """Site: my update -> acknowledgement."""
        identity = caller(context)
        with self._streams.hold(identity.name):
            requests = aiter(request_iterator)
            header = (await expect_message(requests, "header", self._settings.stall_timeout_seconds)).header
            session = self._sessions.get(session_id_from_proto(header.session_id))
            check_site(session.plan, identity, header.index)
            _bind(session.plan, index=header.index)
            trust, begin = self._credentials.trust, partial(_begin, context)
            sha256 = await self._intake.receive_upload(session, header, requests, trust, begin)
        return aggregator_pb2.UpdateParametersResponse(session_id=session.plan.session_id, upload_sha256=sha256)

    async def GetUpload(  # noqa: N802
        self, request: aggregator_pb2.GetUploadRequest, context: Context
    ) -> aggregator_pb2.GetUploadResponse:
        """Site: what became of my upload, and from where may I go on with it?"""
        session = self._sessions.get(session_id_from_proto(request.session_id))
        check_site(session.plan, caller(context), request.index)
        upload = session.upload_of(request.index)
        if upload is None:
            # gRPC may lose the status of a stream that is refused early: whoever asks must hear that it is too late.
            session.check_collecting()
        kept = self._partial.kept(UploadKey(session.plan.session_id, request.index))
        return _upload_state(upload, kept)

    async def OpenAggregation(  # noqa: N802
        self, request: aggregator_pb2.OpenAggregationRequest, context: Context
    ) -> aggregator_pb2.OpenAggregationResponse:
        """Coordinator: begin a session. Opening it again changes nothing."""
        plan = plan_from_proto(request.plan)
        _bind(plan)
        owner = caller(context)
        check_addressed(plan.aggregator, self._credentials.current.identity)
        if self._sessions.find(plan.session_id, owner) is None:
            self._sessions.supersede(plan)
            self._check_memory(plan)
            self._sessions.add(
                AggregationSession(plan, self._workspace, self._partial, self._settings.crypto_threads), owner
            )
            log.info("aggregation_opened", job_id=plan.job_id, sites=len(plan.roster))
        return aggregator_pb2.OpenAggregationResponse(session_id=plan.session_id)

    async def WatchAggregation(  # noqa: N802
        self, request: aggregator_pb2.WatchAggregationRequest, context: Context
    ) -> AsyncIterator[aggregator_pb2.WatchAggregationResponse]:
        """Coordinator: uploads as they are accepted or refused, past ones first, until the survivors are frozen."""
        identity = caller(context)
        session = self._sessions.owned(session_id_from_proto(request.session_id), identity)
        with self._streams.hold((identity.name, session.plan.session_id)):
            async for upload in session.uploads.follow():
                yield aggregator_pb2.WatchAggregationResponse(upload=_record(upload))

    async def AdmitUploads(  # noqa: N802
        self, request: aggregator_pb2.AdmitUploadsRequest, context: Context
    ) -> aggregator_pb2.AdmitUploadsResponse:
        """Coordinator: the exchange of keys is over; only these sites may upload."""
        session = self._sessions.owned(session_id_from_proto(request.session_id), caller(context))
        session.admit(indices_from_proto(request.eligible, len(session.plan.roster)))
        return aggregator_pb2.AdmitUploadsResponse()

    async def FreezeSurvivors(  # noqa: N802
        self, request: aggregator_pb2.FreezeSurvivorsRequest, context: Context
    ) -> aggregator_pb2.FreezeSurvivorsResponse:
        """Coordinator: take no more uploads. A sum that needs no mask is reported before the answer."""
        owner = caller(context)
        session = self._sessions.owned(session_id_from_proto(request.session_id), owner)
        _bind(session.plan)
        survivors = await session.freeze(indices_from_proto(request.eligible, len(session.plan.roster)))
        log.info("survivors_frozen", survivors=len(survivors))
        if session.plan.aggregation is Aggregation.PAILLIER:
            await session.decrypt(self._open_encrypted)
        if session.plan.aggregation is not Aggregation.SECAGG:
            await self._report(session)
        part = sign_part("frozen", frozen_body(session.upload_tree()), self._credentials.current.signer())
        return aggregator_pb2.FreezeSurvivorsResponse(survivors=survivors, part=part_to_proto(part))

    async def SubmitMask(  # noqa: N802
        self, request_iterator: AsyncIterator[aggregator_pb2.SubmitMaskRequest], context: Context
    ) -> aggregator_pb2.SubmitMaskResponse:
        """Key server: the combined mask. It is acknowledged when the coordinator has the sum."""
        identity = caller(context)
        requests = aiter(request_iterator)
        header = (await expect_message(requests, "header", self._settings.stall_timeout_seconds)).header
        session = self._sessions.get(session_id_from_proto(header.session_id))
        _check_keyserver(session.plan, identity)
        _bind(session.plan)
        with self._streams.hold((identity.name, session.plan.session_id)):
            await self._intake.receive_mask(session, header, requests)
            await self._report(session)
        return aggregator_pb2.SubmitMaskResponse()

    async def AbandonAggregation(  # noqa: N802
        self,
        request: aggregator_pb2.AbandonAggregationRequest,
        context: Context,  # noqa: ARG002
    ) -> aggregator_pb2.AbandonAggregationResponse:
        """Coordinator, or the replica that took over from it: forget a session. One that is gone stays gone."""
        session_id = session_id_from_proto(request.session_id)
        if self._sessions.knows(session_id):
            self._sessions.drop(session_id, "abandoned")
            log.info("aggregation_abandoned", session_id=session_id.hex())
        return aggregator_pb2.AbandonAggregationResponse()

    async def GetStatus(  # noqa: N802
        self,
        request: status_pb2.GetStatusRequest,
        context: Context,  # noqa: ARG002
    ) -> status_pb2.GetStatusResponse:
        """Everyone: open sessions and how far they are."""
        return status_pb2.GetStatusResponse(
            service_id=self._settings.service_id,
            role=Role.AGGREGATOR.value,
            version=fl_core.__version__,
            uptime_seconds=monotonic() - self._started,
            sessions=[_status(session) for session in self._sessions if request.job_id in ("", session.plan.job_id)],
        )

    async def _report(self, session: AggregationSession) -> None:
        async with session.releasing:
            if session.released is None:
                return
            await self._reporter.report(session.released, self._sessions.owner_id(session.plan.session_id))
            session.finish()
            self._sessions.finish(session.plan.session_id)

    async def _open_encrypted(self, plan: RoundPlan, encrypted: "EncryptedSum") -> None:
        from services.aggregator.encrypted import SumDecryption

        settings = self._settings
        decryption = SumDecryption(
            lambda: self._credentials.current, settings.decryption_timeout_seconds, settings.crypto_threads
        )
        await decryption.open(plan, encrypted)

    def _check_memory(self, plan: RoundPlan) -> None:
        taken = sum(session.sum_bytes for session in self._sessions)
        if taken + sum_bytes(plan) > self._settings.max_sum_bytes:
            raise Overloaded(
                "this aggregator has no room for another sum",
                expected=f"at most {self._settings.max_sum_bytes - taken} bytes",
                got=sum_bytes(plan),
                fix="try again later, or raise max_sum_bytes in its configuration",
            )


async def _begin(context: Context) -> None:
    """Tell a site that the aggregator takes its chunks now."""
    await context.send_initial_metadata(())


def _check_keyserver(plan: RoundPlan, identity: Identity) -> None:
    if plan.keyserver is None:
        raise RemoteProtocolError("a session without masks has none", expected="a session with secure aggregation")
    check_service(plan.keyserver, identity)


def _bind(plan: RoundPlan, **fields: object) -> None:
    structlog.contextvars.bind_contextvars(round_id=plan.round_id, session_id=plan.session_id.hex(), **fields)


def _upload_state(upload: Upload | None, kept: Kept) -> aggregator_pb2.GetUploadResponse:
    if upload is None or (upload.error is None and not upload.is_accepted):
        return aggregator_pb2.GetUploadResponse(
            state=aggregator_pb2.UPLOAD_STATE_ABSENT, staged_bytes=kept.staged_bytes, staged_sha256=kept.sha256
        )
    if upload.error is None:
        return aggregator_pb2.GetUploadResponse(state=aggregator_pb2.UPLOAD_STATE_ACCEPTED, upload_sha256=upload.sha256)
    error = upload.error
    return aggregator_pb2.GetUploadResponse(
        state=aggregator_pb2.UPLOAD_STATE_REFUSED,
        error_code=error.code,
        error_what=error.what,
        error_expected="" if error.expected is None else str(error.expected),
        error_got="" if error.got is None else str(error.got),
        error_fix=error.fix or "",
    )


def _record(upload: Upload) -> aggregator_pb2.UploadRecord:
    return aggregator_pb2.UploadRecord(
        index=upload.index,
        accepted=upload.is_accepted,
        reason=dropout_reason_to_proto(upload.reason),
        detail="" if upload.error is None else str(upload.error),
        bytes=upload.received_bytes,
    )


def _status(session: AggregationSession) -> status_pb2.SessionStatus:
    plan = session.plan
    return status_pb2.SessionStatus(
        session_id=plan.session_id,
        job_id=plan.job_id,
        round_id=plan.round_id,
        attempt=plan.attempt,
        phase=session.phase.value,
        counts=session.counts(),
    )
