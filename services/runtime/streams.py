"""Reading the messages of a client stream, none of which may keep a handler waiting for ever."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from google.protobuf.message import Message

from fl_core.errors import PeerLost, RemoteProtocolError

MessageT = TypeVar("MessageT", bound=Message)


async def next_message(messages: AsyncIterator[MessageT], timeout_s: float, what: str) -> MessageT | None:
    """The next message of a stream, or None when the stream ended.

    A broken stream ends like a complete one, so the end alone never means success.

    Args:
        messages: the requests of the call.
        timeout_s: seconds to wait.
        what: what is waited for, for the error.

    Raises:
        PeerLost: nothing came in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(messages, None)
    except TimeoutError as error:
        raise PeerLost(
            f"the caller went silent in the middle of {what}",
            expected=f"a message within {timeout_s:g} s",
            fix="try again",
        ) from error


async def expect_message(messages: AsyncIterator[MessageT], kind: str, timeout_s: float) -> MessageT:
    """The next message of a stream, which must be of this kind.

    Args:
        messages: the requests of the call; each has one `oneof`.
        kind: the field of the `oneof` that must be set.
        timeout_s: seconds to wait.

    Raises:
        RemoteProtocolError: it is of another kind, or the stream ended.
        PeerLost: nothing came in time.
    """
    message = await next_message(messages, timeout_s, f"a stream, before its {kind}")
    got = "the end of the stream" if message is None else _kind(message)
    if message is None or got != kind:
        raise RemoteProtocolError("a message is out of turn", expected=kind, got=got or "an empty message")
    return message


def _kind(message: Message) -> str | None:
    oneof: Any = message.DESCRIPTOR.oneofs[0]
    name: str | None = message.WhichOneof(oneof.name)
    return name
