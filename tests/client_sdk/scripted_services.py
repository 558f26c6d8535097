"""Coordinator, aggregator and key server as scripts: real gRPC over mTLS, with faults that a test asks for."""

# ruff: noqa: N802 - the names of methods are those of the protocol

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from client_sdk import Array, EvaluationResult, SiteConfig, SitePolicy, TrainingContext, TrainResult
from fl_core.codec.packing import packed_bytes, unpack
from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import manifest_of
from fl_core.crypto.mask_prg import reduce_ring
from fl_core.errors import PeerLost, TacitError
from fl_core.rounds.plan import (
    Aggregation,
    ClientId,
    JobId,
    PhaseBounds,
    PhaseSchedule,
    RosterEntry,
    RoundPlan,
    ServiceEndpoint,
)
from fl_core.rounds.uploads import plain_vector
from fl_core.secagg.exchange import CollectingAdvertisements
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.messages import KeyDirectory, SurvivorSet
from fl_core.transport.channel import SERVER_OPTIONS
from fl_core.transport.errors import to_status
from fl_core.transport.identity import Role, RosterTrust, identity_of
from fl_core.transport.tls import LiveCredentials
from fl_core.wire import convert
from fl_core.wire.chunks import ChunkReader, model_digest, stream_parts, tensor_writer
from fl_core.wire.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    keyserver_pb2,
    keyserver_pb2_grpc,
    round_pb2,
    tensors_pb2,
)

MODEL: dict[str, Array] = {"layer.weight": np.ones((40, 30), np.float32), "layer.bias": np.zeros(30, np.float32)}
SCHEDULE = PhaseSchedule(
    **{
        name: PhaseBounds(20.0, 20.0)
        for name in ("recruiting", "advertising", "sharing", "uploading", "signing", "revealing")
    }
)


class Ticking:
    """A trainer that adds a constant, in place, and counts how often it was asked."""

    def __init__(self, step: float = 0.01, num_samples: int = 10) -> None:
        self.step = step
        self.num_samples = num_samples
        self.contexts: list[TrainingContext] = []

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        self.contexts.append(context)
        for tensor in parameters.values():
            tensor += self.step
        return TrainResult(parameters, self.num_samples, {"loss": 0.5})

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:
        return EvaluationResult(float(parameters["layer.weight"].mean()), 7, {"accuracy": 0.25})


async def refuse(context: Any, error: TacitError) -> None:
    status = to_status(error)
    await context.abort(status.code, status.details, status.metadata)


def caller(context: Any) -> str:
    return identity_of(context.auth_context()["x509_pem_cert"][0]).id


