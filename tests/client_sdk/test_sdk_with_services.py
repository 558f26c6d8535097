"""Sites against the real aggregator and key server; only the coordinator is a script."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_services import Cluster, Ticking

from client_sdk import SiteObserver, SitePolicy
from fl_core.codec.packing import pack, unpack
from fl_core.rounds.plan import RoundPlan, ServiceEndpoint, SparseGraph
from fl_core.secagg.beacon import SecretBeacon, make_beacon
from fl_core.secagg.degrees import Profile
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.tls import LiveCredentials
from fl_core.wire import convert
from fl_core.wire.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    coordinator_pb2_grpc,
    keyserver_pb2,
    keyserver_pb2_grpc,
)
from services.aggregator import program as aggregator_program
from services.aggregator.service import ROLES as AGGREGATOR_ROLES
from services.aggregator.service import AggregatorService
from services.aggregator.settings import AggregatorSettings
from services.keyserver import program as keyserver_program
from services.keyserver.service import ROLES as KEYSERVER_ROLES
from services.keyserver.settings import KeyServerSettings
from services.runtime.server import running_server

SITES = ("alpha", "beta", "gamma", "delta", "epsilon")
TakePart = Callable[..., "asyncio.Task[None]"]


class Conductor:
    """The coordinator's side of one attempt, with the real services."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        credentials = cluster.federation.credentials(Role.COORDINATOR, "coordinator-1")
        ends = cluster.endpoints
        self.channels = [
            open_channel(ends[role].address, credentials, role) for role in (Role.AGGREGATOR, Role.KEYSERVER)
        ]
        self.aggregator: Any = aggregator_pb2_grpc.AggregatorServiceStub(self.channels[0])
        self.keyserver: Any = keyserver_pb2_grpc.KeyServerServiceStub(self.channels[1])

    async def open(self, plan: RoundPlan) -> None:
        message = convert.plan_to_proto(plan)
        await self.aggregator.OpenAggregation(aggregator_pb2.OpenAggregationRequest(plan=message))
        await self.keyserver.OpenExchange(keyserver_pb2.OpenExchangeRequest(plan=message))
        self.cluster.coordinator.invite(plan)

    async def shared(self, plan: RoundPlan) -> tuple[int, ...]:
        request = keyserver_pb2.WatchExchangeRequest(session_id=plan.session_id)
        async for event in self.keyserver.WatchExchange(request, timeout=30):
            if event.WhichOneof("event") == "closed":
                await self.aggregator.AdmitUploads(
                    aggregator_pb2.AdmitUploadsRequest(session_id=plan.session_id, eligible=event.closed.shared)
                )
                return tuple(event.closed.shared)
        raise AssertionError("the exchange did not close")

    async def reveal_beacon(self, plan: RoundPlan, secret: SecretBeacon) -> None:
        request = keyserver_pb2.WatchExchangeRequest(session_id=plan.session_id)
        async for event in self.keyserver.WatchExchange(request, timeout=30):
            if event.WhichOneof("event") == "frozen":
                beacon = secret.reveal(plan.binding, event.frozen.directory_digest)
                answer = keyserver_pb2.RevealBeaconRequest(
                    session_id=plan.session_id, beacon=convert.beacon_to_proto(beacon)
                )
                await self.keyserver.RevealBeacon(answer, timeout=30)
                return
        raise AssertionError("the keys were not frozen")

    async def uploaded(self, plan: RoundPlan, count: int) -> None:
        request = aggregator_pb2.WatchAggregationRequest(session_id=plan.session_id)
        accepted = 0
        async for event in self.aggregator.WatchAggregation(request, timeout=30):
            accepted += event.upload.accepted
            if accepted == count:
                return

    async def unmask(self, plan: RoundPlan, eligible: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
        frozen = await self.aggregator.FreezeSurvivors(
            aggregator_pb2.FreezeSurvivorsRequest(session_id=plan.session_id, eligible=eligible)
        )
        request = keyserver_pb2.UnmaskRequest(
            session_id=plan.session_id, survivors=frozen.survivors, frozen=frozen.part
        )
        return tuple(frozen.survivors), await self.keyserver.Unmask(request, timeout=30)


@pytest.fixture
async def conductor(federation: Any, tmp_path: Path) -> AsyncIterator[Conductor]:
    cluster = Cluster(federation, tmp_path)
    await cluster.listen(
        Role.COORDINATOR, coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server, cluster.coordinator
    )
    async with AsyncExitStack() as stack:
        await _start_aggregator(cluster, stack)
        await _start_keyserver(cluster, stack)
        conductor = Conductor(cluster)
        yield conductor
        for channel in conductor.channels:
            await channel.close()
        await cluster.stop()


async def _start_aggregator(cluster: Cluster, stack: AsyncExitStack) -> None:
    coordinator = cluster.endpoints[Role.COORDINATOR].address
    settings: AggregatorSettings = cluster.federation.settings(
        AggregatorSettings, Role.AGGREGATOR, "aggregator-1", coordinator=coordinator
    )
    service = AggregatorService(settings, LiveCredentials(settings.credentials()))
    stack.callback(service.close)
    add = partial(aggregator_program.add_servicers, service)
    address = await stack.enter_async_context(
        running_server(settings, role=Role.AGGREGATOR, roles_by_method=AGGREGATOR_ROLES, add_servicers=add)
    )
    _register(cluster, Role.AGGREGATOR, "aggregator-1", address)


async def _start_keyserver(cluster: Cluster, stack: AsyncExitStack) -> None:
    settings: KeyServerSettings = cluster.federation.settings(KeyServerSettings, Role.KEYSERVER, "keyserver-1")
    service = await stack.enter_async_context(keyserver_program.open_service(settings))
    add = partial(keyserver_program.add_servicers, service)
    address = await stack.enter_async_context(
        running_server(settings, role=Role.KEYSERVER, roles_by_method=KEYSERVER_ROLES, add_servicers=add)
    )
    _register(cluster, Role.KEYSERVER, "keyserver-1", address)


def _register(cluster: Cluster, role: Role, service_id: str, address: str) -> None:
    fingerprint = cluster.federation.credentials(role, service_id).identity.certificate_sha256
    cluster.endpoints[role] = ServiceEndpoint(service_id, address, fingerprint)


def _check_exact(conductor: Conductor, plan: RoundPlan, survivors: tuple[int, ...]) -> None:
    info, payload = conductor.cluster.coordinator.aggregates[plan.session_id]
    expected = conductor.cluster.plain_sum(plan, survivors)
    assert np.array_equal(unpack(payload, plan.length, plan.codec.ring_bits), expected)
    assert info.sha256 == hashlib.sha256(pack(expected, plan.codec.ring_bits).data).digest()
    assert tuple(info.survivors) == survivors


async def test_five_sites_and_real_services_give_the_exact_sum(conductor: Conductor, take_part: TakePart) -> None:
    plan = conductor.cluster.plan(*SITES)
    for step, name in enumerate(SITES, start=1):
        take_part(conductor.cluster.config(name), Ticking(0.01 * step, step))
    await conductor.open(plan)
    eligible = await conductor.shared(plan)
    await conductor.uploaded(plan, 5)
    survivors, response = await conductor.unmask(plan, eligible)
    assert (survivors, response.failure) == ((0, 1, 2, 3, 4), 0)
    _check_exact(conductor, plan, survivors)


async def test_ten_sites_on_a_sparse_graph_give_the_exact_sum(conductor: Conductor, take_part: TakePart) -> None:
    names = tuple(f"site-{number}" for number in range(10))
    secret = make_beacon(os.urandom)
    graph = SparseGraph(6, Profile.EQUIVOCATION_SAFE, secret.commitment)
    plan = conductor.cluster.plan(*names, graph=graph, threshold=4, min_survivors=9, max_dropout=0.1)
    policy = SitePolicy(min_cohort=1, min_corrupt=0.0)
    for step, name in enumerate(names, start=1):
        take_part(conductor.cluster.config(name, policy=policy), Ticking(0.01 * step, step))
    await conductor.open(plan)
    await conductor.reveal_beacon(plan, secret)
    eligible = await conductor.shared(plan)
    await conductor.uploaded(plan, 10)
    survivors, response = await conductor.unmask(plan, eligible)
    assert (survivors, response.failure) == (tuple(range(10)), 0)
    _check_exact(conductor, plan, survivors)


async def test_sites_that_vanish_before_and_after_their_upload_leave_the_sum_exact(
    conductor: Conductor, take_part: TakePart
) -> None:
    tasks: dict[str, asyncio.Task[None]] = {}

    class VanishingAt(SiteObserver):
        def __init__(self, name: str, chunk: int) -> None:
            self.name, self.chunk = name, chunk

        def upload_chunk_sent(self, plan: RoundPlan, index: int, count: int) -> None:
            if index == self.chunk:
                tasks[self.name].cancel()

    class VanishingAfter(SiteObserver):
        def uploaded(self, plan: RoundPlan) -> None:
            tasks["beta"].cancel()

    plan = conductor.cluster.plan(*SITES)
    observers = {"alpha": VanishingAt("alpha", 1), "beta": VanishingAfter()}
    for name in SITES:
        tasks[name] = take_part(conductor.cluster.config(name), Ticking(), observers.get(name))
    await conductor.open(plan)
    eligible = await conductor.shared(plan)
    await conductor.uploaded(plan, 4)
    await asyncio.wait([tasks["alpha"], tasks["beta"]], timeout=20)
    lost = keyserver_pb2.MarkLostRequest(
        session_id=plan.session_id, indices=sorted(plan.index_of(name) for name in ("alpha", "beta"))
    )
    await conductor.keyserver.MarkLost(lost)
    survivors, response = await conductor.unmask(plan, eligible)
    assert plan.index_of("alpha") not in survivors
    assert plan.index_of("beta") in survivors
    assert (response.failure, len(response.revealed)) == (0, 3)
    _check_exact(conductor, plan, survivors)
