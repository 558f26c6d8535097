"""The status of a call that the peer ends while we still send.

A write that fails as the call ends makes gRPC for Python put a status of its own, `Internal error from Core`, over the
one that the peer gave (grpc issue 36066). The peer's is known all the same: either it came first, and whoever was told
of the end could still see it, or it follows within moments.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from fl_core.transport.errors import from_rpc_error, is_masked

Result = TypeVar("Result")

PAUSE_S = 0.005
PAUSES = 40
"""How often a status that is still to come is looked for: 0.2 s in all, which nobody waits for but a broken call."""


@asynccontextmanager
async def call_errors(call: Any) -> AsyncIterator[None]:
    """Raise our errors instead of gRPC's inside the block, for one call that sends a stream.

    Args:
        call: of gRPC; nothing may have been awaited on it before the block.

    Raises:
        TacitError: the error that the peer raised; PeerLost when it cannot be reached.
    """
    first = _FirstStatus()
    call.add_done_callback(first.keep)
    try:
        yield
    except grpc.aio.AioRpcError as error:
        told = await _unmasked(call, first.status, error) if is_masked(error) else error
        raise from_rpc_error(told) from error


class _FirstStatus:
    """The status with which a call ended, before another could be put over it."""

    def __init__(self) -> None:
        self.status: grpc.aio.AioRpcError | None = None

    def keep(self, call: Any) -> None:
        """Called by gRPC as soon as the call has a status: in this very moment, so that nothing may be awaited."""
        self.status = _at_once(_status(call))


async def _unmasked(call: Any, first: grpc.aio.AioRpcError | None, mask: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    if first is not None and _is_refusal(first):
        return first
    for _ in range(PAUSES):
        await asyncio.sleep(PAUSE_S)
        status = await _status(call)
        if _is_refusal(status):
            return status
    return mask


def _is_refusal(status: grpc.aio.AioRpcError) -> bool:
    return status.code() is not grpc.StatusCode.OK and not is_masked(status)


async def _status(call: Any) -> grpc.aio.AioRpcError:
    code, details, trailing = await call.code(), await call.details(), await call.trailing_metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing or grpc.aio.Metadata(), details)


def _at_once(coroutine: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of a coroutine that has nothing to wait for; None for one that has."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        coroutine.close()
    return None
