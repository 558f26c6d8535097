"""Two-way streams of gRPC, without their two traps: a write after the end, and an end that looks like success."""

import asyncio
from contextlib import suppress
from typing import TypeVar, cast

import grpc

from fl_core.errors import RemoteProtocolError

FAREWELL_S = 1.0

Request = TypeVar("Request")
Response = TypeVar("Response")


async def send(call: grpc.aio.StreamStreamCall[Request, Response], message: Request) -> None:
    """Send a message.

    Raises:
        grpc.RpcError: the call failed.
        RemoteProtocolError: the peer ended the call as if all had been said.
    """
    try:
        await call.write(message)
    except asyncio.InvalidStateError:
        # A write after the end says nothing about why; reading does.
        await call.read()
        raise _early_end() from None


async def receive(call: grpc.aio.StreamStreamCall[Request, Response]) -> Response:
    """Wait for the next message.

    Raises:
        grpc.RpcError: the call failed.
        RemoteProtocolError: the peer ended the call as if all had been said.
    """
    message = await call.read()
    if message is grpc.aio.EOF:
        raise _early_end()
    # The type of EOF is open, so that the check above narrows nothing.
    return cast(Response, message)


async def answered(call: grpc.aio.StreamUnaryCall[Request, Response]) -> None:
    """Wait until the peer has sent its initial metadata, or has ended the call; the next write shows which."""
    ended = asyncio.Event()
    call.add_done_callback(lambda _call: ended.set())
    # A call that fails before its initial metadata never says so to those who wait for them.
    waiting = [asyncio.ensure_future(call.initial_metadata()), asyncio.ensure_future(ended.wait())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waiting:
            wait.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def finish(call: grpc.aio.StreamStreamCall[Request, Response]) -> None:
    """Let a call that has said everything end by itself: a cancelled one is an error in the service's log.

    Everything that matters is here already, so that nothing that goes wrong now is of interest.
    """
    with suppress(grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await call.done_writing()
            await call.read()


def _early_end() -> RemoteProtocolError:
    return RemoteProtocolError("the service ended the stream too early", expected="the next message", got="the end")
