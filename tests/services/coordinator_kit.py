"""A coordinator over real mTLS, with scripted sites, a scripted aggregator and a scripted key server around it."""

# ruff: noqa: N802 - the RPCs are named by the wire

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import grpc
import numpy as np

from fl_core.codec.packing import pack
from fl_core.codec.tensors import Tensors, manifest_of
from fl_core.errors import TacitError, UnknownSession
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.rounds.planner import codec_of
from fl_core.rounds.report import AggregateInfo, RoundReport
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.messages import Beacon
from fl_core.secagg.transcript import frozen_body, sign_part
from fl_core.transport.channel import open_channel
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.transport.peer import send_stream
from fl_core.wire.chunks import ChunkWriter, TensorReader, tensor_writer
from fl_core.wire.convert import (
    aggregate_to_proto,
    beacon_from_proto,
    manifest_from_proto,
    manifest_to_proto,
    part_to_proto,
    plan_from_proto,
    report_from_proto,
)
from fl_core.wire.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    keyserver_pb2,
    keyserver_pb2_grpc,
    round_pb2,
    status_pb2,
)
from services.coordinator.program import running_coordinator
from services.coordinator.settings import CoordinatorSettings
from services.runtime.events import EventLog
from services.runtime.identity import ANYONE, role_table
from services.runtime.server import running_server
from services.runtime.settings import ServiceSettings

MODEL: Tensors = {"weight": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.zeros(3, np.float32)}
FAST = {
    "recruiting": {"min_seconds": 0.0, "max_seconds": 10.0},
    "advertising": {"min_seconds": 0.1, "max_seconds": 5.0},
    "sharing": {"min_seconds": 0.1, "max_seconds": 5.0},
    "uploading": {"min_seconds": 5.0, "max_seconds": 5.0},
}

Reports = list[RoundReport]


def job_spec(**fields: object) -> dict[str, object]:
    return {
        "name": "Digits",
        "rounds": 1,
        "aggregation": "plain",
        "cohort": {"min": 3, "max": 3},
        "codec": {"clip": 1.0, "ring_bits": 24, "bits": 20},
        "max_weight": 100,
        "phases": FAST,
        "evaluate_every": 0,
        **fields,
    }


@dataclass
class ScriptedSession:
    plan: RoundPlan
    records: EventLog[aggregator_pb2.UploadRecord] = field(default_factory=EventLog)
    exchange: EventLog[keyserver_pb2.WatchExchangeResponse] = field(default_factory=EventLog)
    vectors: dict[int, Any] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    survivors: tuple[int, ...] = ()
    admitted: tuple[int, ...] = ()

    def upload(self, index: int, value: float = 0.5, weight: int = 10) -> None:
        codec = codec_of(self.plan)
        update = np.full(self.plan.manifest.size, value, np.float32)
        self.vectors[index] = codec.encode(update, weight, lambda count: bytes(count))
        self.records.append(aggregator_pb2.UploadRecord(index=index, accepted=True, bytes=1000 + index))

    def refuse(self, index: int, reason: "round_pb2.DropoutReason.ValueType") -> None:
        self.records.append(aggregator_pb2.UploadRecord(index=index, accepted=False, reason=reason, bytes=10))

    def share(self, index: int) -> None:
        self.shared.add(index)
        self.close_when_all_shared()

    def close_when_all_shared(self) -> None:
        everybody = set(range(len(self.plan.roster)))
        if self.shared and everybody <= self.shared | self.lost:
            closed = keyserver_pb2.ExchangeClosed(
                advertised=sorted(everybody),
                shared=sorted(self.shared),
                bytes_up=dict.fromkeys(self.shared, 100),
                bytes_down=dict.fromkeys(self.shared, 200),
            )
            self.exchange.append(keyserver_pb2.WatchExchangeResponse(closed=closed))
            self.exchange.close()


