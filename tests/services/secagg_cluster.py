"""Aggregator, key server and a fake coordinator over real mTLS, and sites that speak to them message by message."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

import grpc
import numpy as np
from settling import settle

from fl_core.codec.packing import pack, unpack
from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.crypto.mask_prg import RingVector, lane_dtype
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
from fl_core.rounds.uploads import upload_payload
from fl_core.secagg.client import AwaitingSurvivors, advertise
from fl_core.secagg.inclusion import UploadTree, check_included
from fl_core.secagg.transcript import frozen_body, sign_part
from fl_core.transport.channel import open_channel
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role, RosterTrust
from fl_core.transport.peer import send_stream
from fl_core.transport.tls import Credentials, LiveCredentials
from fl_core.transport.true_status import call_errors
from fl_core.wire import convert
from fl_core.wire.chunks import ChunkReader, ChunkWriter, stream_parts
from fl_core.wire.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    keyserver_pb2,
    keyserver_pb2_grpc,
    tensors_pb2,
)
from services.aggregator import program as aggregator_program
from services.aggregator.service import ROLES as AGGREGATOR_ROLES
from services.aggregator.service import AggregatorService
from services.aggregator.settings import AggregatorSettings
from services.keyserver import program as keyserver_program
from services.keyserver.service import ROLES as KEYSERVER_ROLES
from services.keyserver.settings import KeyServerSettings
from services.runtime.server import running_server
from services.runtime.settings import ServiceSettings

RING_BITS = 16
LEVEL_BITS = 8
FAST = PhaseSchedule(
    advertising=PhaseBounds(2.0, 20.0),
    sharing=PhaseBounds(2.0, 20.0),
    uploading=PhaseBounds(2.0, 20.0),
    signing=PhaseBounds(2.0, 20.0),
    revealing=PhaseBounds(2.0, 20.0),
)


@dataclass
class Reported:
    """What the coordinator was told by ReportAggregate."""

    info: Any
    vector: RingVector
    sha256: bytes


class FakeCoordinator(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """Takes aggregates; verifies the stream and nothing else."""

    def __init__(self) -> None:
        self.reports: list[Reported] = []
        self.failures: list[TacitError] = []

    async def ReportAggregate(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> coordinator_pb2.ReportAggregateResponse:
        if self.failures:
            raise self.failures.pop()
        requests = aiter(request_iterator)
        header = (await anext(requests)).header
        reader, data = ChunkReader(header.stream, max_bytes=1 << 30), b""
        async for request in requests:
            if request.WhichOneof("part") == "trailer":
                digest = reader.finish(request.trailer)
                break
            data += reader.feed(request.chunk)
        length = len(data) * 8 // RING_BITS
        self.reports.append(Reported(header.info, unpack(data, length, RING_BITS), digest))
        return coordinator_pb2.ReportAggregateResponse()


@dataclass
class Cluster:
    """Addresses and identities of a small federation."""

    federation: Any
    coordinator: FakeCoordinator
    aggregator_settings: AggregatorSettings
    keyserver_settings: KeyServerSettings
    aggregator_service: AggregatorService
    addresses: dict[Role, str]
    channels: AsyncExitStack
    open: dict[tuple[str, Role], grpc.aio.Channel] = field(default_factory=dict)
    frozen: dict[bytes, Any] = field(default_factory=dict)

    def credentials(self, role: Role, subject_id: str) -> Credentials:
        return self.federation.credentials(role, subject_id)

    async def channel(self, caller: Credentials, role: Role) -> grpc.aio.Channel:
        key = (caller.identity.name, role)
        if key not in self.open:
            channel = open_channel(self.addresses[role], caller, role)
            self.open[key] = await self.channels.enter_async_context(channel)
        return self.open[key]

    async def aggregator(self, role: Role = Role.COORDINATOR, subject_id: str = "coord") -> Any:
        channel = await self.channel(self.credentials(role, subject_id), Role.AGGREGATOR)
        return aggregator_pb2_grpc.AggregatorServiceStub(channel)

    async def keyserver(self, role: Role = Role.COORDINATOR, subject_id: str = "coord") -> Any:
        channel = await self.channel(self.credentials(role, subject_id), Role.KEYSERVER)
        return keyserver_pb2_grpc.KeyServerServiceStub(channel)

    def endpoint(self, role: Role, service_id: str) -> ServiceEndpoint:
        fingerprint = self.credentials(role, service_id).identity.certificate_sha256
        return ServiceEndpoint(service_id, self.addresses[role], fingerprint)

    def plan(self, *, sites: int = 5, size: int = 1000, **changes: Any) -> RoundPlan:
        names = [f"site-{index}" for index in range(sites)]
        roster = tuple(
            RosterEntry(ClientId(name), self.credentials(Role.SITE, name).identity.certificate_sha256) for name in names
        )
        plan = RoundPlan(
            job_id=JobId("job"),
            round_id=1,
            attempt=1,
            aggregation=Aggregation.SECAGG,
            model_version=7,
            model_digest=bytes(32),
            manifest=TensorManifest((TensorSpec("weight", "float32", (size,)),)),
            codec=CodecSpec(clip=1.0, bits=LEVEL_BITS, ring_bits=RING_BITS),
            threshold=sites // 2 + 1,
            min_survivors=sites // 2 + 1,
            max_dropout=0.3,
            max_corrupt=0.0,
            max_weight=200,
            chunk_bytes=256,
            schedule=FAST,
            aggregator=self.endpoint(Role.AGGREGATOR, "agg"),
            keyserver=self.endpoint(Role.KEYSERVER, "keys"),
            roster=roster,
        )
        return replace(plan, **changes)

    def plain_plan(self, **changes: Any) -> RoundPlan:
        return self.plan(aggregation=Aggregation.PLAIN, keyserver=None, **changes)

    async def site(self, plan: RoundPlan, index: int) -> "FakeSite":
        credentials = self.credentials(Role.SITE, plan.roster[index].client_id)
        return FakeSite(
            self,
            plan,
            index,
            credentials,
            aggregator_pb2_grpc.AggregatorServiceStub(await self.channel(credentials, Role.AGGREGATOR)),
            keyserver_pb2_grpc.KeyServerServiceStub(await self.channel(credentials, Role.KEYSERVER)),
        )

    async def open_plan(self, plan: RoundPlan, *, admit: Iterable[int] | None = None) -> bytes:
        """Open the sessions; these sites may upload, all of them when none are given."""
        wire = convert.plan_to_proto(plan)
        with rpc_errors():
            opened = await (await self.aggregator()).OpenAggregation(aggregator_pb2.OpenAggregationRequest(plan=wire))
            if plan.keyserver is not None:
                await (await self.keyserver()).OpenExchange(keyserver_pb2.OpenExchangeRequest(plan=wire))
        await self.admit(plan, range(len(plan.roster)) if admit is None else admit)
        return opened.session_id

    async def exchange_end(self, plan: RoundPlan) -> list[keyserver_pb2.WatchExchangeResponse]:
        """Every event of the exchange, up to its end."""
        stub = await self.keyserver()
        request = keyserver_pb2.WatchExchangeRequest(session_id=plan.session_id)
        with rpc_errors():
            return [event async for event in stub.WatchExchange(request, timeout=20)]

    async def admit(self, plan: RoundPlan, eligible: Iterable[int]) -> None:
        request = aggregator_pb2.AdmitUploadsRequest(session_id=plan.session_id, eligible=list(eligible))
        with rpc_errors():
            await (await self.aggregator()).AdmitUploads(request, timeout=30)

    async def freeze(self, plan: RoundPlan, eligible: Iterable[int]) -> tuple[int, ...]:
        request = aggregator_pb2.FreezeSurvivorsRequest(session_id=plan.session_id, eligible=list(eligible))
        with rpc_errors():
            response = await (await self.aggregator()).FreezeSurvivors(request, timeout=20)
        self.frozen[plan.session_id] = response.part
        return tuple(response.survivors)

    async def unmask(
        self, plan: RoundPlan, survivors: Iterable[int], frozen: Any = None
    ) -> keyserver_pb2.UnmaskResponse:
        """Unmask; as long as nothing else is given, with what the aggregator stated when it froze the session."""
        survivors = tuple(survivors)
        request = keyserver_pb2.UnmaskRequest(
            session_id=plan.session_id, survivors=survivors, frozen=frozen or self.state_uploads(plan, survivors)
        )
        with rpc_errors():
            return await (await self.keyserver()).Unmask(request, timeout=30)

    def state_uploads(self, plan: RoundPlan, survivors: tuple[int, ...]) -> Any:
        """What the aggregator stated about the uploads of these survivors; made up when it did not."""
        stated = self.frozen.get(plan.session_id)
        if stated is not None and tuple(json.loads(stated.body)["survivors"]) == survivors:
            return stated
        if not survivors:
            return None
        tree = UploadTree(plan.binding, {index: bytes(32) for index in survivors})
        signer = self.credentials(Role.AGGREGATOR, "agg").signer()
        return convert.part_to_proto(sign_part("frozen", frozen_body(tree), signer))

    async def mark_lost(self, plan: RoundPlan, *indices: int) -> None:
        request = keyserver_pb2.MarkLostRequest(session_id=plan.session_id, indices=indices)
        with rpc_errors():
            await (await self.keyserver()).MarkLost(request, timeout=30)

    async def uploads(self, plan: RoundPlan) -> list[aggregator_pb2.UploadRecord]:
        """Every upload record, up to the freezing."""
        stub = await self.aggregator()
        request = aggregator_pb2.WatchAggregationRequest(session_id=plan.session_id)
        with rpc_errors():
            return [event.upload async for event in stub.WatchAggregation(request, timeout=20)]


async def sent(aggregator: Any, requests: AsyncIterator[aggregator_pb2.UpdateParametersRequest]) -> bytes:
    """Send one upload; the digest that the aggregator acknowledged."""
    answer = await send_stream(aggregator.UpdateParameters, requests, timeout_s=20)
    digest: bytes = answer.upload_sha256
    return digest


@dataclass
class FakeSite:
    """A site that runs the real phases and can stop after any message."""

    cluster: Cluster
    plan: RoundPlan
    index: int
    credentials: Credentials
    aggregator: Any
    keyserver: Any
    awaiting: AwaitingSurvivors | None = None
    masked: RingVector | None = None

    @property
    def hello(self) -> keyserver_pb2.SessionHello:
        return keyserver_pb2.SessionHello(session_id=self.plan.session_id, index=self.index)

    @property
    def plain(self) -> RingVector:
        """This site's coordinates, the same each time."""
        return plain_vector(self.plan, self.index)

    def advertised(self) -> tuple[Any, Any]:
        """Fresh keys: the next phase and the message."""
        trust = RosterTrust(self.plan.roster, self.cluster.federation.trust, datetime.now(UTC))
        return advertise(self.plan.session_context(), self.index, self.credentials.signer(), trust, os.urandom)

    async def exchange(self, stop_after: str = "", *, advertised: tuple[Any, Any] | None = None) -> None:
        """Rounds 0 and 1. `stop_after` is "keys" or "shares": the stream is cancelled after that message."""
        collecting, advertisement = advertised or self.advertised()
        call = self.keyserver.ExchangeKeys(timeout=20)
        async with call_errors(call):
            await call.write(keyserver_pb2.ExchangeKeysRequest(hello=self.hello))
            wire = convert.advertisement_to_proto(advertisement)
            await call.write(keyserver_pb2.ExchangeKeysRequest(advertisement=wire))
            directory = await read(call)
            if stop_after == "keys":
                call.cancel()
                return
            phase, sealed = collecting.step(convert.directory_from_proto(directory.directory))
            await call.write(keyserver_pb2.ExchangeKeysRequest(shares=convert.sealed_shares_to_proto(sealed)))
            if stop_after == "shares":
                await settle()
                call.cancel()
                return
            relayed = convert.relayed_shares_from_proto((await read(call)).shares)
        self.awaiting, masked = phase.step(relayed).step(self.plain)
        self.masked = masked.vector

    async def upload(self, payload: Any = None, **changes: Any) -> bytes:
        """The upload; `changes` are those of `upload_requests`."""
        if payload is None:
            vector = self.plain if self.masked is None else self.masked
            payload = upload_payload(self.plan, vector)
        return await sent(self.aggregator, upload_requests(self.plan, self.index, payload, **changes))

    async def upload_state(self) -> aggregator_pb2.GetUploadResponse:
        request = aggregator_pb2.GetUploadRequest(session_id=self.plan.session_id, index=self.index)
        with rpc_errors():
            return await self.aggregator.GetUpload(request, timeout=30)

    async def reveal(self, stop_after: str = "") -> None:
        """Rounds 3 and 4. `stop_after` is "hello" or "signature"."""
        assert self.awaiting is not None
        call = self.keyserver.RevealShares(timeout=20)
        async with call_errors(call):
            await call.write(keyserver_pb2.RevealSharesRequest(hello=self.hello))
            told = (await read(call)).survivors
            survivors = convert.survivors_from_proto(told)
            assert self.masked is not None
            upload = sha256(pack(self.masked, self.plan.codec.ring_bits)).digest()
            path = convert.inclusion_path_from_proto(told)
            check_included(self.plan.session_context(), survivors, self.index, upload, path)
            if stop_after == "hello":
                call.cancel()
                return
            phase, signature = self.awaiting.step(survivors)
            await call.write(keyserver_pb2.RevealSharesRequest(signature=convert.signature_to_proto(signature)))
            if stop_after == "signature":
                await read(call)
                call.cancel()
                return
            proof = convert.proof_from_proto((await read(call)).proof)
            _, revealed = phase.step(proof)
            await call.write(keyserver_pb2.RevealSharesRequest(shares=convert.revealed_to_proto(revealed)))
            assert (await read(call)).WhichOneof("message") == "done"


