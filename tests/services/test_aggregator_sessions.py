"""Sessions of the aggregator: opened once, frozen once, unmasked once, bounded, and gone in the end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from secagg_cluster import FAST, Cluster, FakeSite, mask_requests, plain_sum, running_cluster
from settling import settle

import services.runtime.sessions
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import (
    BadAggregate,
    NotEnough,
    Overloaded,
    PeerLost,
    PermissionRefused,
    PlanError,
    RemoteProtocolError,
    SessionFrozen,
    StorageError,
    StreamError,
    UnknownSession,
)
from fl_core.rounds.plan import PhaseBounds, PhaseSchedule, RoundPlan, ServiceEndpoint
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.transport.peer import send_stream
from fl_core.wire.convert import plan_to_proto
from fl_core.wire.v1 import aggregator_pb2, status_pb2


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation) as running:
        yield running


async def masked(cluster: Cluster) -> tuple[RoundPlan, list[FakeSite], RingVector]:
    """A frozen session of five sites whose uploads are masked by one number, and the combined mask."""
    plan = cluster.plan()
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(5)]
    for site in sites:
        site.masked = site.plain + np.uint16(1000)
        await site.upload()
    assert await cluster.freeze(plan, range(5)) == (0, 1, 2, 3, 4)
    return plan, sites, np.full(plan.length, 5000, np.uint16)


async def submit(
    cluster: Cluster, plan: RoundPlan, mask: RingVector, survivors: Any = range(5), by: str = "keys"
) -> None:
    stub = await cluster.aggregator(Role.KEYSERVER, by)
    await send_stream(stub.SubmitMask, mask_requests(plan, survivors, mask), timeout_s=20)


async def test_the_mask_releases_the_sum_once(cluster: Cluster) -> None:
    plan, _, mask = await masked(cluster)
    await submit(cluster, plan, mask)
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(5)))
    # The same mask again is acknowledged without a second report: the first acknowledgement may have been lost.
    await submit(cluster, plan, mask)
    with pytest.raises(SessionFrozen, match="another mask"):
        await submit(cluster, plan, mask + np.uint16(1))
    assert len(cluster.coordinator.reports) == 1


async def test_a_wrong_mask_releases_nothing(cluster: Cluster) -> None:
    plan, _, mask = await masked(cluster)
    with pytest.raises(BadAggregate, match="does not count its survivors"):
        await submit(cluster, plan, mask + np.uint16(1))
    with pytest.raises(BadAggregate):
        await submit(cluster, plan, mask)
    assert cluster.coordinator.reports == []


async def test_a_mask_of_other_survivors_changes_nothing(cluster: Cluster) -> None:
    plan, _, mask = await masked(cluster)
    with pytest.raises(RemoteProtocolError, match="other survivors"):
        await submit(cluster, plan, mask, range(4))
    await submit(cluster, plan, mask)
    assert len(cluster.coordinator.reports) == 1


async def test_a_mask_of_the_wrong_length_changes_nothing(cluster: Cluster) -> None:
    plan, _, mask = await masked(cluster)
    with pytest.raises(StreamError, match="wrong size"):
        await submit(cluster, plan, mask[:-1])
    await submit(cluster, plan, mask)


async def test_a_truncated_mask_changes_nothing(cluster: Cluster) -> None:
    plan, _, mask = await masked(cluster)

    async def requests() -> AsyncIterator[aggregator_pb2.SubmitMaskRequest]:
        parts = [part async for part in mask_requests(plan, range(5), mask)]
        for part in parts[:-1]:
            yield part

    stub = await cluster.aggregator(Role.KEYSERVER, "keys")
    with pytest.raises(StreamError, match="truncated"):
        await send_stream(stub.SubmitMask, requests(), timeout_s=30)
    await submit(cluster, plan, mask)
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(5)))


async def test_only_the_key_server_of_the_plan_submits_a_mask(cluster: Cluster) -> None:
    plan, sites, mask = await masked(cluster)
    with pytest.raises(PermissionRefused, match="not the service that the plan names"):
        await submit(cluster, plan, mask, by="other-keys")
    with pytest.raises(PermissionRefused, match="may not call SubmitMask"):
        await send_stream(sites[0].aggregator.SubmitMask, mask_requests(plan, range(5), mask), timeout_s=30)
    assert cluster.coordinator.reports == []


async def test_a_mask_before_the_freezing_is_refused(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    with pytest.raises(SessionFrozen, match="waits for no mask"):
        await submit(cluster, plan, np.zeros(plan.length, np.uint16))


async def test_a_lost_coordinator_is_tried_again(cluster: Cluster) -> None:
    plan, _, mask = await masked(cluster)
    cluster.coordinator.failures = [PeerLost("try again")]
    await submit(cluster, plan, mask)
    assert len(cluster.coordinator.reports) == 1


async def test_a_report_that_failed_can_be_made_good_by_the_same_mask(cluster: Cluster) -> None:
    plan, _, mask = await masked(cluster)
    cluster.coordinator.failures = [StorageError("the disk is full")]
    with pytest.raises(StorageError, match="disk is full"):
        await submit(cluster, plan, mask)
    await submit(cluster, plan, mask)
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(5)))


async def test_a_site_outside_of_the_eligible_spoils_the_sum_aloud(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    for index in range(5):
        await (await cluster.site(plan, index)).upload()
    with pytest.raises(BadAggregate):
        await cluster.freeze(plan, [0, 1, 2, 3])


@pytest.mark.parametrize("eligible", [[0, 1, 5], [1, 0], [0, 0]])
async def test_an_impossible_set_of_eligible_sites_is_refused(cluster: Cluster, eligible: list[int]) -> None:
    plan = cluster.plain_plan()
    await cluster.open_plan(plan)
    with pytest.raises(RemoteProtocolError):
        await cluster.freeze(plan, eligible)


async def test_too_few_uploads_freeze_nothing(cluster: Cluster) -> None:
    plan = cluster.plain_plan()
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(5)]
    await asyncio.gather(sites[0].upload(), sites[1].upload())
    with pytest.raises(NotEnough, match="expected at least 3, got 2"):
        await cluster.freeze(plan, range(5))
    await sites[2].upload()
    assert await cluster.freeze(plan, range(5)) == (0, 1, 2)


async def test_freezing_again_gives_the_same_answer_and_for_others_is_refused(cluster: Cluster) -> None:
    plan, _, _ = await masked(cluster)
    assert await cluster.freeze(plan, range(5)) == (0, 1, 2, 3, 4)
    with pytest.raises(SessionFrozen, match="frozen for other sites"):
        await cluster.freeze(plan, range(4))


async def test_a_session_belongs_to_the_coordinator_that_opened_it(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    other = await cluster.aggregator(Role.COORDINATOR, "other-coord")
    for call, request in (
        (other.FreezeSurvivors, aggregator_pb2.FreezeSurvivorsRequest(session_id=plan.session_id)),
        (other.OpenAggregation, aggregator_pb2.OpenAggregationRequest(plan=plan_to_proto(plan))),
    ):
        with pytest.raises(PermissionRefused, match="belongs to another coordinator"), rpc_errors():
            await call(request, timeout=30)


async def test_a_coordinator_that_took_over_gives_up_what_the_other_one_opened(cluster: Cluster) -> None:
    plan, newer = cluster.plain_plan(), replace(cluster.plain_plan(), attempt=2)
    other = await cluster.aggregator(Role.COORDINATOR, "other-coord")
    await cluster.open_plan(plan)
    await other.OpenAggregation(aggregator_pb2.OpenAggregationRequest(plan=plan_to_proto(newer)), timeout=30)
    with pytest.raises(UnknownSession, match="superseded by a newer attempt"):
        await (await cluster.site(plan, 0)).upload()
    request = aggregator_pb2.AbandonAggregationRequest(session_id=newer.session_id)
    await (await cluster.aggregator(Role.COORDINATOR, "third-coord")).AbandonAggregation(request, timeout=30)
    with pytest.raises(UnknownSession, match="abandoned"):
        await (await cluster.site(newer, 0)).upload()


@pytest.mark.parametrize("method", ["OpenAggregation", "FreezeSurvivors", "AbandonAggregation"])
async def test_a_site_commands_nothing(cluster: Cluster, method: str) -> None:
    stub = await cluster.aggregator(Role.SITE, "site-0")
    request = getattr(aggregator_pb2, f"{method}Request")()
    with pytest.raises(PermissionRefused, match=f"may not call {method}"), rpc_errors():
        await getattr(stub, method)(request, timeout=30)


async def test_opening_again_changes_nothing(cluster: Cluster) -> None:
    plan = cluster.plain_plan()
    await cluster.open_plan(plan)
    await (await cluster.site(plan, 0)).upload()
    assert await cluster.open_plan(plan) == plan.session_id
    assert (await (await cluster.site(plan, 0)).upload_state()).state == aggregator_pb2.UPLOAD_STATE_ACCEPTED


async def test_a_plan_for_another_aggregator_is_refused(cluster: Cluster) -> None:
    plan = cluster.plan()
    for endpoint in (
        ServiceEndpoint("other", plan.aggregator.address, plan.aggregator.certificate_sha256),
        ServiceEndpoint("agg", plan.aggregator.address, bytes(32)),
    ):
        with pytest.raises(PlanError, match="names another service or another certificate"):
            await cluster.open_plan(replace(plan, aggregator=endpoint))


async def test_the_number_of_sessions_is_bounded_and_newer_attempts_replace_older_ones(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"max_sessions": 1}) as cluster:
        plan = cluster.plain_plan()
        await cluster.open_plan(plan)
        with pytest.raises(Overloaded, match="no room for another session"):
            await cluster.open_plan(replace(plan, job_id="other"))
        newer = replace(plan, attempt=2)
        await cluster.open_plan(newer)
        with pytest.raises(UnknownSession, match="superseded by a newer attempt"):
            await (await cluster.site(plan, 0)).upload()
        await (await cluster.site(newer, 0)).upload()


async def test_the_memory_of_all_sums_is_bounded(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"max_sum_bytes": 3000}) as cluster:
        plan = cluster.plain_plan()
        await cluster.open_plan(plan)
        with pytest.raises(Overloaded, match="no room for another sum"):
            await cluster.open_plan(replace(plan, job_id="other"))


async def test_a_finished_session_makes_room(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"max_sessions": 1, "max_sum_bytes": 3000}) as cluster:
        plan = cluster.plain_plan()
        await cluster.open_plan(plan)
        for index in range(3):
            await (await cluster.site(plan, index)).upload()
        await cluster.freeze(plan, range(5))
        await cluster.open_plan(replace(plan, job_id="other"))
        # It still answers what is asked again.
        assert await cluster.freeze(plan, range(5)) == (0, 1, 2)
        assert len(cluster.coordinator.reports) == 1


async def test_an_abandoned_session_is_gone_and_its_watchers_are_told(cluster: Cluster) -> None:
    plan = cluster.plain_plan()
    await cluster.open_plan(plan)
    watching = asyncio.create_task(cluster.uploads(plan))
    gate = asyncio.Event()
    uploading = asyncio.create_task((await cluster.site(plan, 0)).upload(gate=gate))
    await settle()
    request = aggregator_pb2.AbandonAggregationRequest(session_id=plan.session_id)
    for _ in range(2):
        await (await cluster.aggregator()).AbandonAggregation(request, timeout=30)
    gate.set()
    for gone in (watching, uploading, cluster.freeze(plan, range(5))):
        with pytest.raises(UnknownSession, match="abandoned"):
            await gone
    status = await (await cluster.aggregator()).GetStatus(status_pb2.GetStatusRequest(), timeout=30)
    assert not status.sessions


async def test_a_session_expires_by_its_schedule(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.runtime.sessions, "SESSION_GRACE_S", 0.1)
    brief = PhaseBounds(0.0, 0.05)
    schedule = PhaseSchedule(brief, brief, brief, brief, brief, brief)
    plan = cluster.plain_plan(schedule=schedule)
    await cluster.open_plan(plan)
    with pytest.raises(UnknownSession, match="expired"):
        await cluster.uploads(plan)
    with pytest.raises(UnknownSession, match="expired"):
        await (await cluster.site(plan, 0)).upload()


async def test_the_status_counts_uploads(cluster: Cluster) -> None:
    plan = cluster.plain_plan(schedule=FAST)
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(2)]
    await sites[0].upload()
    with pytest.raises(StreamError):
        await sites[1].upload(chunk_bytes=plan.chunk_bytes + 8)
    request = status_pb2.GetStatusRequest(job_id="job")
    status = await (await cluster.aggregator(Role.SITE, "site-0")).GetStatus(request, timeout=30)
    assert (status.role, status.service_id, status.sessions[0].phase) == ("aggregator", "agg", "collecting")
    assert dict(status.sessions[0].counts) == {"invited": 5, "accepted": 1, "refused": 1, "survivors": 0}
