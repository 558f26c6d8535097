"""An upload that broke off goes on where it ended, and nothing that is not proved is ever in the sum."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from secagg_cluster import Cluster, FakeSite, digest, plain_sum, running_cluster, sent
from settling import settle

from client_sdk.upload import Sending, Upload
from fl_core.errors import Overloaded, PeerLost, StreamError, TacitError
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.uploads import upload_payload
from fl_core.wire.chunks import ChunkReader
from fl_core.wire.v1 import aggregator_pb2, tensors_pb2
from services.aggregator import intake
from services.aggregator.partial import PartialUploads, Truncated, UploadKey
from services.runtime.staging import StagingArea

SIZE = 20_000
"""Parameters: 50 kB at 20 bits, 13 chunks of 4,096 bytes."""


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation) as running:
        yield running


async def opened(cluster: Cluster) -> tuple[RoundPlan, list[FakeSite]]:
    plan = cluster.plain_plan(size=SIZE, chunk_bytes=4096)
    await cluster.open_plan(plan)
    return plan, [await cluster.site(plan, index) for index in range(len(plan.roster))]


async def assert_sum_of(cluster: Cluster, plan: RoundPlan, indices: list[int]) -> None:
    assert await cluster.freeze(plan, range(len(plan.roster))) == tuple(indices)
    (reported,) = cluster.coordinator.reports
    np.testing.assert_array_equal(reported.vector, plain_sum(plan, indices))


def payload_of(site: FakeSite) -> bytes:
    return upload_payload(site.plan, site.plain).tobytes()


def requests_from(site: FakeSite, payload: bytes, first_byte: int, chunk_bytes: int, whole: bytes) -> Any:
    """The messages of a stream that begins at `first_byte`; `whole` is what its digest is of."""
    header = tensors_pb2.StreamHeader(total_bytes=len(payload), chunk_bytes=chunk_bytes)
    yield aggregator_pb2.UpdateParametersRequest(
        header=aggregator_pb2.UpdateHeader(
            session_id=site.plan.session_id,
            index=site.index,
            model_version=site.plan.model_version,
            stream=header,
            first_byte=first_byte,
        )
    )
    pieces = [payload[start : start + chunk_bytes] for start in range(first_byte, len(payload), chunk_bytes)]
    for index, piece in enumerate(pieces):
        yield aggregator_pb2.UpdateParametersRequest(chunk=tensors_pb2.Chunk(index=index, data=piece))
    trailer = tensors_pb2.StreamTrailer(chunk_count=len(pieces), sha256=digest(whole))
    yield aggregator_pb2.UpdateParametersRequest(trailer=trailer)


async def each(messages: Iterable[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


async def go_on(site: FakeSite, first_byte: int, *, payload: bytes | None = None, chunk_bytes: int = 4096) -> bytes:
    payload = payload_of(site) if payload is None else payload
    return await sent(site.aggregator, each(requests_from(site, payload, first_byte, chunk_bytes, payload)))


async def break_off(site: FakeSite, chunks: int = 3) -> int:
    with pytest.raises(StreamError, match="truncated"):
        await site.upload(stop_after=chunks)
    return int((await site.upload_state()).staged_bytes)


async def test_a_broken_upload_says_what_has_come_and_goes_on_from_there(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    staged = await break_off(sites[0])
    state, payload = await sites[0].upload_state(), payload_of(sites[0])
    assert (staged, state.staged_sha256) == (3 * 4096, digest(payload[: 3 * 4096]))
    assert await go_on(sites[0], staged) == digest(payload)
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])
    (record,) = [record for record in await cluster.uploads(plan) if record.index == 0]
    # Both streams count, and nothing was sent twice.
    assert len(payload) < record.bytes < len(payload) + 3000


@pytest.mark.parametrize("first_byte", [1, 4096, 12_000])
async def test_bytes_that_come_again_are_taken_once(cluster: Cluster, first_byte: int) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    await break_off(sites[0])
    await go_on(sites[0], first_byte)
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_an_upload_may_break_again_and_again(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    payload, staged = payload_of(sites[0]), await break_off(sites[0])
    while staged + 8192 < len(payload):
        messages = list(requests_from(sites[0], payload, staged, 4096, payload))[:3]
        with pytest.raises(StreamError, match="truncated"):
            await sent(sites[0].aggregator, each(messages))
        staged += 8192
        assert (await sites[0].upload_state()).staged_bytes == staged
    await go_on(sites[0], staged)
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_another_end_than_the_digest_says_refuses_the_site_for_good(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    staged, payload = await break_off(sites[0]), payload_of(sites[0])
    forged = payload[:100] + bytes(100) + payload[200:]
    with pytest.raises(StreamError, match="digest"):
        # The first part was honest, so the digest over the forged whole cannot fit.
        await go_on(sites[0], staged, payload=forged)
    assert (await sites[0].upload_state()).state == aggregator_pb2.UPLOAD_STATE_REFUSED
    await assert_sum_of(cluster, plan, [1, 2, 3, 4])


async def test_going_on_beyond_what_came_is_refused(cluster: Cluster) -> None:
    _, sites = await opened(cluster)
    staged = await break_off(sites[0])
    with pytest.raises(StreamError, match="cannot go on there"):
        await go_on(sites[0], staged + 1)


async def test_going_on_with_nothing_is_told_to_ask_again(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    with pytest.raises(Overloaded, match="not kept any more"):
        await go_on(sites[0], 4096)
    await asyncio.gather(*(site.upload() for site in sites))
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_a_new_stream_puts_an_old_one_aside_that_still_hangs(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    gate = asyncio.Event()
    old = asyncio.create_task(sites[0].upload(gate=gate))
    async with asyncio.timeout(30):
        while not (staged := (await sites[0].upload_state()).staged_bytes):
            await asyncio.sleep(0.01)
    assert await go_on(sites[0], staged) == digest(payload_of(sites[0]))
    gate.set()
    with pytest.raises(PeerLost, match="took over"):
        await old
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_a_new_beginning_forgets_what_came_before(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await break_off(sites[0])
    await asyncio.gather(*(site.upload() for site in sites))
    assert (await sites[0].upload_state()).staged_bytes == 0
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_the_uploads_that_are_kept_are_bounded(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"max_partial_uploads": 2}) as cluster:
        plan, sites = await opened(cluster)
        for site in sites[:3]:
            await break_off(site)
        kept = [(await site.upload_state()).staged_bytes for site in sites[:3]]
        assert kept == [0, 3 * 4096, 3 * 4096]
        await asyncio.gather(*(site.upload() for site in sites))
        await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_a_silent_upload_holds_nobody_up(federation: Any) -> None:
    async with running_cluster(federation, aggregator={"max_uploads": 1}) as cluster:
        plan, sites = await opened(cluster)
        gate = asyncio.Event()
        silent = asyncio.create_task(sites[0].upload(gate=gate))
        await settle()
        async with asyncio.timeout(20):
            await asyncio.gather(*(site.upload() for site in sites[1:]))
        gate.set()
        await silent
        await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


async def test_the_sdk_starts_anew_where_the_aggregator_kept_something_else(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    wrong = np.frombuffer(payload_of(sites[1]), np.uint8)
    with pytest.raises(StreamError, match="truncated"):
        await sites[0].upload(wrong, stop_after=5)
    sending = Sending(sites[0].aggregator, Upload.of(plan, 0, sites[0].plain), 20.0, lambda _index, _count: None)
    sending._began = True
    await sending.run()
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


class NarrowCall:
    """An upload that breaks under the first chunk above `limit` bytes."""

    def __init__(self, call: Any, limit: int) -> None:
        self._call = call
        self._limit = limit
        self._is_broken = False

    async def write(self, request: aggregator_pb2.UpdateParametersRequest) -> None:
        if len(request.chunk.data) > self._limit:
            self._is_broken = True
            self._call.cancel()
            raise self._error()
        await self._call.write(request)

    def __await__(self) -> Any:
        if self._is_broken:
            raise self._error()
        return self._call.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    @staticmethod
    def _error() -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut")


class NarrowLink:
    """An aggregator behind a link that breaks under large chunks."""

    def __init__(self, aggregator: Any, limit: int) -> None:
        self.GetUpload = aggregator.GetUpload
        self.streams = 0
        self._aggregator = aggregator
        self._limit = limit

    def UpdateParameters(self, timeout: float) -> NarrowCall:  # noqa: N802
        self.streams += 1
        return NarrowCall(self._aggregator.UpdateParameters(timeout=timeout), self._limit)


async def test_chunks_shrink_until_one_gets_through(cluster: Cluster) -> None:
    plan = cluster.plain_plan(size=SIZE, chunk_bytes=1 << 16)
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(len(plan.roster))]
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    link: Any = NarrowLink(sites[0].aggregator, 5000)
    sending = Sending(link, Upload.of(plan, 0, sites[0].plain), 20.0, lambda _index, _count: None)
    # 50 kB at once, then 32, 16 and 8 KiB break the link; chunks of 4 KiB get through.
    for _ in range(4):
        with pytest.raises(PeerLost):
            await sending.run()
    await sending.run()
    assert link.streams == 5
    await assert_sum_of(cluster, plan, [0, 1, 2, 3, 4])


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the chunks that the aggregator took."""
    sizes: list[int] = []
    feed = ChunkReader.feed

    def counted(reader: ChunkReader, chunk: tensors_pb2.Chunk) -> bytes:
        sizes.append(len(chunk.data))
        return feed(reader, chunk)

    monkeypatch.setattr(ChunkReader, "feed", counted)
    return sizes


