"""The operator's side of the wire: submit and follow jobs, fetch and evaluate models, ask for status."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.model_files import Arrays
from cli.reports import EvaluationSummary, JobSummary
from fl_core.codec.tensors import Tensors, manifest_of
from fl_core.errors import ConfigError, NotFound, PeerLost, RemoteProtocolError, StreamError, TacitError
from fl_core.rounds.job import JobSpec
from fl_core.rounds.report import RoundReport
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.peer import call_unary, read_stream, send_stream
from fl_core.transport.retry import retry
from fl_core.transport.tls import Credentials
from fl_core.wire.chunks import TensorReader, tensor_writer
from fl_core.wire.plans import manifest_from_proto, manifest_to_proto
from fl_core.wire.reports import report_from_proto
from fl_core.wire.v1 import (
    aggregator_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    keyserver_pb2_grpc,
    status_pb2,
)
from services.runtime.settings import read_yaml, split_address

CALL_TIMEOUT_S = 30.0
TRANSFER_TIMEOUT_S = 3600.0
HEALTH_TIMEOUT_S = 2.0
LEADER_PATIENCE_S = 60.0
"""For another replica of the coordinator to take over."""
MAX_MODEL_BYTES = 1 << 36

_SERVICES = ("coordinator", "aggregator", "keyserver")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """Where the services are and who we are.

    Args:
        coordinator: host:port; several, separated by commas, when the coordinator has replicas. So the next two.
        certificate: the operator's certificate (PEM).
        key: its private key (PEM).
        ca: the pinned CA (PEM).
        crl: revocation list (PEM).
        aggregator: host:port, for `tacit status`.
        keyserver: host:port, for `tacit status`.
    """

    coordinator: str
    certificate: Path
    key: Path
    ca: Path
    crl: Path | None = None
    aggregator: str | None = None
    keyserver: str | None = None

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a YAML file. Paths in it count from its folder.

        Raises:
            ConfigError: it cannot be read, or a key is unknown, missing or no text.
        """
        if not path.exists():
            raise ConfigError(
                f"there is no operator's config at {path}",
                fix="name one with --config, or start a local cluster with `tacit up`",
            )
        content = read_yaml(path)
        known = [entry.name for entry in fields(cls)]
        for name, value in content.items():
            if name not in known:
                raise ConfigError(f"{path} has an unknown key {name!r}", expected=", ".join(known))
            if name in _SERVICES and isinstance(value, list):
                content[name] = ",".join(map(str, value))
            elif not isinstance(value, str):
                raise ConfigError(f"{name!r} in {path} is wrong", expected="text", got=repr(value))
        for name in ("coordinator", "certificate", "key", "ca"):
            if name not in content:
                raise ConfigError(f"{path} lacks {name!r}", fix=f"add a line `{name}: ...`")
        for name in _SERVICES:
            for address in _split(content.get(name)):
                split_address(address)
        anchored = {
            name: path.parent / content[name] for name in ("certificate", "key", "ca", "crl") if name in content
        }
        return cls(**(content | anchored))

    def credentials(self) -> Credentials:
        """The operator's certificate.

        Raises:
            ConfigError: a file is missing, unreadable, expired or does not fit.
        """
        return Credentials.from_files(self.certificate, self.key, self.ca, self.crl)

    def addresses_of(self, role: Role) -> tuple[str, ...]:
        """host:port of each replica of a service; none when the config does not say."""
        named = {Role.COORDINATOR: self.coordinator, Role.AGGREGATOR: self.aggregator, Role.KEYSERVER: self.keyserver}
        return _split(named[role])


def _split(addresses: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in addresses.split(",")) if addresses else ()


