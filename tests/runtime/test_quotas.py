"""Quotas: a site that takes more than its share, or sends garbage, waits; the others do not."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from fl_core.errors import Overloaded, RemoteProtocolError, UnknownSession
from fl_core.transport.channel import open_channel
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.transport.peer import call_unary, read_stream, send_stream
from fl_core.wire.v1 import aggregator_pb2, status_pb2, tensors_pb2
from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceStub
from services.runtime import metrics
from services.runtime.listening import connections_to
from services.runtime.quotas import Bucket, Quotas
from services.runtime.settings import QuotaSettings

GET_UPLOAD = "/fl_core.wire.v1.AggregatorService/GetUpload"
UPLOAD = "/fl_core.wire.v1.AggregatorService/UpdateParameters"
STATUS = status_pb2.GetStatusRequest()


def exceeded(quota: str) -> float:
    return float(metrics.QUOTA_EXCEEDED.labels(quota)._value.get())


@pytest.mark.parametrize(("wait_s", "gets"), [(0.0, False), (0.05, False), (0.11, True)])
def test_a_bucket_fills_up_with_time(wait_s: float, gets: bool) -> None:
    bucket = Bucket(per_second=10.0, size=5.0, now=100.0)
    assert all(bucket.take(1, 100.0) for _ in range(5))
    assert bucket.take(1, 100.0 + wait_s) is gets


def test_a_bucket_never_holds_more_than_its_size() -> None:
    bucket = Bucket(per_second=10.0, size=5.0, now=0.0)
    assert not bucket.take(6, 1e6)
    assert bucket.take(5, 1e6)


async def test_calls_beyond_the_rate_of_one_site_are_refused_and_another_site_is_served(
    serving: Any, connect: Any
) -> None:
    quota = {"requests_at_once": 3, "requests_per_second": 0.001, "pause_seconds": 0.01}
    before = exceeded("requests")
    async with serving(quota=quota) as address, connect(address, Role.SITE, "a") as ours:
        for _ in range(3):
            await call_unary(ours.GetStatus, STATUS, timeout_s=20)
        with pytest.raises(Overloaded, match="beyond its quota of requests"):
            await call_unary(ours.GetStatus, STATUS, timeout_s=20)
        async with connect(address, Role.SITE, "b") as theirs:
            await call_unary(theirs.GetStatus, STATUS, timeout_s=20)
    assert exceeded("requests") == before + 1


async def test_services_and_operators_have_no_quota(serving: Any, connect: Any) -> None:
    async with serving(quota={"requests_at_once": 1, "requests_per_second": 0.001}) as address:
        for role in (Role.COORDINATOR, Role.OPERATOR):
            async with connect(address, role, "x") as stub:
                for _ in range(5):
                    await call_unary(stub.GetStatus, STATUS, timeout_s=20)


async def test_calls_at_once_are_bounded_and_given_back(serving: Any, connect: Any) -> None:
    quota = {"calls": 2, "pause_seconds": 0.01}
    async with serving(quota=quota) as address, connect(address, Role.SITE, "a") as stub:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                watching = read_stream(stub.WatchAggregation, aggregator_pb2.WatchAggregationRequest(), timeout_s=30)
                await anext(watching)
                stack.push_async_callback(watching.aclose)
            with pytest.raises(Overloaded, match="quota of calls"):
                await call_unary(stub.GetStatus, STATUS, timeout_s=20)
        async with asyncio.timeout(30):
            while True:
                try:
                    await call_unary(stub.GetStatus, STATUS, timeout_s=20)
                    break
                except Overloaded:
                    await asyncio.sleep(0.02)


async def test_connections_with_calls_are_bounded(serving: Any, federation: Any) -> None:
    credentials = federation.credentials(Role.SITE, "a")
    async with serving(quota={"connections": 2, "pause_seconds": 0.01}) as address, AsyncExitStack() as stack:
        for _ in range(2):
            channel = await stack.enter_async_context(open_channel(address, credentials, Role.AGGREGATOR))
            stub = AggregatorServiceStub(channel)
            watching: Any = read_stream(stub.WatchAggregation, aggregator_pb2.WatchAggregationRequest(), timeout_s=30)
            await anext(watching)
            stack.push_async_callback(watching.aclose)
        third = await stack.enter_async_context(open_channel(address, credentials, Role.AGGREGATOR))
        with pytest.raises(Overloaded, match="quota of connections"):
            await call_unary(AggregatorServiceStub(third).GetStatus, STATUS, timeout_s=20)


async def test_bytes_are_counted_message_by_message(serving: Any, connect: Any) -> None:
    quota = {"bytes_at_once": 250_000, "bytes_per_second": 1, "pause_seconds": 0.01}

    async def chunks() -> AsyncIterator[Any]:
        for index in range(10):
            chunk = tensors_pb2.Chunk(index=index, data=bytes(100_000))
            yield aggregator_pb2.UpdateParametersRequest(chunk=chunk)

    async with serving(quota=quota) as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(Overloaded):
            await send_stream(stub.UpdateParameters, chunks(), timeout_s=20)
        assert exceeded("bytes") >= 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def garbage() -> AsyncIterator[bytes]:
    yield b"\xff" * 100


async def test_a_message_that_cannot_be_read_is_a_mistake_of_its_sender(serving: Any, federation: Any) -> None:
    async with (
        serving() as address,
        open_channel(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR) as channel,
    ):
        garbled = channel.unary_unary(GET_UPLOAD)
        with pytest.raises(RemoteProtocolError, match="cannot be read"), rpc_errors():
            await garbled(b"\xff" * 100, timeout=20)
        streamed = channel.stream_unary(UPLOAD)
        with pytest.raises(RemoteProtocolError, match="cannot be read"):
            await send_stream(streamed, garbage(), timeout_s=20)
        # The service is as it was.
        with pytest.raises(UnknownSession):
            await call_unary(AggregatorServiceStub(channel).GetUpload, aggregator_pb2.GetUploadRequest(), timeout_s=20)


async def test_whoever_makes_many_mistakes_gets_its_answers_late(serving: Any, federation: Any) -> None:
    quota = {"mistakes_at_once": 2, "mistakes_per_second": 0.001, "pause_seconds": 0.3}
    loop, before = asyncio.get_running_loop(), exceeded("mistakes")
    async with (
        serving(quota=quota) as address,
        open_channel(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR) as channel,
    ):
        for method in (GET_UPLOAD, "/no.such/Method", GET_UPLOAD, "/no.such/Method"):
            began = loop.time()
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(method)(b"\xff" * 100, timeout=20)
        assert loop.time() - began >= 0.3
    assert exceeded("mistakes") == before + 2


async def test_an_honest_refusal_is_no_mistake(serving: Any, connect: Any) -> None:
    before = exceeded("mistakes")
    quota = {"mistakes_at_once": 1, "mistakes_per_second": 0.001}
    async with serving(quota=quota) as address, connect(address, Role.SITE, "a") as stub:
        for _ in range(5):
            with pytest.raises(UnknownSession):
                await call_unary(stub.GetUpload, aggregator_pb2.GetUploadRequest(), timeout_s=20)
    assert exceeded("mistakes") == before


async def test_accounts_that_are_idle_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.quotas.LARGEST_TABLE", 10)
    now = 0.0
    quotas = Quotas(QuotaSettings(), lambda: now)
    for number in range(10):
        async with quotas.call(f"site/{number}", "ipv4:1"):
            pass
    now = 10_000.0
    async with quotas.call("site/new", "ipv4:1"):
        assert len(quotas) == 1


async def test_connections_beyond_the_limit_are_refused_and_those_below_are_served(
    serving: Any, connect: Any, federation: Any
) -> None:
    async with serving(max_connections=8) as address:
        host, _, port = address.rpartition(":")
        async with connect(address, Role.SITE, "a") as stub:
            await call_unary(stub.GetStatus, STATUS, timeout_s=20)
            idle = [socket.create_connection((host, int(port))) for _ in range(40)]
            await until(lambda: connections_to(int(port))() <= 12)
            await call_unary(stub.GetStatus, STATUS, timeout_s=20)
            for one in idle:
                one.close()
        await until(lambda: connections_to(int(port))() == 0)
        async with connect(address, Role.SITE, "b") as stub:
            await call_unary(stub.GetStatus, STATUS, timeout_s=5, wait_for_ready=True)


async def test_handshakes_that_come_to_nothing_are_counted(serving: Any) -> None:
    before = metrics.HANDSHAKES._value.get()
    async with serving() as address:
        host, _, port = address.rpartition(":")
        for _ in range(5):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(bytes(100))
        await until(lambda: metrics.HANDSHAKES._value.get() >= before + 5)