async def read(call: Any) -> Any:
    """The next response; the error of the call when there is none."""
    response = await call.read()
    if response is grpc.aio.EOF:
        await call.code()
        await anext(aiter(call), None)
        raise PeerLost("the stream ended")
    return response


def plain_vector(plan: RoundPlan, index: int) -> RingVector:
    drawn = np.random.default_rng(index).integers(0, 1 << plan.codec.bits, plan.length)
    vector = drawn.astype(lane_dtype(plan.codec.ring_bits))
    vector[0], vector[1] = 10 + index, 1
    return vector


def plain_sum(plan: RoundPlan, indices: Iterable[int]) -> RingVector:
    total = sum(plain_vector(plan, index).astype(np.uint64) for index in indices)
    return np.asarray(total).astype(lane_dtype(plan.codec.ring_bits))


async def upload_requests(
    plan: RoundPlan,
    index: int,
    payload: Any,
    *,
    chunk_bytes: int | None = None,
    total_bytes: int | None = None,
    model_version: int | None = None,
    stop_after: int | None = None,
    trailer: tensors_pb2.StreamTrailer | None = None,
    gate: asyncio.Event | None = None,
) -> AsyncIterator[aggregator_pb2.UpdateParametersRequest]:
    """The messages of one upload, as they should be or with something wrong.

    `stop_after` ends the stream after so many chunks and without a trailer; `gate` holds back the trailer.
    """
    writer = ChunkWriter(memoryview(payload), chunk_bytes=chunk_bytes or plan.chunk_bytes)
    for part in stream_parts(writer):
        match part:
            case tensors_pb2.StreamHeader():
                header = aggregator_pb2.UpdateHeader(
                    session_id=plan.session_id,
                    index=index,
                    model_version=plan.model_version if model_version is None else model_version,
                    stream=tensors_pb2.StreamHeader(
                        total_bytes=part.total_bytes if total_bytes is None else total_bytes,
                        chunk_bytes=part.chunk_bytes,
                    ),
                )
                yield aggregator_pb2.UpdateParametersRequest(header=header)
            case tensors_pb2.Chunk():
                if stop_after is not None and part.index >= stop_after:
                    return
                yield aggregator_pb2.UpdateParametersRequest(chunk=part)
            case tensors_pb2.StreamTrailer():
                if stop_after is not None:
                    return
                if gate is not None:
                    await gate.wait()
                yield aggregator_pb2.UpdateParametersRequest(trailer=trailer or part)


