"""Uploads: whole and verified, or not in the sum."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from secagg_cluster import Cluster, FakeSite, digest, plain_sum, plain_vector, running_cluster, sent, upload_requests
from settling import settle

from fl_core.errors import (
    CodecError,
    Overloaded,
    PeerLost,
    PermissionRefused,
    RemoteProtocolError,
    SessionFrozen,
    StaleMessage,
    StreamError,
    TacitError,
    UnknownSession,
)
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.uploads import upload_payload
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire.v1 import aggregator_pb2, round_pb2, tensors_pb2


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation) as running:
        yield running


async def opened(cluster: Cluster, **changes: Any) -> tuple[RoundPlan, list[FakeSite]]:
    """A plain session, in which the sum can be looked at without a mask."""
    plan = cluster.plain_plan(**changes)
    await cluster.open_plan(plan)
    return plan, [await cluster.site(plan, index) for index in range(len(plan.roster))]


async def assert_sum_of(cluster: Cluster, plan: RoundPlan, indices: list[int]) -> None:
    """Freeze, and compare what is reported with the plain sum of exactly these sites."""
    assert await cluster.freeze(plan, range(len(plan.roster))) == tuple(indices)
    (reported,) = cluster.coordinator.reports
    np.testing.assert_array_equal(reported.vector, plain_sum(plan, indices))


def payload_of(site: FakeSite) -> Any:
    return upload_payload(site.plan, site.plain)


async def test_an_upload_is_acknowledged_with_its_digest(cluster: Cluster) -> None:
    _, sites = await opened(cluster)
    assert await sites[0].upload() == digest(payload_of(sites[0]))
    state = await sites[0].upload_state()
    assert (state.state, state.upload_sha256) == (aggregator_pb2.UPLOAD_STATE_ACCEPTED, digest(payload_of(sites[0])))


@pytest.mark.parametrize("chunks", [0, 1, 7, 8])
async def test_a_truncated_upload_is_never_in_the_sum(cluster: Cluster, chunks: int) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    with pytest.raises(StreamError, match="truncated"):
        await sites[4].upload(stop_after=chunks)
    assert (await sites[4].upload_state()).state == aggregator_pb2.UPLOAD_STATE_ABSENT
    await assert_sum_of(cluster, plan, [0, 1, 2, 3])


async def test_a_cancelled_upload_is_never_in_the_sum_and_its_reason_is_reported(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    gate = asyncio.Event()
    call = sites[4].aggregator.UpdateParameters(upload_requests(plan, 4, payload_of(sites[4]), gate=gate))
    await settle()
    call.cancel()
    await settle()
    watching = asyncio.create_task(cluster.uploads(plan))
    await assert_sum_of(cluster, plan, [0, 1, 2, 3])
    (broken,) = [record for record in await watching if not record.accepted]
    assert (broken.index, broken.reason) == (4, round_pb2.DROPOUT_REASON_UPLOAD_TRUNCATED)


async def test_a_truncated_upload_may_be_sent_again(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    with pytest.raises(StreamError):
        await sites[4].upload(stop_after=3)
    await asyncio.gather(*(site.upload() for site in sites))
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_the_same_upload_again_is_acknowledged_and_added_once(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites))
    assert await sites[2].upload() == digest(payload_of(sites[2]))
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])
    # Also when it comes after the freezing, because the acknowledgement may have been lost.
    assert await sites[2].upload() == digest(payload_of(sites[2]))


async def test_two_streams_of_one_site_at_once_are_added_once(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites), sites[0].upload())
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_a_different_second_upload_is_refused_and_changes_nothing(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites))
    with pytest.raises(RemoteProtocolError, match="something else before"):
        await sites[0].upload(upload_payload(plan, plain_vector(plan, 1)))
    assert (await sites[0].upload_state()).state == aggregator_pb2.UPLOAD_STATE_ACCEPTED
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_a_late_upload_is_refused_and_changes_nothing(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    await assert_sum_of(cluster, plan, [0, 1, 2, 3])
    with pytest.raises(SessionFrozen, match="frozen"):
        await sites[4].upload()
    with pytest.raises(SessionFrozen, match="frozen"):
        await sites[4].upload_state()
    assert (await sites[0].upload_state()).state == aggregator_pb2.UPLOAD_STATE_ACCEPTED


async def test_an_upload_that_is_in_flight_at_the_freezing_is_refused(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    gate = asyncio.Event()
    late = asyncio.create_task(sites[4].upload(gate=gate))
    await settle()
    await assert_sum_of(cluster, plan, [0, 1, 2, 3])
    gate.set()
    with pytest.raises(SessionFrozen):
        await late


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"total_bytes": 1006}, StreamError, "too large: expected up to 1005 bytes, got 1006"),
        ({"total_bytes": 1 << 40}, StreamError, "too large"),
        ({"chunk_bytes": 512}, StreamError, "chunk_bytes is out of range: expected 256 to 256, got 512"),
        ({"chunk_bytes": 128}, StreamError, "chunk_bytes is out of range: expected 256 to 256, got 128"),
        ({"model_version": 6}, StaleMessage, "another version of the model: expected 7, got 6"),
        ({"trailer": tensors_pb2.StreamTrailer(chunk_count=4, sha256=bytes(32))}, StreamError, "digest"),
        ({"trailer": tensors_pb2.StreamTrailer(chunk_count=3, sha256=bytes(32))}, StreamError, "counts other chunks"),
    ],
)
async def test_an_upload_of_the_wrong_form_is_refused_for_good(
    cluster: Cluster, changes: dict[str, Any], error: type[TacitError], says: str
) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    with pytest.raises(error, match=says):
        await sites[4].upload(**changes)
    state = await sites[4].upload_state()
    assert (state.state, state.error_code) == (aggregator_pb2.UPLOAD_STATE_REFUSED, error.code)
    with pytest.raises(error, match=says):
        await sites[4].upload()
    watching = asyncio.create_task(cluster.uploads(plan))
    await assert_sum_of(cluster, plan, [0, 1, 2, 3])
    (refused,) = [record for record in await watching if not record.accepted]
    assert (refused.index, refused.reason) == (4, round_pb2.DROPOUT_REASON_UPLOAD_REFUSED)


async def test_an_upload_of_another_model_is_refused(cluster: Cluster) -> None:
    _, sites = await opened(cluster)
    with pytest.raises(StreamError, match="expected up to 1005 bytes, got 2006"):
        await sites[0].upload(bytes(2006))


@pytest.mark.parametrize(("place", "value"), [(0, 0), (0, 201), (1, 2), (1, 0)])
async def test_a_plain_update_that_is_impossible_is_refused_and_the_others_go_on(
    cluster: Cluster, place: int, value: int
) -> None:
    plan, sites = await opened(cluster)
    vector = sites[4].plain
    vector[place] = value
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    with pytest.raises(CodecError):
        await sites[4].upload(upload_payload(plan, vector))
    assert (await sites[4].upload_state()).state == aggregator_pb2.UPLOAD_STATE_REFUSED
    await assert_sum_of(cluster, plan, [0, 1, 2, 3])


async def test_an_upload_to_an_unknown_session_is_refused(cluster: Cluster) -> None:
    plan, _ = await opened(cluster)
    stranger = await cluster.site(replace(plan, attempt=2), 0)
    with pytest.raises(UnknownSession, match="no such session"):
        await stranger.upload()
    with pytest.raises(UnknownSession):
        await stranger.upload_state()


@pytest.mark.parametrize("session_id", [b"", b"short", bytes(17)])
async def test_a_session_id_of_the_wrong_length_is_refused(cluster: Cluster, session_id: bytes) -> None:
    _, sites = await opened(cluster)
    request = aggregator_pb2.GetUploadRequest(session_id=session_id, index=0)
    with pytest.raises(RemoteProtocolError, match="session_id"), rpc_errors():
        await sites[0].aggregator.GetUpload(request, timeout=30)


async def test_a_site_cannot_upload_for_another_one(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    with pytest.raises(PermissionRefused, match="not the site at index 1"):
        await sent(sites[0].aggregator, upload_requests(plan, 1, payload_of(sites[1])))
    assert (await sites[1].upload_state()).state == aggregator_pb2.UPLOAD_STATE_ABSENT
    request = aggregator_pb2.GetUploadRequest(session_id=plan.session_id, index=1)
    with pytest.raises(PermissionRefused), rpc_errors():
        await sites[0].aggregator.GetUpload(request, timeout=30)


async def test_a_site_with_another_certificate_than_the_roster_names_is_refused(cluster: Cluster) -> None:
    plan = cluster.plain_plan()
    roster = list(plan.roster)
    roster[0] = replace(roster[0], certificate_sha256=bytes(32))
    plan = replace(plan, roster=tuple(roster))
    await cluster.open_plan(plan)
    with pytest.raises(PermissionRefused, match="another certificate than the plan names"):
        await (await cluster.site(plan, 0)).upload()


@pytest.mark.parametrize("index", [5, 4_000_000_000])
async def test_an_index_outside_of_the_roster_is_refused(cluster: Cluster, index: int) -> None:
    plan, sites = await opened(cluster)
    with pytest.raises(RemoteProtocolError, match="no site of the roster"):
        await sent(sites[0].aggregator, upload_requests(plan, index, payload_of(sites[0])))


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.KEYSERVER, Role.OPERATOR])
async def test_only_sites_upload(cluster: Cluster, role: Role) -> None:
    plan, sites = await opened(cluster)
    stub = await cluster.aggregator(role, "site-0")
    with pytest.raises(PermissionRefused, match="may not call UpdateParameters"):
        await sent(stub, upload_requests(plan, 0, payload_of(sites[0])))
    assert (await sites[0].upload_state()).state == aggregator_pb2.UPLOAD_STATE_ABSENT


async def test_a_stream_that_does_not_begin_with_its_header_is_refused(cluster: Cluster) -> None:
    _, sites = await opened(cluster)

    async def requests() -> AsyncIterator[aggregator_pb2.UpdateParametersRequest]:
        yield aggregator_pb2.UpdateParametersRequest(chunk=tensors_pb2.Chunk(index=0, data=b"1"))

    with pytest.raises(RemoteProtocolError, match="expected header, got chunk"):
        await sent(sites[0].aggregator, requests())


async def test_a_silent_site_is_let_go_and_may_come_again(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"stall_timeout_seconds": 2.0}) as cluster:
        plan, sites = await opened(cluster)
        with pytest.raises(PeerLost, match="silent"):
            await sites[0].upload(gate=asyncio.Event())
        await asyncio.gather(*(site.upload() for site in sites))
        await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_the_streams_of_one_site_are_bounded(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"streams_per_caller": 1}) as cluster:
        _, sites = await opened(cluster)
        gate = asyncio.Event()
        first = asyncio.create_task(sites[0].upload(gate=gate))
        await settle()
        with pytest.raises(Overloaded, match="too many streams"):
            await sites[0].upload()
        await sites[1].upload()
        gate.set()
        await first
        await sites[0].upload()


async def test_uploads_wait_for_their_turn_and_none_is_lost(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"max_uploads": 1}) as cluster:
        plan, sites = await opened(cluster)
        await asyncio.gather(*(site.upload() for site in sites))
        await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("budget", [0, 2004, 4100])
async def test_uploads_beyond_the_memory_budget_go_over_disk_and_leave_nothing(federation: Any, budget: int) -> None:
    async with running_cluster(federation, aggregator={"memory_budget_bytes": budget}) as cluster:
        plan, sites = await opened(cluster)
        with pytest.raises(StreamError):
            await sites[0].upload(stop_after=4)
        await asyncio.gather(*(site.upload() for site in sites))
        await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])
        spool = cluster.aggregator_settings.state_dir / "spool"
        assert not spool.exists() or not list(spool.iterdir())
