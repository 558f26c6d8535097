"""Sums that the aggregator reports: expected by session, checked as they come, kept until the attempt takes them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from fl_core.codec.packing import packed_bytes
from fl_core.errors import BadAggregate, SessionFrozen, StreamError, TacitError, UnknownSession
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.report import AggregateInfo
from fl_core.transport.identity import Identity
from fl_core.wire.chunks import ChunkReader
from fl_core.wire.convert import aggregate_from_proto
from fl_core.wire.v1 import coordinator_pb2 as pb
from fl_core.wire.v1 import round_pb2
from services.runtime.membership import check_service
from services.runtime.staging import StagedStream, StagingArea
from services.runtime.streams import expect_message, next_message

STALL_TIMEOUT_S = 30.0

Requests = AsyncIterator[pb.ReportAggregateRequest]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The sum of one session: what the aggregator says about it, and the packed vector that fits that."""

    info: AggregateInfo
    packed: StagedStream = field(repr=False)
    part: round_pb2.SignedPart = field(repr=False)


class Arrival:
    """What one attempt waits for. The survivors of a secure attempt are known before its sum comes."""

    def __init__(self, plan: RoundPlan, room: ExitStack) -> None:
        self.plan = plan
        self.room = room
        self.survivors: tuple[int, ...] | None = None
        self.aggregate: Aggregate | None = None
        self.error: TacitError | None = None

    def take(self) -> Aggregate:
        """The sum.

        Raises:
            BadAggregate: it did not come, or it was refused.
        """
        if self.error is not None:
            raise self.error
        if self.aggregate is None:
            raise BadAggregate("the aggregator said that it reported a sum, but none came", expected="a sum")
        return self.aggregate

    def check(self, info: AggregateInfo) -> None:
        """Check the survivors that a sum claims.

        Raises:
            BadAggregate: they are not those of this attempt.
        """
        plan = self.plan
        if info.survivors[-1:] >= (len(plan.roster),) or len(info.survivors) < plan.min_survivors:
            raise BadAggregate(
                "the survivors of a sum are impossible",
                expected=f"{plan.min_survivors} to {len(plan.roster)} sites of the roster",
                got=f"{len(info.survivors)} sites",
            )
        if self.survivors is not None and info.survivors != self.survivors:
            raise BadAggregate(
                "a sum is over other survivors than were frozen",
                expected=f"{len(self.survivors)} sites",
                got=f"{len(info.survivors)} sites",
            )


class AggregateInbox:
    """The sums that open attempts wait for.

    Args:
        staging: where a sum waits until it is whole, proved, and applied.
    """

    def __init__(self, staging: StagingArea) -> None:
        self._staging = staging
        self._arrivals: dict[bytes, Arrival] = {}

    @contextmanager
    def expect(self, plan: RoundPlan, room: ExitStack) -> Iterator[Arrival]:
        """Take the sum of this session while the block runs, and no other. It is kept until `room` is closed."""
        arrival = self._arrivals[plan.session_id] = Arrival(plan, room)
        try:
            yield arrival
        finally:
            del self._arrivals[plan.session_id]

    async def receive(self, identity: Identity, requests: Requests) -> None:
        """Take one report. The same sum may be reported again.

        Raises:
            UnknownSession: no attempt waits for it.
            PermissionRefused: the caller is not the aggregator of the plan.
            StreamError: the stream is truncated or damaged; it may be sent again.
            BadAggregate: survivors or digest are wrong; the attempt fails.
            SessionFrozen: another sum was reported before.
        """
        header = (await expect_message(requests, "header", STALL_TIMEOUT_S)).header
        info = aggregate_from_proto(header.info)
        arrival = self._arrivals.get(info.session_id)
        if arrival is None:
            raise UnknownSession("no attempt waits for this sum", got=info.session_id.hex())
        check_service(arrival.plan.aggregator, identity)
        if arrival.aggregate is not None:
            _check_same(arrival.aggregate.info, info)
            return
        try:
            arrival.check(info)
            with ExitStack() as room:
                size = packed_bytes(arrival.plan.length, arrival.plan.codec.ring_bits)
                packed = room.enter_context(self._staging.stage(size))
                await _read(arrival.plan, header, info, requests, packed)
                arrival.room.push(room.pop_all())
        except BadAggregate as error:
            arrival.error = error
            raise
        arrival.aggregate = Aggregate(info, packed, header.part)


def _check_same(kept: AggregateInfo, info: AggregateInfo) -> None:
    if kept != info:
        raise SessionFrozen("another sum of this session was reported before", expected="one sum per session")


async def _read(
    plan: RoundPlan, header: pb.AggregateHeader, info: AggregateInfo, requests: Requests, packed: StagedStream
) -> None:
    size = packed_bytes(plan.length, plan.codec.ring_bits)
    reader = ChunkReader(header.stream, max_bytes=size, expected_bytes=size, expected_chunk_bytes=plan.chunk_bytes)
    while (message := await next_message(requests, STALL_TIMEOUT_S, "a sum")) is not None:
        match message.WhichOneof("part"):
            case "chunk":
                await packed.write(reader.feed(message.chunk))
            case "trailer":
                _check_digest(info, reader.finish(message.trailer))
            case other:
                raise StreamError("a part of a sum is out of turn", expected="chunk or trailer", got=other)
    reader.end()


def _check_digest(info: AggregateInfo, sha256: bytes) -> None:
    if sha256 != info.sha256:
        raise BadAggregate(
            "a sum has another digest than its header says", expected=info.sha256.hex(), got=sha256.hex()
        )
