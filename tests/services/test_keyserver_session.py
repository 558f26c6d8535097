"""Whole secure sessions over mTLS: real phases, real services, and sites that drop out after every message."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from secagg_cluster import Cluster, digest, plain_sum, running_cluster
from settling import settle

from fl_core.codec.packing import pack
from fl_core.rounds.plan import RoundPlan
from fl_core.wire.v1 import round_pb2


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation) as running:
        yield running


async def exchanged(cluster: Cluster, plan: RoundPlan, **stops: str) -> list[Any]:
    """Sites after rounds 0 and 1; `site_3="keys"` stops site 3 after its keys, "nothing" before them."""
    sites = [await cluster.site(plan, index) for index in range(len(plan.roster))]
    stop = {int(name.removeprefix("site_")): after for name, after in stops.items()}
    lost = [index for index, after in stop.items() if after == "nothing"]
    if lost:
        await cluster.mark_lost(plan, *lost)
    running = [site.exchange(stop.get(site.index, "")) for site in sites if site.index not in lost]
    await asyncio.gather(*running)
    return sites


async def test_a_session_gives_the_exact_sum(cluster: Cluster) -> None:
    plan = cluster.plan()
    assert await cluster.open_plan(plan) == plan.session_id
    sites = await exchanged(cluster, plan)
    await asyncio.gather(*(site.upload() for site in sites))
    survivors = await cluster.freeze(plan, range(5))
    unmasked, *_ = await asyncio.gather(cluster.unmask(plan, survivors), *(site.reveal() for site in sites))
    assert unmasked.failure == round_pb2.ABANDON_REASON_UNSPECIFIED
    assert list(unmasked.signed) == list(unmasked.revealed) == [0, 1, 2, 3, 4]
    (reported,) = cluster.coordinator.reports
    expected = plain_sum(plan, range(5))
    np.testing.assert_array_equal(reported.vector, expected)
    assert reported.sha256 == reported.info.sha256 == digest(pack(expected, plan.codec.ring_bits))
    assert reported.info.total_weight == sum(10 + index for index in range(5))
    assert set(unmasked.bytes_up) == set(range(5))


@pytest.mark.parametrize(
    "stop", ["nothing", "keys", "shares", "masking", "truncated", "uploaded", "hello", "signature"]
)
async def test_a_site_may_vanish_after_any_message(cluster: Cluster, stop: str) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    in_exchange = stop if stop in ("nothing", "keys", "shares") else ""
    sites = await exchanged(cluster, plan, site_3=in_exchange)
    closed = (await cluster.exchange_end(plan))[-1].closed
    shared = list(closed.shared)
    assert shared == [0, 1, 2, 4] if stop in ("nothing", "keys") else [0, 1, 2, 3, 4]
    stays = [site for site in sites if site.index != 3]
    await asyncio.gather(*(site.upload() for site in stays))
    if stop == "truncated":
        with pytest.raises(Exception, match="truncated"):
            await sites[3].upload(stop_after=2)
    if stop in ("uploaded", "hello", "signature"):
        await sites[3].upload()
        stays_to_reveal = [*stays, sites[3]]
    else:
        stays_to_reveal = stays
    survivors = await cluster.freeze(plan, shared)
    assert survivors == tuple(site.index for site in sorted(stays_to_reveal, key=lambda site: site.index))
    revealing = [site.reveal() for site in stays]
    if stop in ("hello", "signature"):
        revealing.append(sites[3].reveal(stop))
    unmasked, *_ = await asyncio.gather(cluster.unmask(plan, survivors), *revealing)
    assert unmasked.failure == round_pb2.ABANDON_REASON_UNSPECIFIED, unmasked.detail
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, survivors))


async def test_one_site_may_vanish_in_each_phase_of_one_session(cluster: Cluster) -> None:
    plan = cluster.plan(sites=9, threshold=5, min_survivors=5)
    await cluster.open_plan(plan)
    sites = await exchanged(cluster, plan, site_0="nothing", site_1="keys", site_2="shares")
    closed = (await cluster.exchange_end(plan))[-1].closed
    assert list(closed.advertised) == list(range(1, 9))
    assert list(closed.shared) == list(range(2, 9))
    with pytest.raises(Exception, match="truncated"):
        await sites[3].upload(stop_after=1)
    await asyncio.gather(*(site.upload() for site in sites[4:]))
    survivors = await cluster.freeze(plan, closed.shared)
    # Five uploaded and the threshold is five, so that nobody else may go.
    unmasked, *_ = await asyncio.gather(cluster.unmask(plan, survivors), *(site.reveal() for site in sites[4:]))
    assert unmasked.failure == round_pb2.ABANDON_REASON_UNSPECIFIED, unmasked.detail
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(4, 9)))


async def test_too_few_reveals_release_nothing(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    sites = await exchanged(cluster, plan)
    await asyncio.gather(*(site.upload() for site in sites))
    survivors = await cluster.freeze(plan, range(5))
    revealing = [site.reveal("signature" if site.index > 1 else "") for site in sites]
    lost = asyncio.create_task(_lose_later(cluster, plan))
    unmasked, *_ = await asyncio.gather(cluster.unmask(plan, survivors), *revealing)
    await lost
    assert unmasked.failure == round_pb2.ABANDON_REASON_TOO_FEW_REVEALS
    assert list(unmasked.revealed) == [0, 1]
    assert cluster.coordinator.reports == []


async def _lose_later(cluster: Cluster, plan: RoundPlan) -> None:
    await settle(1.0)
    await cluster.mark_lost(plan, 2, 3, 4)