def mask_requests(plan: RoundPlan, survivors: Iterable[int], mask: RingVector) -> Any:
    async def requests() -> AsyncIterator[aggregator_pb2.SubmitMaskRequest]:
        writer = ChunkWriter(memoryview(pack(mask, plan.codec.ring_bits)), chunk_bytes=plan.chunk_bytes)
        header = aggregator_pb2.MaskHeader(session_id=plan.session_id, survivors=list(survivors), stream=writer.header)
        yield aggregator_pb2.SubmitMaskRequest(header=header)
        for chunk in writer.chunks():
            yield aggregator_pb2.SubmitMaskRequest(chunk=chunk)
        yield aggregator_pb2.SubmitMaskRequest(trailer=writer.trailer)

    return requests()


@asynccontextmanager
async def running_keyserver(settings: KeyServerSettings) -> AsyncIterator[str]:
    """A key server on its own state; its address."""
    async with keyserver_program.open_service(settings) as service:
        add = partial(keyserver_program.add_servicers, service)
        async with running_server(
            settings, role=Role.KEYSERVER, roles_by_method=KEYSERVER_ROLES, add_servicers=add
        ) as address:
            yield address


@asynccontextmanager
async def running_cluster(
    federation: Any, aggregator: dict[str, Any] | None = None, keyserver: dict[str, Any] | None = None
) -> AsyncIterator[Cluster]:
    """Three services in this process, over mTLS; `aggregator` and `keyserver` are settings of theirs."""
    async with AsyncExitStack() as stack:
        coordinator = FakeCoordinator()
        coordinator_address = await stack.enter_async_context(_coordinator(federation, coordinator))
        settings = federation.settings(
            AggregatorSettings, Role.AGGREGATOR, "agg", coordinator=coordinator_address, **(aggregator or {})
        )
        service = AggregatorService(settings, LiveCredentials(settings.credentials()))
        stack.callback(service.close)
        add = partial(aggregator_program.add_servicers, service)
        aggregator_address = await stack.enter_async_context(
            running_server(settings, role=Role.AGGREGATOR, roles_by_method=AGGREGATOR_ROLES, add_servicers=add)
        )
        keys = federation.settings(KeyServerSettings, Role.KEYSERVER, "keys", **(keyserver or {}))
        keyserver_address = await stack.enter_async_context(running_keyserver(keys))
        addresses = {
            Role.COORDINATOR: coordinator_address,
            Role.AGGREGATOR: aggregator_address,
            Role.KEYSERVER: keyserver_address,
        }
        channels = await stack.enter_async_context(AsyncExitStack())
        yield Cluster(federation, coordinator, settings, keys, service, addresses, channels)


@asynccontextmanager
async def _coordinator(federation: Any, servicer: FakeCoordinator) -> AsyncIterator[str]:
    settings = federation.settings(ServiceSettings, Role.COORDINATOR, "coord")
    roles = {"/fl_core.wire.v1.CoordinatorService/ReportAggregate": frozenset({Role.AGGREGATOR})}

    def add(server: grpc.aio.Server) -> None:
        coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(servicer, server)

    async with running_server(settings, role=Role.COORDINATOR, roles_by_method=roles, add_servicers=add) as address:
        yield address


def digest(payload: Any) -> bytes:
    return sha256(payload).digest()
