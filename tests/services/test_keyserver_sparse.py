"""Sessions on a sparse graph over mTLS: the beacon between coordinator and key server, and what each site is shown."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from secagg_cluster import Cluster, FakeSite, plain_sum, running_cluster

import services.keyserver.session
from fl_core.errors import PermissionRefused, RemoteProtocolError, SessionFrozen
from fl_core.rounds.plan import RoundPlan, SparseGraph
from fl_core.secagg.beacon import SecretBeacon, make_beacon
from fl_core.secagg.degrees import Profile
from fl_core.secagg.messages import Beacon
from fl_core.simulation.entropy import seeded_entropy
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire import convert
from fl_core.wire.v1 import keyserver_pb2, round_pb2

SITES = 10


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation) as running:
        yield running


async def opened(cluster: Cluster) -> tuple[RoundPlan, list[FakeSite], SecretBeacon]:
    secret = make_beacon(seeded_entropy(1))
    graph = SparseGraph(6, Profile.EQUIVOCATION_SAFE, secret.commitment)
    plan = cluster.plan(sites=SITES, graph=graph, threshold=4, min_survivors=9, max_dropout=0.1)
    await cluster.open_plan(plan)
    return plan, [await cluster.site(plan, index) for index in range(SITES)], secret


async def frozen_digest(cluster: Cluster, plan: RoundPlan) -> bytes:
    stub = await cluster.keyserver()
    async for event in stub.WatchExchange(keyserver_pb2.WatchExchangeRequest(session_id=plan.session_id), timeout=20):
        if event.WhichOneof("event") == "frozen":
            return bytes(event.frozen.directory_digest)
    raise AssertionError("the exchange ended without a frozen directory")


async def reveal(cluster: Cluster, plan: RoundPlan, beacon: Beacon, role: Role = Role.COORDINATOR) -> None:
    stub = await cluster.keyserver(role, "coord" if role is Role.COORDINATOR else "site-0")
    request = keyserver_pb2.RevealBeaconRequest(session_id=plan.session_id, beacon=convert.beacon_to_proto(beacon))
    with rpc_errors():
        await stub.RevealBeacon(request, timeout=30)


async def test_a_session_gives_the_exact_sum_when_a_site_drops_out(cluster: Cluster) -> None:
    plan, sites, secret = await opened(cluster)
    exchanges = asyncio.gather(*(site.exchange() for site in sites))
    digest = await frozen_digest(cluster, plan)
    await reveal(cluster, plan, secret.reveal(plan.binding, digest))
    await exchanges
    closed = (await cluster.exchange_end(plan))[-1].closed
    assert list(closed.shared) == list(range(SITES))
    uploading = [site for site in sites if site.index != 5]
    await asyncio.gather(*(site.upload() for site in uploading))
    survivors = await cluster.freeze(plan, closed.shared)
    unmasked, *_ = await asyncio.gather(cluster.unmask(plan, survivors), *(site.reveal() for site in uploading))
    assert unmasked.failure == round_pb2.ABANDON_REASON_UNSPECIFIED, unmasked.detail
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, survivors))
    assert len(survivors) == SITES - 1


async def test_only_the_right_beacon_opens_the_session_and_only_it_may_come_again(cluster: Cluster) -> None:
    plan, sites, secret = await opened(cluster)
    with pytest.raises(SessionFrozen, match="takes no beacon now"):
        await reveal(cluster, plan, make_beacon(seeded_entropy(1)).reveal(plan.binding, bytes(32)))
    exchanges = asyncio.gather(*(site.exchange() for site in sites))
    digest = await frozen_digest(cluster, plan)
    beacon = secret.reveal(plan.binding, digest)
    with pytest.raises(RemoteProtocolError, match="not the one of the plan"):
        await reveal(cluster, plan, make_beacon(seeded_entropy(2)).reveal(plan.binding, digest))
    with pytest.raises(RemoteProtocolError, match="did not sign this directory"):
        await reveal(cluster, plan, make_beacon(seeded_entropy(1)).reveal(plan.binding, bytes(32)))
    with pytest.raises(PermissionRefused):
        await reveal(cluster, plan, beacon, Role.SITE)
    await reveal(cluster, plan, beacon)
    await reveal(cluster, plan, beacon)
    with pytest.raises(RemoteProtocolError, match="another beacon"):
        await reveal(cluster, plan, replace(beacon, signature=bytes(64)))
    await exchanges


async def test_a_coordinator_that_keeps_its_beacon_ends_the_session(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.keyserver.session, "BEACON_TIMEOUT_S", 0.2)
    plan, sites, _ = await opened(cluster)
    outcomes = asyncio.gather(*(site.exchange() for site in sites), return_exceptions=True)
    event = (await cluster.exchange_end(plan))[-1]
    assert event.failed.reason == round_pb2.ABANDON_REASON_DEADLINE
    assert "beacon" in event.failed.detail
    assert all(isinstance(outcome, Exception) for outcome in await outcomes)


async def test_a_site_opens_its_stream_again_and_is_shown_the_same(cluster: Cluster) -> None:
    plan, sites, secret = await opened(cluster)
    advertised = sites[3].advertised()
    others = asyncio.gather(*(site.exchange() for site in sites if site.index != 3))
    first = asyncio.create_task(sites[3].exchange("keys", advertised=advertised))
    digest = await frozen_digest(cluster, plan)
    await reveal(cluster, plan, secret.reveal(plan.binding, digest))
    await first
    await sites[3].exchange(advertised=advertised)
    await others
    assert list((await cluster.exchange_end(plan))[-1].closed.shared) == list(range(SITES))