class Operator:
    """A connection to the coordinator. Made by `Operator.connect`."""

    def __init__(self, stubs: "Mapping[str, coordinator_pb2_grpc.CoordinatorServiceAsyncStub]") -> None:
        self._stubs = stubs
        self._stub = next(iter(stubs.values()))

    @classmethod
    @asynccontextmanager
    async def connect(cls, config: OperatorConfig) -> "AsyncIterator[Operator]":
        """Open channels while the block runs. They connect when they are first used.

        Of several replicas the one that drives the rounds is looked for.

        Raises:
            ConfigError: as `OperatorConfig.credentials`.
            PeerLost: of several replicas, none drives the rounds now.
        """
        credentials = config.credentials()
        async with AsyncExitStack() as stack:
            stubs = {}
            for address in config.addresses_of(Role.COORDINATOR):
                channel = await stack.enter_async_context(open_channel(address, credentials, Role.COORDINATOR))
                # At run time one class of stub serves both kinds of channel; only the type stubs know two.
                stubs[address] = cast(
                    "coordinator_pb2_grpc.CoordinatorServiceAsyncStub",
                    coordinator_pb2_grpc.CoordinatorServiceStub(channel),
                )
            operator = cls(stubs)
            if len(stubs) > 1:
                await retry(operator.find_leader, deadline_s=LEADER_PATIENCE_S)
            yield operator

    async def find_leader(self) -> None:
        """Turn to the replica that drives the rounds.

        Raises:
            PeerLost: none says that it does.
        """
        for address, stub in self._stubs.items():
            try:
                answer = await call_unary(
                    stub.GetStatus, status_pb2.GetStatusRequest(job_id=""), timeout_s=HEALTH_TIMEOUT_S
                )
            except TacitError as error:
                log.info("replica_not_answering", address=address, error=str(error))
                continue
            if answer.leading:
                self._stub = stub
                return
        raise PeerLost("no coordinator drives the rounds", expected=f"one of {', '.join(self._stubs)}")

    async def submit(self, spec: JobSpec, tensors: Tensors) -> str:
        """Submit a job with its initial model, and return the job_id.

        Raises:
            PlanError: the coordinator refuses the job.
            PeerLost: the coordinator cannot be reached.
        """
        manifest = manifest_of(tensors)
        writer = tensor_writer(tensors, manifest)
        header = coordinator_pb2.JobHeader(
            spec_json=json.dumps(spec.to_mapping()), manifest=manifest_to_proto(manifest), stream=writer.header
        )

        async def parts() -> AsyncIterator[coordinator_pb2.SubmitJobRequest]:
            yield coordinator_pb2.SubmitJobRequest(header=header)
            for chunk in writer.chunks():
                yield coordinator_pb2.SubmitJobRequest(chunk=chunk)
            yield coordinator_pb2.SubmitJobRequest(trailer=writer.trailer)

        answer = await send_stream(self._stub.SubmitJob, parts(), timeout_s=TRANSFER_TIMEOUT_S)
        return answer.job_id

    async def watch(self, job_id: str) -> AsyncIterator[RoundReport | JobSummary]:
        """Reports of a job and its status as they change, past ones first, until it ends.

        Raises:
            NotFound: there is no such job.
            PeerLost: the coordinator went away.
        """
        seen: set[tuple[int, int]] = set()
        while True:
            try:
                async for event in self._watch_once(job_id):
                    if isinstance(event, RoundReport) and (event.round_id, event.attempt) in seen:
                        continue
                    if isinstance(event, RoundReport):
                        seen.add((event.round_id, event.attempt))
                    yield event
                return
            except TacitError as error:
                if len(self._stubs) == 1 or not error.retryable:
                    raise
            # Another replica takes over, and what it says begins with the first report.
            await retry(self.find_leader, deadline_s=LEADER_PATIENCE_S)

    async def _watch_once(self, job_id: str) -> AsyncIterator[RoundReport | JobSummary]:
        request = coordinator_pb2.WatchJobRequest(job_id=job_id)
        async for event in read_stream(self._stub.WatchJob, request, timeout_s=None):
            if event.HasField("report"):
                yield report_from_proto(event.report)
            if event.HasField("status"):
                yield JobSummary.from_message(event.status)

    async def get_transcript(self, job_id: str, round_id: int, attempt: int, session_number: int = 1) -> bytes:
        """The signed record of one session of an attempt, 0 for the last attempt at this round.

        Raises:
            NotFound: there is no such job, or the attempt has not ended.
        """
        request = coordinator_pb2.GetTranscriptRequest(
            job_id=job_id, round_id=round_id, attempt=attempt, session_number=session_number
        )
        response = await call_unary(self._stub.GetTranscript, request, timeout_s=TRANSFER_TIMEOUT_S)
        content: bytes = response.transcript
        return content

    async def privacy_report(self, job_id: str) -> str:
        """What a private job has spent, JSON.

        Raises:
            NotFound: there is no such job.
            PlanError: the job has no privacy section.
        """
        request = coordinator_pb2.GetPrivacyReportRequest(job_id=job_id)
        response = await call_unary(self._stub.GetPrivacyReport, request, timeout_s=TRANSFER_TIMEOUT_S)
        report: str = response.report_json
        return report

    async def get_model(self, job_id: str, version: int) -> tuple[int, Arrays]:
        """A version of a job's model, 0 for the newest: (version, tensors).

        Raises:
            NotFound: there is no such job or version.
            StreamError: the stream was damaged on its way.
        """
        request = coordinator_pb2.GetParametersRequest(job_id=job_id, model_version=version)
        reader: TensorReader | None = None
        header = coordinator_pb2.ModelHeader()
        async for response in read_stream(self._stub.GetParameters, request, timeout_s=TRANSFER_TIMEOUT_S):
            if response.HasField("header"):
                header = response.header
                manifest = manifest_from_proto(header.manifest)
                reader = TensorReader(manifest, header.stream, max_bytes=MAX_MODEL_BYTES)
            elif reader is None:
                raise StreamError("a model came without its header", expected="a header first")
            elif response.HasField("chunk"):
                reader.feed(response.chunk)
            else:
                return header.model_version, _checked(reader, header, reader.finish(response.trailer))
        raise StreamError("a model is truncated", expected="a trailer", got="the end", fix="fetch it again")

    async def evaluate(self, job_id: str, version: int, timeout_s: float) -> EvaluationSummary:
        """Let the connected sites measure a version of the model, 0 for the newest.

        Raises:
            NotFound: there is no such job or version.
        """
        request = coordinator_pb2.EvaluateModelRequest(job_id=job_id, model_version=version, timeout_seconds=timeout_s)
        answer = await call_unary(self._stub.EvaluateModel, request, timeout_s=timeout_s + CALL_TIMEOUT_S)
        return EvaluationSummary.from_message(answer)

    async def cancel(self, job_id: str) -> None:
        """Stop a job.

        Raises:
            NotFound: there is no such job.
        """
        request = coordinator_pb2.CancelJobRequest(job_id=job_id)
        await call_unary(self._stub.CancelJob, request, timeout_s=CALL_TIMEOUT_S)

    async def status(self, job_id: str = "") -> status_pb2.GetStatusResponse:
        """Status of the coordinator, with one job or all.

        Raises:
            PeerLost: the coordinator cannot be reached.
        """
        return await call_unary(
            self._stub.GetStatus, status_pb2.GetStatusRequest(job_id=job_id), timeout_s=CALL_TIMEOUT_S
        )

    async def job(self, job_id: str) -> JobSummary:
        """How far a job is.

        Raises:
            NotFound: there is no such job.
        """
        for job in (await self.status(job_id)).jobs:
            if job.job_id == job_id:
                return JobSummary.from_message(job)
        raise NotFound("the coordinator has no such job", got=job_id, fix="list them with `tacit status`")


