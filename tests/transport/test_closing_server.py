"""A server that says goodbye as it says hello: gRPC's own retries take the memory of whoever calls it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from fl_core.transport.channel import CHANNEL_OPTIONS, Option

# RFC 9113: length (3 bytes), type, flags, stream; SETTINGS is type 4, GOAWAY type 7 with last stream and error code.
SETTINGS = bytes([0, 0, 0, 4, 0]) + bytes(4)
GOAWAY = bytes([0, 0, 8, 7, 0]) + bytes(4) + bytes(8)


@asynccontextmanager
async def closing_server() -> AsyncIterator[str]:
    """The address of a server that takes connections and, on each of them, no call."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SETTINGS + GOAWAY)
        while await reader.read(1 << 16):
            pass
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def outcome(options: tuple[Option, ...], timeout_s: float) -> grpc.StatusCode:
    async with closing_server() as address, grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary("/service/Method")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"request", timeout=timeout_s)
        return refused.value.code()


async def test_a_call_to_a_server_that_closes_at_once_fails_at_once() -> None:
    assert await outcome(CHANNEL_OPTIONS, timeout_s=20) is grpc.StatusCode.UNAVAILABLE


async def test_without_our_option_grpc_tries_again_until_the_deadline_and_never_pauses() -> None:
    # It takes some hundred megabytes in each second, so the deadline is short.
    others = tuple(option for option in CHANNEL_OPTIONS if option[0] != "grpc.enable_retries")
    assert await outcome(others, timeout_s=0.1) is grpc.StatusCode.DEADLINE_EXCEEDED