class ScriptedCoordinator(coordinator_pb2_grpc.CoordinatorServiceServicer):
    def __init__(self) -> None:
        self.events: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self.watching: set[str] = set()
        self.requests: list[coordinator_pb2.WatchRoundsRequest] = []
        self.left: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self.evaluations: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.models: dict[int, dict[str, Array]] = {0: MODEL}
        self.aggregates: dict[bytes, tuple[Any, bytes]] = {}
        self.downloads = 0
        self.answers_version: int | None = None
        self.truncates = False

    async def WatchRounds(self, request: Any, context: Any) -> AsyncIterator[Any]:
        client_id = caller(context)
        self.requests.append(request)
        self.watching.add(client_id)
        yield coordinator_pb2.WatchRoundsResponse(heartbeat=coordinator_pb2.Heartbeat())
        try:
            while (event := await self.events[client_id].get()) is not None:
                yield coordinator_pb2.WatchRoundsResponse(**event)
        finally:
            self.watching.discard(client_id)

    async def GetParameters(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.downloads += 1
        version = self.answers_version if self.answers_version is not None else request.model_version
        model = self.models[request.model_version]
        for part in stream_parts(tensor_writer(model, manifest_of(model), chunk_bytes=1024)):
            match part:
                case tensors_pb2.StreamHeader():
                    header = coordinator_pb2.ModelHeader(
                        job_id=request.job_id,
                        model_version=version,
                        model_digest=model_digest(model, manifest_of(model)),
                        manifest=convert.manifest_to_proto(manifest_of(model)),
                        stream=part,
                    )
                    yield coordinator_pb2.GetParametersResponse(header=header)
                case tensors_pb2.Chunk():
                    yield coordinator_pb2.GetParametersResponse(chunk=part)
                    if self.truncates:
                        return
                case _:
                    yield coordinator_pb2.GetParametersResponse(trailer=part)

    async def LeaveRound(self, request: Any, context: Any) -> Any:
        reason = convert.dropout_reason_from_proto(request.reason)
        self.left.put_nowait((caller(context), reason.value, request.detail))
        return coordinator_pb2.LeaveRoundResponse()

    async def ReportEvaluation(self, request: Any, context: Any) -> Any:
        self.evaluations.put_nowait((caller(context), request))
        return coordinator_pb2.ReportEvaluationResponse()

    async def ReportAggregate(self, request_iterator: Any, context: Any) -> Any:
        info, payload = None, bytearray()
        async for request in request_iterator:
            match request.WhichOneof("part"):
                case "header":
                    info = request.header.info
                    reader = ChunkReader(request.header.stream, max_bytes=1 << 24)
                case "chunk":
                    payload += reader.feed(request.chunk)
                case _:
                    reader.finish(request.trailer)
        assert info is not None
        self.aggregates[info.session_id] = info, bytes(payload)
        return coordinator_pb2.ReportAggregateResponse()

    def invite(self, plan: RoundPlan, *client_ids: str) -> None:
        for client_id in client_ids or [entry.client_id for entry in plan.roster]:
            self.events[client_id].put_nowait({"invitation": convert.plan_to_proto(plan)})

    def end_attempt(self, plan: RoundPlan, state: round_pb2.RoundState.ValueType, reason: Any = 0) -> None:
        ended = coordinator_pb2.AttemptEnded(
            job_id=plan.job_id, round_id=plan.round_id, attempt=plan.attempt, state=state, reason=reason
        )
        for entry in plan.roster:
            self.events[entry.client_id].put_nowait({"attempt_ended": ended})


class ScriptedAggregator(aggregator_pb2_grpc.AggregatorServiceServicer):
    """Keeps payloads. Faults happen as often as their counter says."""

    def __init__(self) -> None:
        self.uploads: dict[bytes, dict[int, bytes]] = defaultdict(dict)
        self.changed = asyncio.Condition()
        self.headers: list[Any] = []
        self.breaks = 0
        self.loses_answers = 0
        self.refusal: TacitError | None = None
        self.loses_refusals = False
        self.asked = 0

    async def UpdateParameters(self, request_iterator: Any, context: Any) -> Any:
        header = (await anext(request_iterator)).header
        self.headers.append(header)
        if self.refusal is not None and self.loses_refusals:
            await context.abort(grpc.StatusCode.INTERNAL, "Internal error from Core")
        if self.refusal is not None:
            await refuse(context, self.refusal)
        await context.send_initial_metadata(())
        payload = await self._read(request_iterator, header, context)
        async with self.changed:
            self.uploads[header.session_id][header.index] = payload
            self.changed.notify_all()
        reader = aggregator_pb2.UpdateParametersResponse(session_id=header.session_id, upload_sha256=_sha(payload))
        if self.loses_answers:
            self.loses_answers -= 1
            await context.abort(grpc.StatusCode.INTERNAL, "Internal error from Core")
        return reader

    async def _read(self, requests: Any, header: Any, context: Any) -> bytes:
        reader = ChunkReader(header.stream, max_bytes=1 << 24)
        payload = bytearray()
        async for request in requests:
            if request.WhichOneof("part") == "trailer":
                reader.finish(request.trailer)
                return bytes(payload)
            payload += reader.feed(request.chunk)
            if self.breaks:
                self.breaks -= 1
                await refuse(context, PeerLost("a broken connection"))
        raise AssertionError("an upload without a trailer")

    async def GetUpload(self, request: Any, context: Any) -> Any:
        self.asked += 1
        payload = self.uploads[request.session_id].get(request.index)
        if payload is None and self.refusal is not None:
            await refuse(context, self.refusal)
        if payload is None:
            return aggregator_pb2.GetUploadResponse(state=aggregator_pb2.UPLOAD_STATE_ABSENT)
        return aggregator_pb2.GetUploadResponse(state=aggregator_pb2.UPLOAD_STATE_ACCEPTED, upload_sha256=_sha(payload))

    async def wait_for(self, plan: RoundPlan, count: int) -> dict[int, Array]:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.uploads[plan.session_id]) >= count)
        return {index: _vector(plan, payload) for index, payload in self.uploads[plan.session_id].items()}