@pytest.mark.parametrize("resumed", [False, True])
async def test_an_upload_in_crumbs_costs_the_aggregator_nothing(
    cluster: Cluster, fed: list[int], resumed: bool
) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.upload() for site in sites[1:]))
    first_byte = await break_off(sites[0]) if resumed else 0
    fed.clear()
    with pytest.raises(StreamError, match="chunk_bytes is out of range: expected 4096 to 4096, got 8"):
        await go_on(sites[0], first_byte, chunk_bytes=8)
    assert (await sites[0].upload_state()).state == aggregator_pb2.UPLOAD_STATE_REFUSED
    assert fed == []
    await assert_sum_of(cluster, plan, [1, 2, 3, 4])


async def test_without_a_floor_an_upload_in_crumbs_would_cost_a_call_for_each(
    cluster: Cluster, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "upload_chunk_bytes", lambda largest: (1, largest))
    _, sites = await opened(cluster)
    payload = payload_of(sites[0])
    await go_on(sites[0], 0, chunk_bytes=8)
    assert len(fed) == -(-len(payload) // 8) > 500 * (len(payload) // 4096)


def part(total: int = 100) -> ChunkReader:
    header = tensors_pb2.StreamHeader(total_bytes=total, chunk_bytes=10)
    return ChunkReader(header, max_bytes=total)


async def receive_and_fail(uploads: PartialUploads, key: UploadKey, error: TacitError) -> None:
    async with uploads.new(key, part()) as (upload, stream):
        await upload.add(stream, tensors_pb2.Chunk(index=0, data=bytes(10)))
        raise error


@pytest.mark.parametrize("budget", [0, 1000])
async def test_the_end_of_a_session_gives_every_byte_back(tmp_path: Path, budget: int) -> None:
    area = StagingArea(tmp_path, budget)
    uploads = PartialUploads(area, 10)
    for session, site in ((b"a", 0), (b"a", 1), (b"b", 0)):
        with pytest.raises(Truncated):
            await receive_and_fail(uploads, UploadKey(session, site), Truncated("broke off"))
    assert (len(uploads), area.free_bytes) == (3, max(0, budget - 300))
    uploads.drop(b"a")
    assert (len(uploads), area.free_bytes) == (1, max(0, budget - 100))
    uploads.drop(b"b")
    assert (len(uploads), area.free_bytes) == (0, budget)


@pytest.mark.parametrize("error", [StreamError("wrong"), TacitError("whatever")])
async def test_an_upload_that_was_refused_is_not_kept(tmp_path: Path, error: TacitError) -> None:
    area = StagingArea(tmp_path, 1000)
    uploads = PartialUploads(area, 10)
    with pytest.raises(type(error)):
        await receive_and_fail(uploads, UploadKey(b"a", 0), error)
    assert (len(uploads), area.free_bytes) == (0, 1000)


async def test_a_session_that_ends_while_bytes_come_gives_them_back_when_the_stream_ends(tmp_path: Path) -> None:
    area = StagingArea(tmp_path, 1000)
    uploads = PartialUploads(area, 10)
    async with AsyncExitStack() as stack:
        upload, stream = await stack.enter_async_context(uploads.new(UploadKey(b"a", 0), part()))
        uploads.drop(b"a")
        await upload.add(stream, tensors_pb2.Chunk(index=0, data=bytes(10)))
        assert area.free_bytes == 900
    assert (len(uploads), area.free_bytes) == (0, 1000)
