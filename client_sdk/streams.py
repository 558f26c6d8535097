"""Two-way streams of gRPC, without their two traps: a write after the end, and an end that looks like success."""

import asyncio
from typing import TypeVar, cast

import grpc

from fl_core.errors import RemoteProtocolError

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


def _early_end() -> RemoteProtocolError:
    return RemoteProtocolError("the service ended the stream too early", expected="the next message", got="the end")