class Sessions:
    """What both scripted services know. Forgotten all at once by `restart`."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, ScriptedSession] = {}
        self.abandoned: list[bytes] = []

    def open(self, message: round_pb2.RoundPlan) -> bytes:
        plan = plan_from_proto(message)
        self._sessions.setdefault(plan.session_id, ScriptedSession(plan))
        return plan.session_id

    def get(self, session_id: bytes) -> ScriptedSession:
        if session_id not in self._sessions:
            raise UnknownSession("no such session")
        return self._sessions[session_id]

    def restart(self) -> None:
        for session in self._sessions.values():
            session.records.fail(UnknownSession("restarted"))
            session.exchange.fail(UnknownSession("restarted"))
        self._sessions.clear()


class ScriptedAggregator(aggregator_pb2_grpc.AggregatorServiceServicer):
    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.coordinator: Any = None
        self.report_errors: list[TacitError] = []
        self.forgot = False
        self.tamper: Callable[[AggregateInfo, bytes], tuple[AggregateInfo, bytes]] = lambda info, data: (info, data)
        self.sign: Callable[[str, Any], Any] = lambda kind, body: None
        self.frozen_as: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda survivors: survivors

    async def OpenAggregation(self, request: Any, context: Any) -> Any:
        return aggregator_pb2.OpenAggregationResponse(session_id=self.sessions.open(request.plan))

    async def WatchAggregation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for record in self.sessions.get(request.session_id).records.follow():
            yield aggregator_pb2.WatchAggregationResponse(upload=record)

    async def AdmitUploads(self, request: Any, context: Any) -> Any:
        self.sessions.get(request.session_id).admitted = tuple(request.eligible)
        return aggregator_pb2.AdmitUploadsResponse()

    async def FreezeSurvivors(self, request: Any, context: Any) -> Any:
        session = self.sessions.get(request.session_id)
        survivors = tuple(index for index in request.eligible if index in session.vectors)
        session.survivors = self.frozen_as(survivors)
        session.records.close()
        if session.plan.aggregation is Aggregation.PLAIN:
            await self.report(session)
        digests = {index: sha256(session.vectors[index].tobytes()).digest() for index in survivors}
        part = self.sign("frozen", frozen_body(UploadTree(session.plan.binding, digests))) if digests else None
        return aggregator_pb2.FreezeSurvivorsResponse(survivors=session.survivors, part=part)

    async def GetStatus(self, request: Any, context: Any) -> Any:
        known = [] if self.forgot else list(self.sessions._sessions)
        return status_pb2.GetStatusResponse(sessions=[status_pb2.SessionStatus(session_id=name) for name in known])

    async def AbandonAggregation(self, request: Any, context: Any) -> Any:
        self.sessions.abandoned.append(request.session_id)
        return aggregator_pb2.AbandonAggregationResponse()

    async def report(self, session: ScriptedSession) -> None:
        plan = session.plan
        total = sum(vector.astype(np.uint64) for vector in session.vectors.values())
        packed = pack(total.astype(np.uint32), plan.codec.ring_bits).tobytes()
        survivors = tuple(sorted(session.vectors))
        info = AggregateInfo(plan.session_id, survivors, int(total[0]), sha256(packed).digest())
        body = {
            "session": plan.binding.hex(),
            "survivors": list(survivors),
            "total_weight": info.total_weight,
            "aggregate_sha256": info.sha256.hex(),
        }
        try:
            await report_aggregate(self.coordinator, plan, *self.tamper(info, packed), part=self.sign("released", body))
        except TacitError as error:
            self.report_errors.append(error)
            raise


async def report_aggregate(
    stub: Any, plan: RoundPlan, info: AggregateInfo, packed: bytes, *, whole: bool = True, part: Any = None
) -> None:
    writer = ChunkWriter(packed, chunk_bytes=plan.chunk_bytes)

    async def parts() -> AsyncIterator[Any]:
        header = coordinator_pb2.AggregateHeader(info=aggregate_to_proto(info), stream=writer.header, part=part)
        yield coordinator_pb2.ReportAggregateRequest(header=header)
        for chunk in writer.chunks():
            yield coordinator_pb2.ReportAggregateRequest(chunk=chunk)
        if whole:
            yield coordinator_pb2.ReportAggregateRequest(trailer=writer.trailer)

    await send_stream(stub.ReportAggregate, parts(), timeout_s=30)


class ScriptedKeyServer(keyserver_pb2_grpc.KeyServerServiceServicer):
    def __init__(self, sessions: Sessions, aggregator: ScriptedAggregator) -> None:
        self.sessions = sessions
        self.aggregator = aggregator
        self.marked: list[int] = []
        self.beacons: list[Beacon] = []
        self.sign: Callable[[str, Any], Any] = lambda kind, body: None
        self.unmask_answer: Callable[[Any], Any] = lambda request: keyserver_pb2.UnmaskResponse(
            signed=request.survivors, revealed=request.survivors, bytes_up={0: 50}, bytes_down={0: 60}
        )

    async def OpenExchange(self, request: Any, context: Any) -> Any:
        return keyserver_pb2.OpenExchangeResponse(session_id=self.sessions.open(request.plan))

    async def WatchExchange(self, request: Any, context: Any) -> AsyncIterator[Any]:
        session = self.sessions.get(request.session_id)
        async for event in session.exchange.follow():
            if event.HasField("closed"):
                body = {
                    "session": session.plan.binding.hex(),
                    "directory": "",
                    "commitments_root": "",
                    "advertised": list(event.closed.advertised),
                    "shared": list(event.closed.shared),
                    "beacon": None,
                }
                if (part := self.sign("exchanged", body)) is not None:
                    event.closed.part.CopyFrom(part)
            yield event

    async def RevealBeacon(self, request: Any, context: Any) -> Any:
        self.sessions.get(request.session_id)
        self.beacons.append(beacon_from_proto(request.beacon))
        return keyserver_pb2.RevealBeaconResponse()

    async def MarkLost(self, request: Any, context: Any) -> Any:
        session = self.sessions.get(request.session_id)
        self.marked += request.indices
        session.lost |= set(request.indices)
        session.close_when_all_shared()
        return keyserver_pb2.MarkLostResponse()

    async def Unmask(self, request: Any, context: Any) -> Any:
        session = self.sessions.get(request.session_id)
        answer = self.unmask_answer(request)
        body = {
            "session": session.plan.binding.hex(),
            "survivors": list(request.survivors),
            "uploads_root": json.loads(request.frozen.body)["uploads_root"] if request.frozen.body else "",
            "signed": list(answer.signed),
            "revealed": list(answer.revealed),
            "dropouts": [],
            "failure": "",
        }
        if not answer.HasField("part") and (part := self.sign("unmasked", body)) is not None:
            answer.part.CopyFrom(part)
        if not answer.failure:
            await self.aggregator.report(session)
        return answer

    async def AbandonExchange(self, request: Any, context: Any) -> Any:
        self.sessions.abandoned.append(request.session_id)
        return keyserver_pb2.AbandonExchangeResponse()


Behaviour = Callable[["ScriptedSite", ScriptedSession, int], Awaitable[None]]


async def obedient(site: "ScriptedSite", session: ScriptedSession, index: int) -> None:
    """Share keys, download the model, upload."""
    if session.plan.aggregation is Aggregation.SECAGG:
        session.share(index)
    await site.download(session.plan)
    session.upload(index)


@dataclass
class ScriptedSite:
    client_id: str
    kit: "Kit"
    stub: Any
    behaviour: Behaviour = obedient
    events: list[Any] = field(default_factory=list)
    evaluate: bool = True

    async def watch(self) -> None:
        """Stay connected until cancelled, as the SDK does."""
        while True:
            call = self.stub.WatchRounds(coordinator_pb2.WatchRoundsRequest(sdk_version="test"))
            try:
                # A session that is gone is nothing that a site dies of.
                with suppress(grpc.aio.AioRpcError, TacitError):
                    async for response in call:
                        self.events.append(response)
                        await self._answer(response)
            finally:
                call.cancel()
            await asyncio.sleep(0.05)

    async def _answer(self, response: Any) -> None:
        if response.HasField("invitation"):
            plan = plan_from_proto(response.invitation)
            await self.behaviour(self, self.kit.sessions.get(plan.session_id), plan.index_of(self.client_id))
        if response.HasField("evaluation") and self.evaluate:
            answer = coordinator_pb2.ReportEvaluationRequest(
                task_id=response.evaluation.task_id, loss=0.5, num_samples=10, metrics={"accuracy": 0.75}
            )
            await self.stub.ReportEvaluation(answer, timeout=20)

    async def download(self, plan: RoundPlan) -> Tensors:
        request = coordinator_pb2.GetParametersRequest(job_id=plan.job_id, model_version=plan.model_version)
        return (await read_model(self.stub, request))[1]

    async def leave(self, plan: RoundPlan, reason: "round_pb2.DropoutReason.ValueType") -> None:
        request = coordinator_pb2.LeaveRoundRequest(session_id=plan.session_id, reason=reason)
        with rpc_errors():
            await self.stub.LeaveRound(request, timeout=20)


async def read_model(stub: Any, request: Any) -> tuple[Any, Tensors]:
    """Header and tensors of a model, checked."""
    reader: TensorReader | None = None
    header: Any = None
    with rpc_errors():
        async for part in stub.GetParameters(request, timeout=30):
            match part.WhichOneof("part"):
                case "header":
                    header = part.header
                    if header.unchanged:
                        return header, {}
                    reader = TensorReader(manifest_from_proto(header.manifest), header.stream, max_bytes=1 << 31)
                case "chunk":
                    assert reader is not None
                    reader.feed(part.chunk)
                case "trailer":
                    assert reader is not None
                    return header, reader.finish(part.trailer)
    raise AssertionError("the download ended without a trailer")


class Kit:
    """Everything around one coordinator."""

    def __init__(self, federation: Any, free_port: Callable[[], int], database_url: str = "") -> None:
        self.federation = federation
        self.stack = AsyncExitStack()
        self.sessions = Sessions()
        self.aggregator = ScriptedAggregator(self.sessions)
        self.keyserver = ScriptedKeyServer(self.sessions, self.aggregator)
        self.port = free_port()
        self.database_url = database_url
        self.sites: dict[str, ScriptedSite] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._coordinator = AsyncExitStack()
        self._addresses: dict[Role, str] = {}

    async def start(self, **settings: Any) -> None:
        self._addresses[Role.AGGREGATOR] = await self._serve(
            Role.AGGREGATOR, "fl_core.wire.v1.AggregatorService", aggregator_pb2_grpc, self.aggregator
        )
        self._addresses[Role.KEYSERVER] = await self._serve(
            Role.KEYSERVER, "fl_core.wire.v1.KeyServerService", keyserver_pb2_grpc, self.keyserver
        )
        await self.start_coordinator(**settings)
        self.aggregator.sign = partial(self.sign, Role.AGGREGATOR, "agg-1")
        self.keyserver.sign = partial(self.sign, Role.KEYSERVER, "key-1")
        self.operator = self.stub(Role.OPERATOR, "olga")
        self.aggregator.coordinator = self.stub(Role.AGGREGATOR, "agg-1")

    def sign(self, role: Role, name: str, kind: str, body: Any) -> Any:
        return part_to_proto(sign_part(kind, body, self.federation.credentials(role, name).signer()))

    async def start_coordinator(self, **settings: Any) -> None:
        fields = {
            "listen": f"127.0.0.1:{self.port}",
            "aggregator": self._addresses[Role.AGGREGATOR],
            "keyserver": self._addresses[Role.KEYSERVER],
            "presence_grace_s": 0.2,
            "service_patience_s": 1.0,
            "evaluation_timeout_s": 5.0,
            "database_url": self.database_url,
            **settings,
        }
        made = self.federation.settings(CoordinatorSettings, Role.COORDINATOR, "coord-1", **fields)
        await self._coordinator.enter_async_context(running_coordinator(made))

    async def stop_coordinator(self) -> None:
        await self._coordinator.aclose()
        self._coordinator = AsyncExitStack()

    async def close(self) -> None:
        for client_id in list(self._watching):
            await self.disconnect(client_id)
        await self.stop_coordinator()
        await self.stack.aclose()

    def stub(self, role: Role, name: str) -> Any:
        channel = open_channel(f"127.0.0.1:{self.port}", self.federation.credentials(role, name), Role.COORDINATOR)
        self.stack.push_async_callback(channel.close)
        return coordinator_pb2_grpc.CoordinatorServiceStub(channel)

    def connect(self, *names: str, behaviour: Behaviour = obedient) -> None:
        for name in names:
            site = self.sites[name] = ScriptedSite(name, self, self.stub(Role.SITE, name), behaviour)
            self._watching[name] = asyncio.create_task(site.watch())

    async def disconnect(self, name: str) -> None:
        task = self._watching.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def submit(self, tensors: Tensors = MODEL, **fields: object) -> str:
        response = await submit(self.operator, job_spec(**fields), tensors)
        return str(response.job_id)

    async def watch(self, job_id: str) -> tuple[Reports, Any]:
        """Reports of a job and its last status, once it has ended."""
        reports: Reports = []
        status: Any = None
        async with asyncio.timeout(30):
            with rpc_errors():
                async for event in self.operator.WatchJob(coordinator_pb2.WatchJobRequest(job_id=job_id)):
                    if event.HasField("report"):
                        reports.append(report_from_proto(event.report))
                    else:
                        status = event.status
        return reports, status

    async def run_job(self, **fields: object) -> tuple[Reports, Any]:
        return await self.watch(await self.submit(**fields))

    async def status(self, job_id: str = "") -> Any:
        return await self.operator.GetStatus(status_pb2.GetStatusRequest(job_id=job_id), timeout=20)

    async def until(self, condition: Callable[[Any], bool], job_id: str = "") -> Any:
        """The first status that fulfils a condition."""
        async with asyncio.timeout(20):
            while True:
                status = await self.status(job_id)
                if condition(status):
                    return status
                await asyncio.sleep(0.02)

    async def _serve(self, role: Role, service: str, module: Any, servicer: Any, **settings: Any) -> str:
        name = {Role.AGGREGATOR: "agg-1", Role.KEYSERVER: "key-1"}[role]
        kind = service.rsplit(".", 1)[-1]
        methods = {method: ANYONE for method in dir(getattr(module, f"{kind}Servicer")) if not method.startswith("_")}
        add = getattr(module, f"add_{kind}Servicer_to_server")
        server = running_server(
            self.federation.settings(ServiceSettings, role, name, **settings),
            role=role,
            roles_by_method=role_table(service, methods),
            add_servicers=lambda at: add(servicer, at),
        )
        return await self.stack.enter_async_context(server)


async def submit(
    stub: Any, spec: dict[str, object] | str, tensors: Tensors = MODEL, *, drop_parts: int = 0, **header: Any
) -> Any:
    """Submit a job; leaves out the last `drop_parts` messages of the stream."""
    manifest = manifest_of(tensors)
    writer = tensor_writer(tensors, manifest)
    text = spec if isinstance(spec, str) else json.dumps(spec)
    fields = {"spec_json": text, "manifest": manifest_to_proto(manifest), "stream": writer.header, **header}
    parts = [coordinator_pb2.SubmitJobRequest(header=coordinator_pb2.JobHeader(**fields))]
    parts += [coordinator_pb2.SubmitJobRequest(chunk=chunk) for chunk in writer.chunks()]
    parts += [coordinator_pb2.SubmitJobRequest(trailer=writer.trailer)]

    async def stream() -> AsyncIterator[Any]:
        for part in parts[: len(parts) - drop_parts]:
            yield part

    return await send_stream(stub.SubmitJob, stream(), timeout_s=30)


@asynccontextmanager
async def running_kit(federation: Any, free_port: Callable[[], int], **settings: Any) -> AsyncIterator[Kit]:
    kit = Kit(federation, free_port)
    try:
        await kit.start(**settings)
        yield kit
    finally:
        await kit.close()
