"""Calls to a peer: always with a timeout, and with our errors instead of gRPC's."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fl_core.errors import TacitError
from fl_core.transport.errors import rpc_errors
from fl_core.transport.true_status import call_errors

Response = TypeVar("Response")
Request = TypeVar("Request")


async def call_unary(
    method: Callable[..., Awaitable[Response]], request: object, *, timeout_s: float, wait_for_ready: bool = False
) -> Response:
    """Make one unary call.

    Args:
        method: a method of a stub.
        request: its message.
        timeout_s: seconds until it fails.
        wait_for_ready: wait within the timeout for a peer that is not there yet, instead of failing at once.

    Raises:
        TacitError: the error that the peer raised; PeerLost when it cannot be reached or is late.
    """
    with rpc_errors():
        return await method(request, timeout=timeout_s, wait_for_ready=wait_for_ready)


async def read_stream(
    method: Callable[..., AsyncIterable[Response]], request: object, *, timeout_s: float | None
) -> AsyncIterator[Response]:
    """Read the responses of a server stream; leaving the iteration cancels the call.

    Args:
        method: a method of a stub.
        request: its message.
        timeout_s: seconds for the whole stream; None for one that stays open, which keepalive watches.

    Raises:
        TacitError: as `call_unary`.
    """
    call: Any = method(request, timeout=timeout_s)
    try:
        with rpc_errors():
            async for response in call:
                yield response
    finally:
        call.cancel()


async def converse(
    method: Callable[..., Any], requests: AsyncIterable[Request], *, timeout_s: float
) -> AsyncIterator[Any]:
    """Send a stream and read the answers to it meanwhile; leaving the iteration cancels the call.

    Args:
        method: a method of a stub.
        requests: the messages; an error that this iteration raises is raised here.
        timeout_s: seconds for the whole conversation.

    Raises:
        TacitError: as `call_unary`.
    """
    source = _Watched(requests)
    call: Any = method(source.messages(), timeout=timeout_s)
    try:
        async with call_errors(call):
            async for response in call:
                yield response
    except (asyncio.CancelledError, TacitError):
        # gRPC turns an error of the request iterator into a bare cancellation.
        if source.error is not None:
            raise source.error from None
        raise
    finally:
        call.cancel()


async def send_stream(
    method: Callable[..., Awaitable[Response]], requests: AsyncIterable[Request], *, timeout_s: float
) -> Response:
    """Send a client stream and wait for the answer.

    Args:
        method: a method of a stub.
        requests: the messages; an error that this iteration raises is raised here.
        timeout_s: seconds for the whole stream.

    Raises:
        TacitError: as `call_unary`. After a broken stream PeerLost says nothing about what the peer has received.
    """
    source = _Watched(requests)
    call = method(source.messages(), timeout=timeout_s)
    try:
        async with call_errors(call):
            return await call
    except (asyncio.CancelledError, TacitError):
        # gRPC turns an error of the request iterator into a bare cancellation.
        if source.error is not None:
            raise source.error from None
        raise


class _Watched:
    """An iteration that remembers the error it ended with."""

    def __init__(self, requests: AsyncIterable[Any]) -> None:
        self._requests = requests
        self.error: Exception | None = None

    async def messages(self) -> AsyncIterator[Any]:
        try:
            async for request in self._requests:
                yield request
        except Exception as error:
            self.error = error
            raise