async def service_status(config: OperatorConfig, role: Role, address: str) -> status_pb2.GetStatusResponse:
    """Status of an aggregator or a key server.

    Raises:
        PeerLost: it cannot be reached.
    """
    async with open_channel(address, config.credentials(), role) as channel:
        stub: Any = (
            aggregator_pb2_grpc.AggregatorServiceStub(channel)
            if role is Role.AGGREGATOR
            else keyserver_pb2_grpc.KeyServerServiceStub(channel)
        )
        answer: status_pb2.GetStatusResponse = await call_unary(
            stub.GetStatus, status_pb2.GetStatusRequest(), timeout_s=CALL_TIMEOUT_S
        )
        return answer


async def check_health(config: OperatorConfig, role: Role) -> bool:
    """Whether a service answers its health check with "serving"; one that is not there does not.

    Raises:
        ConfigError: as `OperatorConfig.credentials`.
    """
    addresses = config.addresses_of(role)
    if not addresses:
        raise ConfigError(f"the operator's config has no address of the {role.value}")
    address = addresses[0]
    async with open_channel(address, config.credentials(), role) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return False
            raise
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _checked(reader: TensorReader, header: coordinator_pb2.ModelHeader, arrays: Arrays) -> Arrays:
    if reader.model_digest != header.model_digest:
        raise RemoteProtocolError(
            "the model is not the one that was announced",
            expected=header.model_digest.hex(),
            got=reader.model_digest.hex(),
        )
    return arrays