class ScriptedKeyServer(keyserver_pb2_grpc.KeyServerServiceServicer):
    """One session at a time, closed when the whole roster has answered."""

    def __init__(self) -> None:
        self.changed = asyncio.Condition()
        self.breaks_after: list[str] = []
        self.tamper: Callable[[KeyDirectory], KeyDirectory] = lambda directory: directory
        self.tamper_survivors: Callable[[SurvivorSet], SurvivorSet] = lambda survivors: survivors
        self.streams = 0
        self.reveals: list[bytes] = []

    def open(self, plan: RoundPlan, trust: Any) -> None:
        self.plan = plan
        verifier = RosterTrust(plan.roster, trust, datetime.now(UTC))
        self.advertisements = CollectingAdvertisements(plan.session_context(), verifier)
        self.directory: KeyDirectory | None = None
        self.sealed: Any = None
        self.relayed: Any = None
        self.shares_relayed: Any = None
        self.survivors: SurvivorSet | None = None
        self.uploads: UploadTree | None = None
        self.signatures: Any = None
        self.proof: Any = None
        self.collecting_reveals: Any = None

    async def ExchangeKeys(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.streams += 1
        size = len(self.plan.roster)
        index = (await anext(request_iterator)).hello.index
        advertisement = (await anext(request_iterator)).advertisement
        async with self.changed:
            self.advertisements.receive(convert.advertisement_from_proto(advertisement))
            if self.directory is None and len(self.advertisements.received) == size:
                self.sealed, self.directory = self.advertisements.close()
            self.changed.notify_all()
            await self._maybe_break("advertisement", context)
            await self.changed.wait_for(lambda: self.directory is not None)
        assert self.directory is not None
        yield keyserver_pb2.ExchangeKeysResponse(directory=convert.directory_to_proto(self.tamper(self.directory)))
        shares = (await anext(request_iterator)).shares
        async with self.changed:
            self.sealed.receive(index, convert.sealed_shares_from_proto(shares))
            await self._maybe_break("shares", context)
            if self.relayed is None and len(self.sealed.received) == size:
                self.shares_relayed, self.relayed = self.sealed.close()
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self.relayed is not None)
        yield keyserver_pb2.ExchangeKeysResponse(shares=convert.relayed_shares_to_proto(self.relayed[index]))

    async def RevealShares(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        index = (await anext(request_iterator)).hello.index
        async with self.changed:
            await self.changed.wait_for(lambda: self.survivors is not None)
        assert self.survivors is not None
        assert self.uploads is not None
        message = convert.survivors_to_proto(self.tamper_survivors(self.survivors))
        message.inclusion_path.extend(self.uploads.path(index))
        yield keyserver_pb2.RevealSharesResponse(survivors=message)
        signature = (await anext(request_iterator)).signature
        async with self.changed:
            self.signatures.receive(convert.signature_from_proto(signature))
            if self.proof is None and len(self.signatures.received) == len(self.survivors.survivors):
                self.collecting_reveals, self.proof = self.signatures.close()
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self.proof is not None)
        yield keyserver_pb2.RevealSharesResponse(proof=convert.proof_to_proto(self.proof))
        shares = (await anext(request_iterator)).shares
        self.reveals.append(shares.SerializeToString())
        async with self.changed:
            await self._maybe_break("reveal", context)
            self.collecting_reveals.receive(convert.revealed_from_proto(shares))
            self.changed.notify_all()
        yield keyserver_pb2.RevealSharesResponse(done=keyserver_pb2.RevealDone())

    async def unmask(self, survivors: tuple[int, ...], payloads: dict[int, bytes]) -> Array:
        """Run rounds 3 and 4 with these survivors and what they uploaded; the combined mask."""
        async with asyncio.timeout(20), self.changed:
            digests = {index: _sha(payloads.get(index, b"")) for index in survivors}
            self.uploads = UploadTree(self.plan.binding, digests)
            self.survivors = SurvivorSet(survivors, self.uploads.root)
            self.signatures = self.shares_relayed.freeze(self.survivors)
            self.changed.notify_all()
            await self.changed.wait_for(
                lambda: self.proof is not None and len(self.collecting_reveals.received) == len(survivors)
            )
            mask: Array = self.collecting_reveals.close().combined_mask()
        return mask

    async def _maybe_break(self, step: str, context: Any) -> None:
        if step in self.breaks_after:
            self.breaks_after.remove(step)
            self.changed.notify_all()
            await refuse(context, PeerLost("a broken connection"))


