"""The proxy of the tests makes exactly the faults that it is told to make."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fault_proxy import Faults, running_proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """A server that says everything again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def connection(address: str) -> AsyncIterator[Streams]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_a_perfect_link_passes_every_byte() -> None:
    sent = bytes(range(256)) * 4000
    async with echo() as target, running_proxy(target) as (proxy, address), connection(address) as (reader, writer):
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
    assert proxy.passed_bytes == 2 * len(sent)


async def test_a_slow_link_takes_its_time() -> None:
    loop = asyncio.get_running_loop()
    faults = Faults(delay_s=0.05, bytes_per_second=1_000_000)
    async with echo() as target, running_proxy(target, faults) as (_, address), connection(address) as (reader, writer):
        began = loop.time()
        writer.write(bytes(100_000))
        await reader.readexactly(100_000)
        # 0.1 s for the bytes, and the delay there and back.
        assert loop.time() - began >= 0.2


async def test_cut_connections_are_reset_and_new_ones_work() -> None:
    async with echo() as target, running_proxy(target) as (proxy, address):
        async with connection(address) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
            proxy.cut()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(1)
        async with connection(address) as (reader, writer):
            writer.write(b"y")
            assert await reader.readexactly(1) == b"y"
    assert proxy.accepted == 2


async def test_a_connection_is_cut_at_its_age() -> None:
    faults = Faults(cut_every_s=0.05)
    async with echo() as target, running_proxy(target, faults) as (_, address), connection(address) as (reader, _):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1)


async def test_corruption_changes_bytes_the_same_way_for_the_same_seed() -> None:
    async def through(seed: int) -> bytes:
        faults = Faults(corrupt_every_bytes=1000)
        async with echo() as target, running_proxy(target, faults, seed=seed) as (proxy, address):
            async with connection(address) as (reader, writer):
                writer.write(bytes(1000))
                got = await reader.readexactly(1000)
            assert proxy.corrupted == 2
            return got

    # A piece as long as the mean distance between errors always has one, in each direction.
    first = await through(1)
    assert first == await through(1)
    assert first != bytes(1000)


async def test_a_swallowing_link_stays_open_and_says_nothing() -> None:
    faults = Faults(swallow=True)
    async with (
        echo() as target,
        running_proxy(target, faults) as (proxy, address),
        connection(address) as (reader, writer),
    ):
        writer.write(b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        assert proxy.open_connections == 1
