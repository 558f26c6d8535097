"""Who may upload: nobody before the exchange of keys is over, and nobody who did not finish it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from secagg_cluster import Cluster, plain_sum, running_cluster
from settling import settle

from fl_core.errors import Overloaded, RemoteProtocolError, SessionFrozen
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire import convert
from fl_core.wire.v1 import aggregator_pb2, keyserver_pb2, round_pb2


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation, aggregator={"stall_timeout_seconds": 4.0}) as running:
        yield running


async def open_only(cluster: Cluster, plan: Any) -> None:
    """Open both sessions and admit nobody."""
    wire = convert.plan_to_proto(plan)
    with rpc_errors():
        await (await cluster.aggregator()).OpenAggregation(aggregator_pb2.OpenAggregationRequest(plan=wire))
        await (await cluster.keyserver()).OpenExchange(keyserver_pb2.OpenExchangeRequest(plan=wire))


async def test_a_site_outside_of_u2_spoils_nothing_and_the_others_are_summed(cluster: Cluster) -> None:
    """The site sends its keys and no shares, and uploads before anybody else."""
    plan = cluster.plan()
    await open_only(cluster, plan)
    sites = [await cluster.site(plan, index) for index in range(5)]
    early = asyncio.create_task(sites[4].upload())
    await asyncio.gather(*(site.exchange("keys" if site.index == 4 else "") for site in sites))
    await cluster.exchange_end(plan)
    await cluster.admit(plan, range(4))
    with pytest.raises(RemoteProtocolError, match="did not finish the exchange"):
        await early
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    assert await cluster.freeze(plan, range(4)) == (0, 1, 2, 3)
    answer, *_ = await asyncio.gather(cluster.unmask(plan, range(4)), *(site.reveal() for site in sites[:4]))
    assert not answer.failure
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(4)))
    (refused,) = [record for record in await cluster.uploads(plan) if not record.accepted]
    assert (refused.index, refused.reason) == (4, round_pb2.DROPOUT_REASON_PROTOCOL_VIOLATION)


async def test_an_upload_waits_until_it_is_known_who_may_upload(cluster: Cluster) -> None:
    plan = cluster.plan()
    await open_only(cluster, plan)
    site = await cluster.site(plan, 0)
    waiting = asyncio.create_task(site.upload())
    await settle(0.3)
    assert not waiting.done()
    await cluster.admit(plan, [0, 1, 2])
    await waiting


async def test_an_upload_that_waits_too_long_may_be_sent_again(cluster: Cluster) -> None:
    plan = cluster.plan()
    await open_only(cluster, plan)
    site = await cluster.site(plan, 0)
    with pytest.raises(Overloaded, match="not over yet") as caught:
        await site.upload()
    assert caught.value.retryable
    await cluster.admit(plan, range(5))
    await site.upload()


async def test_who_may_upload_is_said_once_and_by_the_coordinator(cluster: Cluster) -> None:
    plan = cluster.plan()
    await open_only(cluster, plan)
    await cluster.admit(plan, [0, 1, 2])
    await cluster.admit(plan, [0, 1, 2])
    with pytest.raises(SessionFrozen, match="other sites were admitted"):
        await cluster.admit(plan, range(5))
    request = aggregator_pb2.AdmitUploadsRequest(session_id=plan.session_id, eligible=[0, 1, 2, 3])
    stub = await cluster.aggregator(Role.SITE, "site-3")
    with pytest.raises(Exception, match="coordinator"), rpc_errors():
        await stub.AdmitUploads(request, timeout=20)


async def test_an_abandoned_session_lets_nobody_wait(cluster: Cluster) -> None:
    plan = cluster.plan()
    await open_only(cluster, plan)
    waiting = asyncio.create_task((await cluster.site(plan, 0)).upload())
    await settle()
    request = aggregator_pb2.AbandonAggregationRequest(session_id=plan.session_id)
    with rpc_errors():
        await (await cluster.aggregator()).AbandonAggregation(request, timeout=20)
    with pytest.raises(RemoteProtocolError):
        await waiting
