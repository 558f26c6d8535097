"""Hands the combined mask of a session to the aggregator that its plan names, and to nobody else."""

from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from typing import TYPE_CHECKING, cast

import structlog

from fl_core.codec.packing import pack_blocks, packed_bytes
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import IdentityError
from fl_core.rounds.plan import RoundPlan
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.peer import send_stream
from fl_core.transport.preflight import check_service
from fl_core.transport.retry import retry
from fl_core.transport.tls import Credentials
from fl_core.wire.chunks import ChunkWriter
from fl_core.wire.v1 import aggregator_pb2, aggregator_pb2_grpc

if TYPE_CHECKING:
    from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceAsyncStub

log = structlog.get_logger(__name__)


class MaskDelivery:
    """Client of `SubmitMask`.

    Args:
        credentials: gives our certificate as it is now.
        timeout_s: how long a delivery is tried.
    """

    def __init__(self, credentials: Callable[[], Credentials], timeout_s: float) -> None:
        self._credentials = credentials
        self._timeout_s = timeout_s

    async def deliver(self, plan: RoundPlan, survivors: tuple[int, ...], mask: RingVector) -> None:
        """Stream a mask to the aggregator; returns when it is acknowledged. A broken connection is tried again.

        Args:
            plan: of the session.
            survivors: whose sum it unmasks, ascending.
            mask: (plan.length,) in the lane of the ring.

        Raises:
            IdentityError: the plan's address is held by another service than the plan names.
            PeerLost: the aggregator cannot be reached in time.
            TacitError: the aggregator refuses the mask.
        """
        await retry(lambda: self._deliver(plan, survivors, mask), deadline_s=self._timeout_s)
        log.info("mask_delivered", survivors=len(survivors))

    async def _deliver(self, plan: RoundPlan, survivors: tuple[int, ...], mask: RingVector) -> None:
        credentials, aggregator = self._credentials(), plan.aggregator
        found = await check_service(aggregator.address, credentials, Role.AGGREGATOR, pinned_id=aggregator.service_id)
        fingerprint = sha256(found.certificate_der).digest()
        if fingerprint != aggregator.certificate_sha256:
            raise IdentityError(
                "the aggregator shows another certificate than the plan names",
                expected=aggregator.certificate_sha256.hex()[:16],
                got=fingerprint.hex()[:16],
                fix="run the round again as the next attempt",
            )
        async with open_channel(aggregator.address, credentials, Role.AGGREGATOR, aggregator.service_id) as channel:
            stub = cast("AggregatorServiceAsyncStub", aggregator_pb2_grpc.AggregatorServiceStub(channel))
            await send_stream(stub.SubmitMask, _requests(plan, survivors, mask), timeout_s=self._timeout_s)


async def _requests(
    plan: RoundPlan, survivors: tuple[int, ...], mask: RingVector
) -> AsyncIterator[aggregator_pb2.SubmitMaskRequest]:
    ring_bits = plan.codec.ring_bits
    # Packed piece by piece while it is sent: a second copy of the mask never exists.
    writer = ChunkWriter(
        pack_blocks(mask, ring_bits),
        chunk_bytes=plan.chunk_bytes,
        total_bytes=packed_bytes(plan.length, ring_bits),
    )
    header = aggregator_pb2.MaskHeader(session_id=plan.session_id, survivors=survivors, stream=writer.header)
    yield aggregator_pb2.SubmitMaskRequest(header=header)
    for chunk in writer.chunks():
        yield aggregator_pb2.SubmitMaskRequest(chunk=chunk)
    yield aggregator_pb2.SubmitMaskRequest(trailer=writer.trailer)
