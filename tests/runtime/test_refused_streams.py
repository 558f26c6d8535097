"""A stream that is refused while it is still sent: the sender hears the refusal itself, every time."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fl_core.errors import PermissionRefused, SessionFrozen, TacitError
from fl_core.transport.identity import Role
from fl_core.transport.peer import send_stream
from fl_core.wire.v1 import aggregator_pb2, tensors_pb2

STREAMS = 150
"""Of which gRPC by itself lost the status of a few in each hundred."""


PATIENT = {"mistakes_at_once": 2 * STREAMS}


async def chunks(count: int, size: int) -> AsyncIterator[Any]:
    for index in range(count):
        chunk = tensors_pb2.Chunk(index=index, data=bytes(size))
        yield aggregator_pb2.UpdateParametersRequest(chunk=chunk)


async def refusals(method: Any, count: int, size: int) -> Counter[type[TacitError]]:
    """What the sender of so many streams was told."""
    heard: Counter[type[TacitError]] = Counter()
    for _ in range(STREAMS):
        try:
            await send_stream(method, chunks(count, size), timeout_s=30)
        except TacitError as error:
            heard[type(error)] += 1
    return heard


@pytest.mark.parametrize(("count", "size"), [(5, 10), (64, 65536)])
async def test_a_refusal_in_the_middle_of_a_stream_is_never_lost(
    serving: Any, connect: Any, servicer: Any, count: int, size: int
) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:

        def method(messages: AsyncIterator[Any], timeout: float) -> Any:
            # It refuses the third message of every stream.
            servicer.chunks = 0
            return stub.UpdateParameters(messages, timeout=timeout)

        assert await refusals(method, count, size) == {SessionFrozen: STREAMS}


@pytest.mark.parametrize(("count", "size"), [(5, 10), (64, 65536)])
async def test_a_refusal_before_a_message_is_read_is_never_lost(
    serving: Any, connect: Any, count: int, size: int
) -> None:
    async with serving(quota=PATIENT) as address, connect(address, Role.SITE, "a") as stub:
        assert await refusals(stub.SubmitMask, count, size) == {PermissionRefused: STREAMS}