@dataclass
class Cluster:
    """Three scripted services of one federation, and the configuration of its sites."""

    federation: Any
    folder: Path
    coordinator: ScriptedCoordinator = field(default_factory=ScriptedCoordinator)
    aggregator: ScriptedAggregator = field(default_factory=ScriptedAggregator)
    keyserver: ScriptedKeyServer = field(default_factory=ScriptedKeyServer)
    endpoints: dict[Role, ServiceEndpoint] = field(default_factory=dict)
    servers: dict[Role, grpc.aio.Server] = field(default_factory=dict)

    async def start(self) -> None:
        await self.listen(
            Role.COORDINATOR, coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server, self.coordinator
        )
        await self.listen(Role.AGGREGATOR, aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server, self.aggregator)
        await self.listen(Role.KEYSERVER, keyserver_pb2_grpc.add_KeyServerServiceServicer_to_server, self.keyserver)

    async def listen(
        self, role: Role, add: Callable[..., None], servicer: Any, port: int = 0, service_id: str | None = None
    ) -> None:
        credentials = self.federation.credentials(role, service_id or f"{role.value}-1")
        server = grpc.aio.server(options=SERVER_OPTIONS)
        add(servicer, server)
        port = server.add_secure_port(f"127.0.0.1:{port}", LiveCredentials(credentials).server_credentials())
        await server.start()
        self.servers[role] = server
        self.endpoints[role] = ServiceEndpoint(
            credentials.identity.id, f"127.0.0.1:{port}", credentials.identity.certificate_sha256
        )

    async def stop(self) -> None:
        for server in self.servers.values():
            await server.stop(0)

    def config(self, client_id: str, **changes: Any) -> SiteConfig:
        files = self.federation.issue(Role.SITE, client_id)
        config = SiteConfig(
            coordinator=self.endpoints[Role.COORDINATOR].address,
            certificate=files.certificate,
            key=files.key,
            ca=files.ca,
            crl=files.crl,
            state_dir=self.folder / f"state-{client_id}",
            record_plain_updates=self.folder / "plain",
            policy=SitePolicy(min_cohort=1),
        )
        return replace(config, **changes)

    def plan(self, *client_ids: str, **changes: Any) -> RoundPlan:
        roster = tuple(
            RosterEntry(ClientId(name), self.federation.credentials(Role.SITE, name).identity.certificate_sha256)
            for name in sorted(client_ids)
        )
        size = len(roster)
        manifest = manifest_of(MODEL)
        plan = RoundPlan(
            job_id=JobId("job"),
            round_id=1,
            attempt=1,
            aggregation=Aggregation.SECAGG,
            model_version=0,
            model_digest=model_digest(MODEL, manifest),
            manifest=manifest,
            codec=CodecSpec(clip=0.1, bits=12, ring_bits=20),
            threshold=size // 2 + 1,
            min_survivors=size // 2 + 1,
            max_dropout=0.0,
            max_corrupt=0.0,
            max_weight=100,
            chunk_bytes=1024,
            schedule=SCHEDULE,
            aggregator=self.endpoints[Role.AGGREGATOR],
            keyserver=self.endpoints[Role.KEYSERVER],
            roster=roster,
            training={"epochs": 1},
        )
        return replace(plan, **changes)

    def plain_plan(self, *client_ids: str, **changes: Any) -> RoundPlan:
        plain = {"aggregation": Aggregation.PLAIN, "keyserver": None}
        return self.plan(*client_ids, **{**plain, **changes})

    def open(self, plan: RoundPlan) -> None:
        self.keyserver.open(plan, self.federation.trust)

    def plain_sum(self, plan: RoundPlan, indices: tuple[int, ...]) -> Array:
        """The sum of what the sites recorded before masking, in the ring."""
        total = np.zeros(plan.length, np.uint32)
        for index in indices:
            with np.load(self.folder / "plain" / f"{plan.session_id.hex()}-{index}.npz") as file:
                total += file["vector"]
        reduce_ring(total, plan.codec.ring_bits)
        return total


def expected_upload_bytes(plan: RoundPlan) -> int:
    return packed_bytes(plan.length, plan.codec.ring_bits)


def _sha(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


def _vector(plan: RoundPlan, payload: bytes) -> Array:
    if plan.aggregation is Aggregation.PLAIN:
        return plain_vector(plan, payload)
    return unpack(payload, plan.length, plan.codec.ring_bits)
