"""Rounds over links that are slow, break, corrupt and swallow: the sum stays exact, and one bad link costs itself."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fault_proxy import FaultProxy, Faults, running_proxy
from whole_federation import HONEST, Steps, WholeFederation, running_federation

from client_sdk import Array
from client_sdk.connections import Services
from client_sdk.download import Model, ModelReference
from client_sdk.participation import Participation
from fl_core.errors import PeerLost
from fl_core.rounds.plan import RoundPlan
from fl_core.transport.channel import open_channel
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire.v1 import coordinator_pb2, status_pb2
from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceStub
from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceStub

pytestmark = pytest.mark.e2e

TWO_MBIT = 250_000
"""Bytes per second."""

LARGE: dict[str, Array] = {"weight": np.zeros((1000, 300), np.float32)}
"""An upload of 900 kB at 24 bits: 3.6 s at 2 Mbit/s, so it cannot pass between two cuts of 2 s."""

MODEL_BYTES = 1_200_000
"""Of that model: 4.8 s at 2 Mbit/s."""

PATIENT = {"min_seconds": 20.0, "max_seconds": 40.0}
"""Nobody is left out for being slow: every site answers in these phases, so that none takes this long."""

PHASES = dict.fromkeys(("recruiting", "advertising", "sharing", "signing", "revealing"), PATIENT)


@pytest.fixture
async def whole(federation: Any, tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[WholeFederation]:
    async with running_federation(federation, tmp_path, free_port()) as running:
        yield running


def uploads_through(address: str) -> Callable[[Participation], None]:
    """Makes a site reach the aggregator at another address than the plan says."""

    def rewire(participation: Participation) -> None:
        connections: Any = participation._connections
        direct = connections.services

        async def services(plan: RoundPlan) -> Services:
            found = await direct(plan)
            channel = open_channel(address, connections.credentials, Role.AGGREGATOR, plan.aggregator.service_id)
            aggregator: Any = AggregatorServiceStub(channel)
            return Services(aggregator, found.secure_keyserver)

        connections.services = services

    return rewire


def downloads_through(address: str) -> Callable[[Participation], None]:
    """Makes a site get its models from the coordinator at another address than the one that it stays in touch with."""

    def rewire(participation: Participation) -> None:
        connections, download = participation._connections, participation._download
        direct = download.get
        channel = open_channel(address, connections.credentials, Role.COORDINATOR)
        stub: Any = CoordinatorServiceStub(channel)

        async def get(_coordinator: Any, wanted: ModelReference, timeout_s: float) -> Model:
            return await direct(stub, wanted, timeout_s)

        changed: Any = download
        changed.get = get

    return rewire


async def run_round(whole: WholeFederation, proxy_address: str, uploading: dict[str, float]) -> Any:
    """One round of a large model, in which one of four sites uploads through a proxy."""
    whole.join(HONEST[0], rewire=uploads_through(proxy_address))
    for name in HONEST[1:]:
        whole.join(name, Steps())
    phases = {**PHASES, "uploading": uploading}
    fields = {"phases": phases, "chunk_bytes": 262_144, "cohort": {"min": 4, "max": 4}}
    (report,) = await whole.run_job(rounds=1, model=LARGE, **fields)
    whole.check_exact(report)
    return report


def check_used(proxy: FaultProxy, connections: int) -> None:
    assert proxy.accepted >= connections


async def test_an_upload_over_a_slow_link_that_breaks_every_two_seconds_completes(whole: WholeFederation) -> None:
    faults = Faults(delay_s=0.1, bytes_per_second=TWO_MBIT, cut_every_s=2.0)
    async with running_proxy(whole.addresses[Role.AGGREGATOR], faults) as (proxy, address):
        report = await run_round(whole, address, {"min_seconds": 50.0, "max_seconds": 50.0})
        check_used(proxy, 3)
    assert set(report.survivors) == set(HONEST)
    # Resumed, not begun again and again: little more than the payload went over the link.
    assert proxy.passed_bytes < 2 * 900_000


async def test_a_download_over_a_slow_link_that_breaks_every_two_seconds_completes(whole: WholeFederation) -> None:
    faults = Faults(delay_s=0.05, bytes_per_second=TWO_MBIT, cut_every_s=2.0)
    async with running_proxy(whole.addresses[Role.COORDINATOR], faults) as (proxy, address):
        whole.join(HONEST[0], rewire=downloads_through(address))
        for name in HONEST[1:]:
            whole.join(name, Steps())
        phases = {**PHASES, "uploading": {"min_seconds": 50.0, "max_seconds": 50.0}}
        (report,) = await whole.run_job(rounds=1, model=LARGE, phases=phases, cohort={"min": 4, "max": 4})
        whole.check_exact(report)
        check_used(proxy, 3)
    assert set(report.survivors) == set(HONEST)
    # The model once, and what was on its way when the link broke.
    assert proxy.passed_bytes < 2 * MODEL_BYTES


async def test_a_link_that_corrupts_bytes_changes_no_sum(whole: WholeFederation) -> None:
    faults = Faults(corrupt_every_bytes=400_000)
    async with running_proxy(whole.addresses[Role.AGGREGATOR], faults, seed=5) as (proxy, address):
        report = await run_round(whole, address, {"min_seconds": 50.0, "max_seconds": 50.0})
        assert proxy.corrupted
    assert set(report.survivors) == set(HONEST)


async def test_a_link_that_swallows_everything_costs_its_own_site_the_round(whole: WholeFederation) -> None:
    async with running_proxy(whole.addresses[Role.AGGREGATOR], Faults(swallow=True)) as (_, address):
        report = await run_round(whole, address, {"min_seconds": 8.0, "max_seconds": 50.0})
    assert set(report.survivors) == set(HONEST[1:])


async def test_a_cut_in_the_middle_of_everything_costs_nobody_the_round(whole: WholeFederation) -> None:
    faults = Faults(bytes_per_second=4_000_000)
    async with running_proxy(whole.addresses[Role.AGGREGATOR], faults) as (proxy, address):

        async def cut_once() -> None:
            while proxy.passed_bytes < 300_000:
                await asyncio.sleep(0.005)
            proxy.cut()

        cutting = asyncio.create_task(cut_once())
        report = await run_round(whole, address, {"min_seconds": 50.0, "max_seconds": 50.0})
        await cutting
    assert set(report.survivors) == set(HONEST)


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.skipif(not os.environ.get("TACIT_KILL_MATRIX"), reason="takes half a minute; part of the long form")
async def test_a_peer_that_is_dead_is_noticed_within_half_a_minute_at_both_ends(
    whole: WholeFederation, federation: Any
) -> None:
    loop, credentials = asyncio.get_running_loop(), federation.credentials(Role.SITE, HONEST[0])
    async with (
        running_proxy(whole.addresses[Role.COORDINATOR]) as (proxy, address),
        open_channel(address, credentials, Role.COORDINATOR) as channel,
    ):
        call = CoordinatorServiceStub(channel).WatchRounds(coordinator_pb2.WatchRoundsRequest())
        await call.read()
        # From here on neither end hears anything of the other, and no connection is closed.
        proxy.faults = Faults(swallow=True)
        began = loop.time()
        with pytest.raises(PeerLost), rpc_errors():
            await read_to_the_end(call)
        assert loop.time() - began <= 31.0
        stub = whole.stub(Role.COORDINATOR, whole.operator)
        while (await stub.GetStatus(status_pb2.GetStatusRequest())).connected_sites:
            assert loop.time() - began <= 31.0
            await asyncio.sleep(0.1)
