"""The RPCs of the coordinator."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from secrets import token_hex
from time import monotonic

import structlog

import fl_core
from fl_core.codec.tensors import TensorManifest
from fl_core.errors import NotEnough, NotFound, PlanError, StreamError
from fl_core.rounds.job import JobSpec, job_from_mapping
from fl_core.rounds.plan import ClientId, JobId
from fl_core.rounds.planner import check_job, check_private_job
from fl_core.transport.errors import printable
from fl_core.transport.identity import Identity, Role
from fl_core.wire.chunks import ChunkReader
from fl_core.wire.convert import (
    dropout_reason_from_proto,
    evaluation_to_proto,
    manifest_from_proto,
    report_to_proto,
    session_id_from_proto,
)
from fl_core.wire.v1 import coordinator_pb2 as pb
from fl_core.wire.v1 import coordinator_pb2_grpc, round_pb2, status_pb2, tensors_pb2
from services.coordinator.differences import ModelDifferences
from services.coordinator.downloads import ModelDownloads
from services.coordinator.driver import Driver, spec_of
from services.coordinator.going_on import rest_of
from services.coordinator.models import StoredModel
from services.coordinator.presence import ConnectedSite
from services.coordinator.records import FIRST_VERSION, AttemptKey, JobRecord, ModelRecord
from services.coordinator.resources import Resources
from services.coordinator.settings import CoordinatorSettings
from services.runtime.identity import Context, caller, role_table
from services.runtime.membership import check_own_certificate, check_site
from services.runtime.metrics import in_turn
from services.runtime.offload import offload
from services.runtime.sessions import StreamSlots
from services.runtime.streams import expect_message, next_message

log = structlog.get_logger(__name__)

MAX_SPEC_BYTES = 1 << 20
STALL_TIMEOUT_S = 30.0
MAX_INSTANCE_BYTES = 16
LONGEST_JOB_ID = 256
WATCH_POLL_S = 5.0
WATCH_PAUSE_S = 0.05
WATCH_SHARE = 5.0
"""The pause after a look at a job, in times of the look."""
LONGEST_EVALUATION_S = 86_400.0

ROLES = role_table(
    "fl_core.wire.v1.CoordinatorService",
    {
        "WatchRounds": {Role.SITE},
        "GetParameters": {Role.SITE, Role.OPERATOR},
        "LeaveRound": {Role.SITE},
        "ReportEvaluation": {Role.SITE},
        "EvaluateModel": {Role.OPERATOR},
        "GetStatus": set(Role),
        "SubmitJob": {Role.OPERATOR},
        "WatchJob": {Role.OPERATOR},
        "CancelJob": {Role.OPERATOR},
        "CountersignRelease": {Role.SITE},
        "GetPrivacyReport": {Role.OPERATOR},
        "GetTranscript": {Role.OPERATOR},
        "ReportAggregate": {Role.AGGREGATOR},
    },
)


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """Jobs, rounds and the global model, for sites, operators and the aggregator.

    Args:
        settings: of the coordinator.
        resources: stores, sites and services.
        driver: runs the jobs.
    """

    def __init__(self, settings: CoordinatorSettings, resources: Resources, driver: Driver) -> None:
        self._settings = settings
        self._with = resources
        self._driver = driver
        self._started = monotonic()
        self._streams = StreamSlots(settings.streams_per_caller)
        self._download_slots = asyncio.Semaphore(settings.concurrent_downloads)
        self._downloads = ModelDownloads(resources.jobs, resources.models, settings.model_memory_bytes)
        self._differences = ModelDifferences(self._downloads, resources.models, settings.model_memory_bytes)

    async def WatchRounds(  # noqa: N802 - named by the wire
        self, request: pb.WatchRoundsRequest, context: Context
    ) -> AsyncIterator[pb.WatchRoundsResponse]:
        """Site: stay in touch; invitations and evaluation tasks as they come."""
        await self._with.leadership.require()
        identity = caller(context)
        instance = request.instance[:MAX_INSTANCE_BYTES]
        site = ConnectedSite(ClientId(identity.id), identity.certificate_sha256, instance)
        log.info("site_connected", client_id=site.client_id, sdk_version=request.sdk_version[:64])
        over = await self._is_over(request.trained_job_id, request.trained_round_id)
        with self._streams.hold((identity.name, "rounds")):
            if over is not None:
                yield over
            async with aclosing(self._with.presence.stream(site)) as events:
                async for event in events:
                    yield event

    async def GetParameters(  # noqa: N802
        self, request: pb.GetParametersRequest, context: Context
    ) -> AsyncIterator[pb.GetParametersResponse]:
        """Site, operator: what do I have -> the model, or word that it is the same."""
        identity = caller(context)
        model = await self._downloads.find(request.job_id, request.model_version)
        with self._streams.hold((identity.name, "parameters")):
            async with (
                in_turn(self._download_slots, "downloads"),
                aclosing(self._parameters(model, request)) as whole,
                aclosing(_wanted_part(whole, request)) as parts,
            ):
                async for part in parts:
                    self._count(model.job_id, identity, down=part.ByteSize())
                    yield part
        self._count(model.job_id, identity, up=request.ByteSize())

    async def LeaveRound(  # noqa: N802
        self, request: pb.LeaveRoundRequest, context: Context
    ) -> pb.LeaveRoundResponse:
        """Site: do not wait for me in this attempt."""
        await self._with.leadership.require()
        identity = caller(context)
        reason = dropout_reason_from_proto(request.reason)
        session = self._driver.session_of(session_id_from_proto(request.session_id))
        plan = session.plan
        check_site(plan, identity, plan.index_of(identity.id))
        self._count(plan.job_id, identity, up=request.ByteSize())
        detail = printable(request.detail)
        log.info("site_left", client_id=identity.id, reason=reason.value, detail=detail)
        session.leave(ClientId(identity.id), reason, detail)
        return pb.LeaveRoundResponse()

    async def CountersignRelease(  # noqa: N802
        self, request: pb.CountersignReleaseRequest, context: Context
    ) -> pb.CountersignReleaseResponse:
        """Site: I take part in this release, and this is what my ledger counts for it."""
        await self._with.leadership.require()
        identity = caller(context)
        plan = self._driver.session_of(session_id_from_proto(request.session_id)).plan
        index = plan.index_of(identity.id)
        check_site(plan, identity, index)
        check_own_certificate(identity, request.certificate_der)
        await self._with.privacy.countersign(plan, index, request)
        self._count(plan.job_id, identity, up=request.ByteSize())
        return pb.CountersignReleaseResponse()

    async def GetPrivacyReport(  # noqa: N802
        self,
        request: pb.GetPrivacyReportRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.GetPrivacyReportResponse:
        """Operator: what a job has spent of its privacy budget."""
        job = await self._with.jobs.job(request.job_id)
        report = await self._with.privacy.report(job, spec_of(job))
        return pb.GetPrivacyReportResponse(report_json=json.dumps(report, allow_nan=False))

    async def ReportEvaluation(  # noqa: N802
        self, request: pb.ReportEvaluationRequest, context: Context
    ) -> pb.ReportEvaluationResponse:
        """Site: what I measured."""
        await self._with.leadership.require()
        self._with.evaluations.report(ClientId(caller(context).id), request)
        return pb.ReportEvaluationResponse()

    async def EvaluateModel(  # noqa: N802
        self,
        request: pb.EvaluateModelRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.EvaluateModelResponse:
        """Operator: let the connected sites measure a model."""
        await self._with.leadership.require()
        job = await self._with.jobs.job(request.job_id)
        model = await self._with.jobs.model(request.job_id, request.model_version)
        manifest = await self._with.models.manifest(model.blob_name)
        timeout_s = min(request.timeout_seconds, LONGEST_EVALUATION_S)
        if not timeout_s > 0:
            timeout_s = self._settings.evaluation_timeout_s
        result = await self._with.evaluations.evaluate(spec_of(job), model, manifest, timeout_s)
        if not result.sites:
            raise NotEnough("no site evaluated the model", expected="one at least", got=f"{len(result.missing)} silent")
        means = result.means
        return pb.EvaluateModelResponse(
            model_version=model.version,
            loss=means.pop("loss"),
            num_samples=result.num_samples,
            metrics=means,
            sites=[evaluation_to_proto(site) for site in result.sites],
            missing=result.missing,
        )

    async def GetStatus(  # noqa: N802
        self,
        request: status_pb2.GetStatusRequest,
        context: Context,  # noqa: ARG002
    ) -> status_pb2.GetStatusResponse:
        """Everyone: who is connected and how far the jobs are."""
        jobs = [await self._with.jobs.job(request.job_id)] if request.job_id else await self._with.jobs.jobs()
        return status_pb2.GetStatusResponse(
            service_id=self._settings.service_id,
            role=Role.COORDINATOR.value,
            version=fl_core.__version__,
            uptime_seconds=monotonic() - self._started,
            connected_sites=[site.client_id for site in self._with.presence.connected()],
            jobs=[await self._status(job) for job in jobs],
            leading=self._with.leadership.is_leading,
            leader=await self._with.leadership.leader(),
        )

    async def SubmitJob(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SubmitJobRequest], context: Context
    ) -> pb.SubmitJobResponse:
        """Operator: a job and its first model. Nothing of it is kept unless all of it is right."""
        await self._with.leadership.require()
        identity = caller(context)
        requests = aiter(request_iterator)
        with self._streams.hold((identity.name, "submissions")):
            header = (await expect_message(requests, "header", STALL_TIMEOUT_S)).header
            spec, manifest = read_spec(header.spec_json), manifest_from_proto(header.manifest)
            check_job(spec)
            await offload(check_private_job, spec, manifest.size)
            job_id = new_job_id(spec)
            stored = await self._receive_model(job_id, manifest, header.stream, requests)
            await self._add_job(job_id, spec, stored, identity)
        log.info("job_submitted", job_id=job_id, rounds=spec.rounds, parameters=manifest.size)
        self._driver.submit(job_id)
        return pb.SubmitJobResponse(job_id=job_id, model_digest=stored.model_digest)

    async def WatchJob(  # noqa: N802
        self,
        request: pb.WatchJobRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """Operator: closed reports in order and the status at each change, until the job ends."""
        # Whoever asks for a job that does not exist must not leave a trace in memory.
        await self._with.jobs.job(request.job_id)
        after = (0, 0)
        said: status_pb2.JobStatus | None = None
        while True:
            # The wait begins before the look, so that no change between them is missed.
            waiting = asyncio.ensure_future(self._driver.changes(request.job_id).wait(WATCH_POLL_S))
            try:
                await asyncio.sleep(0)
                began = monotonic()
                job = await self._with.jobs.job(request.job_id)
                for report in await self._with.rounds.reports(job.job_id, after=after):
                    after = (report.round_id, report.attempt)
                    yield pb.WatchJobResponse(report=report_to_proto(report))
                status = await self._status(job)
                if status != said:
                    said = status
                    yield pb.WatchJobResponse(status=status)
                if job.status.is_final:
                    return
                look_s = monotonic() - began
                await waiting
            finally:
                waiting.cancel()
            # Many sites drop out at once, and a look at a large cohort takes its time: watching stays a small part.
            await asyncio.sleep(max(WATCH_PAUSE_S, WATCH_SHARE * look_s))

    async def CancelJob(  # noqa: N802
        self,
        request: pb.CancelJobRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.CancelJobResponse:
        """Operator: end a job; what it committed stays."""
        await self._with.leadership.require()
        await self._driver.cancel(request.job_id)
        return pb.CancelJobResponse()

    async def GetTranscript(  # noqa: N802
        self,
        request: pb.GetTranscriptRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.GetTranscriptResponse:
        """Operator: the signed record of one ended attempt."""
        job = await self._with.jobs.job(request.job_id)
        attempt = request.attempt or await self._with.rounds.last_attempt(job.job_id, request.round_id)
        transcript = await self._with.transcripts.read(
            AttemptKey(job.job_id, request.round_id, attempt), request.session_number or 1
        )
        return pb.GetTranscriptResponse(transcript=transcript)

    async def ReportAggregate(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ReportAggregateRequest], context: Context
    ) -> pb.ReportAggregateResponse:
        """Aggregator: the sum of one session."""
        await self._with.leadership.require()
        await self._with.inbox.receive(caller(context), aiter(request_iterator))
        return pb.ReportAggregateResponse()

    async def _is_over(self, job_id: str, round_id: int) -> pb.WatchRoundsResponse | None:
        """Word to a site that still holds an update for a round, if that round ended while it was away."""
        if not job_id or len(job_id) > LONGEST_JOB_ID:
            return None
        try:
            job = await self._with.jobs.job(job_id)
        except NotFound:
            return pb.WatchRoundsResponse(job_ended=pb.JobEnded(job_id=job_id, status="unknown"))
        if job.status.is_final:
            return pb.WatchRoundsResponse(job_ended=pb.JobEnded(job_id=job_id, status=job.status.value))
        if round_id > job.rounds_committed:
            return None
        ended = pb.AttemptEnded(
            job_id=job_id,
            round_id=round_id,
            attempt=await self._with.rounds.last_attempt(job_id, round_id),
            state=round_pb2.ROUND_STATE_COMMITTED,
            model_version=job.model_version,
        )
        return pb.WatchRoundsResponse(attempt_ended=ended)

    async def _parameters(
        self, model: ModelRecord, request: pb.GetParametersRequest
    ) -> AsyncGenerator[pb.GetParametersResponse, None]:
        if request.have_digest == model.model_digest:
            yield pb.GetParametersResponse(header=unchanged_header(model))
            return
        difference = await self._differences.find(model, request.have_digest) if request.accepts_difference else None
        if difference is not None:
            for part in difference:
                yield part
            return
        async with aclosing(self._downloads.stream(model)) as parts:
            async for part in parts:
                yield part

    async def _receive_model(
        self,
        job_id: JobId,
        manifest: TensorManifest,
        header: tensors_pb2.StreamHeader,
        requests: AsyncIterator[pb.SubmitJobRequest],
    ) -> StoredModel:
        reader = ChunkReader(header, max_bytes=self._settings.max_model_bytes, expected_bytes=manifest.nbytes)
        name = f"models/{job_id}/v{FIRST_VERSION}.safetensors"
        return await self._with.models.receive(name, manifest, _pieces(reader, requests))

    async def _add_job(self, job_id: JobId, spec: JobSpec, stored: StoredModel, identity: Identity) -> None:
        now = self._with.clock()
        job = JobRecord(job_id, spec.name, json.dumps(spec.to_mapping()), identity.name, now)
        model = ModelRecord(job_id, FIRST_VERSION, stored.model_digest, stored.blob_name, stored.total_bytes, now)
        try:
            await self._with.jobs.add(job, model)
        except BaseException:
            await self._with.models.discard(stored.blob_name)
            raise

    async def _status(self, job: JobRecord) -> status_pb2.JobStatus:
        current = await self._with.rounds.current(job.job_id, self._with.clock())
        model = await self._with.jobs.model(job.job_id, job.model_version)
        return status_pb2.JobStatus(
            job_id=job.job_id,
            name=job.name,
            status=job.status.value,
            detail=job.detail,
            rounds_planned=spec_of(job).rounds,
            rounds_committed=job.rounds_committed,
            model_version=job.model_version,
            model_digest=model.model_digest,
            current=None if current is None else report_to_proto(current),
        )

    def _count(self, job_id: str, identity: Identity, *, up: int = 0, down: int = 0) -> None:
        if identity.role is Role.SITE:
            self._with.traffic.count(job_id, identity.id, up=up, down=down)


def _wanted_part(
    whole: AsyncGenerator[pb.GetParametersResponse, None], request: pb.GetParametersRequest
) -> AsyncGenerator[pb.GetParametersResponse, None]:
    """The stream as it is, or what a site on a bad link asks for of it."""
    if not request.first_byte and not request.chunk_bytes:
        return whole
    return rest_of(whole, request.first_byte, request.chunk_bytes)


def unchanged_header(model: ModelRecord) -> pb.ModelHeader:
    """The answer to somebody who has the model."""
    return pb.ModelHeader(
        job_id=model.job_id, model_version=model.version, model_digest=model.model_digest, unchanged=True
    )


def read_spec(spec_json: str) -> JobSpec:
    """Read a job specification.

    Raises:
        PlanError: it is too long, no JSON, or no job.
    """
    if len(spec_json) > MAX_SPEC_BYTES:
        raise PlanError("the job is too long", expected=f"up to {MAX_SPEC_BYTES} characters", got=len(spec_json))
    try:
        mapping = json.loads(spec_json)
    except (ValueError, RecursionError) as error:
        raise PlanError("the job is not valid JSON") from error
    if not isinstance(mapping, Mapping):
        raise PlanError("the job is no mapping", expected="names and values", got=type(mapping).__name__)
    return job_from_mapping(mapping)


def new_job_id(spec: JobSpec) -> JobId:
    """An id that nobody has: the job's name, as far as it can be part of a file name, and random digits."""
    stem = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:32] or "job"
    return JobId(f"{stem}-{token_hex(4)}")


async def _pieces(reader: ChunkReader, requests: AsyncIterator[pb.SubmitJobRequest]) -> AsyncIterator[bytes]:
    while (message := await next_message(requests, STALL_TIMEOUT_S, "a model")) is not None:
        match message.WhichOneof("part"):
            case "chunk":
                yield reader.feed(message.chunk)
            case "trailer":
                reader.finish(message.trailer)
            case other:
                raise StreamError("a part of a model is out of turn", expected="chunk or trailer", got=other)
    reader.end()
