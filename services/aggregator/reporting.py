"""Hands a released sum to the coordinator that opened its session."""

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, cast

import structlog

from fl_core.codec.packing import pack_blocks, packed_bytes
from fl_core.errors import IdentityError, PeerLost, TacitError
from fl_core.rounds.report import AggregateInfo
from fl_core.secagg.transcript import Body, Part, sign_part
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.peer import send_stream
from fl_core.transport.preflight import check_service
from fl_core.transport.retry import retry
from fl_core.transport.tls import Credentials
from fl_core.wire.chunks import ChunkWriter
from fl_core.wire.convert import aggregate_to_proto, part_to_proto
from fl_core.wire.v1 import coordinator_pb2, coordinator_pb2_grpc
from services.aggregator.sums import ReleasedSum
from services.runtime.offload import offload

if TYPE_CHECKING:
    from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceAsyncStub

log = structlog.get_logger(__name__)


class AggregateReporter:
    """Client of `ReportAggregate`.

    Args:
        addresses: host:port of each coordinator.
        credentials: gives our certificate as it is now.
        timeout_s: how long a report is tried.
    """

    def __init__(self, addresses: Sequence[str], credentials: Callable[[], Credentials], timeout_s: float) -> None:
        self._addresses = tuple(addresses)
        self._credentials = credentials
        self._timeout_s = timeout_s

    async def report(self, released: ReleasedSum, coordinator_id: str) -> None:
        """Stream a sum to the coordinator; returns when it is acknowledged. A broken connection is tried again.

        Args:
            released: the sum.
            coordinator_id: id that the coordinator must have in its certificate.

        Raises:
            PeerLost: the coordinator cannot be reached in time.
            TacitError: the coordinator refuses the sum.
        """
        sha256 = await offload(packed_sha256, released)
        info = AggregateInfo(released.plan.session_id, released.survivors, released.total_weight, sha256)
        credentials = self._credentials()
        part = sign_part("released", _released_body(released, info), credentials.signer())

        async def send() -> None:
            address = await self._find(credentials, coordinator_id)
            async with open_channel(address, credentials, Role.COORDINATOR, coordinator_id) as channel:
                stub = cast("CoordinatorServiceAsyncStub", coordinator_pb2_grpc.CoordinatorServiceStub(channel))
                await send_stream(stub.ReportAggregate, _requests(released, info, part), timeout_s=self._timeout_s)

        await retry(send, deadline_s=self._timeout_s)
        log.info("aggregate_reported", survivors=len(released.survivors), total_weight=released.total_weight)

    async def _find(self, credentials: Credentials, coordinator_id: str) -> str:
        """The address at which the coordinator that opened a session listens.

        Raises:
            PeerLost: one that may be it cannot be reached.
            IdentityError: none of them is it.
        """
        errors: list[TacitError] = []
        for address in self._addresses:
            try:
                await check_service(address, credentials, Role.COORDINATOR, pinned_id=coordinator_id)
            except (PeerLost, IdentityError) as error:
                errors.append(error)
            else:
                return address
        raise next((error for error in errors if error.retryable), errors[0])


def packed_sha256(released: ReleasedSum) -> bytes:
    """SHA-256 of the packed sum, 32 bytes."""
    digest = hashlib.sha256()
    for block in pack_blocks(released.vector, released.plan.codec.ring_bits):
        digest.update(block.data)
    return digest.digest()


def _released_body(released: ReleasedSum, info: AggregateInfo) -> Body:
    return {
        "session": released.plan.binding.hex(),
        "survivors": list(info.survivors),
        "total_weight": info.total_weight,
        "aggregate_sha256": info.sha256.hex(),
    }


async def _requests(
    released: ReleasedSum, info: AggregateInfo, part: Part
) -> AsyncIterator[coordinator_pb2.ReportAggregateRequest]:
    plan = released.plan
    ring_bits = plan.codec.ring_bits
    # Packed piece by piece while it is sent: a second copy of the sum never exists.
    writer = ChunkWriter(
        pack_blocks(released.vector, ring_bits),
        chunk_bytes=plan.chunk_bytes,
        total_bytes=packed_bytes(plan.length, ring_bits),
    )
    header = coordinator_pb2.AggregateHeader(
        info=aggregate_to_proto(info), stream=writer.header, part=part_to_proto(part)
    )
    yield coordinator_pb2.ReportAggregateRequest(header=header)
    for chunk in writer.chunks():
        yield coordinator_pb2.ReportAggregateRequest(chunk=chunk)
    yield coordinator_pb2.ReportAggregateRequest(trailer=writer.trailer)
