"""One session of an attempt: a part of the cohort, at its own aggregator and key server, up to its sum."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack

import structlog

from fl_core.errors import RemoteProtocolError, SessionFrozen, StorageError, TacitError, UnknownSession
from fl_core.rounds.machine import (
    AbandonReason,
    DropoutReason,
    Quorum,
    next_deadline_s,
    quorum,
)
from fl_core.rounds.plan import Aggregation, ClientId, RoundPlan
from fl_core.secagg.beacon import SecretBeacon
from fl_core.secagg.messages import Beacon
from fl_core.transport.tracing import trace_context
from fl_core.wire.checks import digest_from_proto, indices_from_proto
from fl_core.wire.convert import (
    abandon_reason_from_proto,
    dropout_reason_from_proto,
    plan_to_proto,
)
from fl_core.wire.v1 import aggregator_pb2, keyserver_pb2, round_pb2
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.aggregates import Aggregate, Arrival
from services.coordinator.failures import AttemptFailed, run_beside
from services.coordinator.journal import SessionJournal
from services.coordinator.peers import AggregatorPeer, KeyServerPeer
from services.coordinator.records import ModelRecord, SiteBytes
from services.coordinator.resources import Resources
from services.coordinator.transcripts import AttemptTranscript

log = structlog.get_logger(__name__)

EXCHANGE_SLACK_S = 20.0
"""The key server ends its phases by itself; this much later we stop believing that it will."""

LAST_RECORDS_S = 1.0
"""For the uploads that broke off, which the aggregator tells about when it freezes."""


class SessionRun:
    """One session. Made for one call of `gather`.

    Args:
        plan: of the session.
        beacon: that the plan commits to; None in a plain session.
        aggregator: of the plan.
        keyserver: of the plan; None in a plain session.
        resources: stores and sites.
    """

    def __init__(
        self,
        plan: RoundPlan,
        beacon: SecretBeacon | None,
        aggregator: AggregatorPeer,
        keyserver: KeyServerPeer | None,
        resources: Resources,
    ) -> None:
        self.plan = plan
        self.transcript: AttemptTranscript | None = None
        self._with = resources
        self._aggregator = aggregator
        self._secure_keyserver = keyserver
        self._beacon = beacon
        self._journal: SessionJournal | None = None
        # Bounded by the cohort: each site departs once.
        self._departures: asyncio.Queue[tuple[ClientId, DropoutReason]] = asyncio.Queue()
        self._departed: dict[ClientId, str] = {}
        self._revealed: tuple[bytes, Beacon] | None = None
        self._accepted: set[int] = set()
        self._refused: set[int] = set()
        self._records_ended = asyncio.Event()
        self._exchange: asyncio.Future[keyserver_pb2.ExchangeClosed] = asyncio.get_running_loop().create_future()
        self._upload_bytes: dict[int, int] = defaultdict(int)
        self._key_bytes: dict[int, SiteBytes] = defaultdict(SiteBytes)

    @property
    def journal(self) -> SessionJournal:
        """What has happened in the session, once it is in the database."""
        assert self._journal is not None
        return self._journal

    async def begin(self, journal: SessionJournal) -> None:
        """The session is in the database: open its transcript.

        Raises:
            StorageError: the blob store failed.
        """
        self._journal = journal
        self.transcript = await self._with.transcripts.begin(self.plan, journal.number)

    async def gather(self, room: ExitStack) -> Aggregate:
        """Open the session at its services, invite its sites, and lead it to its sum.

        Args:
            room: keeps the sum until it is closed.

        Raises:
            AttemptFailed, TacitError: the session cannot go on; what it holds elsewhere was given up.
            StorageError: database or blob store failed.
        """
        plan = self.plan
        structlog.contextvars.bind_contextvars(session_id=plan.session_id.hex())
        with ExitStack() as busy, self._with.inbox.expect(plan, room) as arrival:
            for peer in self._peers:
                busy.enter_context(peer.busy())
            await self._open_sessions(plan)
            self._invite(plan)
            watchers = [self._watch_uploads(plan), self._pass_departures_on(plan)]
            if plan.aggregation is Aggregation.SECAGG:
                return await run_beside(self._sum_masked(plan, arrival), self._watch_exchange(plan), *watchers)
            return await run_beside(self._sum_unmasked(plan, arrival), *watchers)

    def leave(self, client_id: ClientId, reason: DropoutReason, detail: str = "") -> None:
        """A site leaves on purpose, in its own words, or is lost; said again it changes nothing."""
        if client_id not in self._departed:
            # Bounded by the roster: each site departs once.
            self._departed[client_id] = detail
            self._departures.put_nowait((client_id, reason))

    async def note_last_departures(self) -> None:
        """Those who left in the last moment belong into the report too."""
        while not self._departures.empty():
            await self.journal.drop(*self._departures.get_nowait())

    def site_bytes(self) -> dict[int, SiteBytes]:
        """Message bytes of each site by its place in the attempt, on all its streams."""
        own = [self._with.traffic.take(self.plan.job_id, entry.client_id) for entry in self.plan.roster]
        return {
            self.journal.place_of(entry.client_id): own[index]
            + self._key_bytes[index]
            + SiteBytes(up=self._upload_bytes[index])
            for index, entry in enumerate(self.plan.roster)
        }

    async def abandon(self) -> None:
        """Let the services forget the session, as far as they can be reached: it expires anyway."""
        await forget_sessions(self._peers, [self.plan.session_id])

    async def close_transcript(self, model: ModelRecord | None, aggregate: Aggregate | None) -> None:
        """Sign and store how the session ended.

        Args:
            model: what the attempt committed, if it did and the session is part of it.
            aggregate: the sum that was applied.
        """
        if self.transcript is None:
            return
        sha256 = aggregate.info.sha256 if model is not None and aggregate is not None else b""
        journal = self.journal
        try:
            await self._with.transcripts.close(
                self.transcript, journal.key, journal.number, journal.record, model, sha256
            )
        except StorageError as error:
            # What was committed stays committed; the gap shows in the chain of the transcripts.
            log.error("transcript_not_stored", error=str(error))

    @property
    def _peers(self) -> list[AggregatorPeer | KeyServerPeer]:
        return [self._aggregator, *([self._secure_keyserver] if self._secure_keyserver else [])]

    @property
    def _keyserver(self) -> KeyServerPeer:
        assert self._secure_keyserver is not None
        return self._secure_keyserver

    async def _open_sessions(self, plan: RoundPlan) -> None:
        await self._aggregator.open(plan)
        if plan.aggregation is Aggregation.SECAGG:
            await self._keyserver.open(plan)

    def _invite(self, plan: RoundPlan) -> None:
        event = pb.WatchRoundsResponse(invitation=plan_to_proto(plan), trace_context=trace_context())
        size = event.ByteSize()
        for entry in plan.roster:
            if self._with.presence.send(entry.client_id, event):
                self._with.traffic.count(plan.job_id, entry.client_id, down=size)
            else:
                self.leave(entry.client_id, DropoutReason.DISCONNECTED)
        log.info("cohort_invited", sites=len(plan.roster), aggregation=plan.aggregation.value)

    async def _sum_masked(self, plan: RoundPlan, arrival: Arrival) -> Aggregate:
        eligible = await self._close_exchange(plan)
        await self._aggregator.admit(plan, eligible)
        survivors, frozen = await self._collect_uploads(plan, eligible)
        arrival.survivors = survivors
        await self.journal.freeze(self._names(survivors))
        await self._unmask(plan, survivors, frozen, arrival)
        aggregate = arrival.take()
        self._record_part("released", aggregate.part)
        await self.journal.receive(self._names(aggregate.info.survivors), aggregate.info)
        return aggregate

    async def _sum_unmasked(self, plan: RoundPlan, arrival: Arrival) -> Aggregate:
        survivors, _ = await self._collect_uploads(plan, range(len(plan.roster)))
        arrival.survivors = survivors
        aggregate = arrival.take()
        self._record_part("released", aggregate.part)
        arrival.check(aggregate.info)
        await self.journal.receive(self._names(survivors), aggregate.info)
        return aggregate

    async def _close_exchange(self, plan: RoundPlan) -> tuple[int, ...]:
        schedule = plan.schedule
        try:
            async with asyncio.timeout(
                schedule.advertising.max_seconds + schedule.sharing.max_seconds + EXCHANGE_SLACK_S
            ):
                closed = await asyncio.shield(self._exchange)
        except TimeoutError as error:
            raise AttemptFailed(AbandonReason.DEADLINE, "the key server did not end the exchange") from error
        size = len(plan.roster)
        advertised, shared = indices_from_proto(closed.advertised, size), indices_from_proto(closed.shared, size)
        self._count_key_bytes(closed.bytes_up, closed.bytes_down)
        self._record_part("exchanged", closed.part)
        for index in sorted(set(range(size)) - set(shared)):
            silent = DropoutReason.SHARE_TIMEOUT if index in advertised else DropoutReason.ADVERTISE_TIMEOUT
            await self._drop(index, silent)
        if len(shared) < plan.min_survivors:
            raise AttemptFailed(
                AbandonReason.TOO_FEW_SHARES, f"{len(shared)} sites shared keys, {plan.min_survivors} are needed"
            )
        await self.journal.close_exchange(self._names(shared))
        return shared

    async def _collect_uploads(
        self, plan: RoundPlan, eligible: Iterable[int]
    ) -> tuple[tuple[int, ...], round_pb2.SignedPart]:
        expected = frozenset(eligible)
        await self._await_uploads(plan, expected)
        # From here on a sum may come into being, whatever breaks: it is counted now, and for good.
        await self._with.privacy.reserve(plan)
        survivors, frozen = await self._aggregator.freeze(plan, sorted(expected))
        if not set(survivors) <= expected or len(survivors) < plan.min_survivors:
            raise AttemptFailed(AbandonReason.BAD_AGGREGATE, "the aggregator froze impossible survivors")
        await self._with.privacy.check_signed(plan, survivors)
        await self._await_last_records()
        for index in sorted(expected - set(survivors)):
            await self._drop(index, DropoutReason.UPLOAD_TIMEOUT)
        self._record_part("frozen", frozen)
        return survivors, frozen

    async def _await_uploads(self, plan: RoundPlan, expected: frozenset[int]) -> None:
        bounds, needed = plan.schedule.uploading, plan.min_survivors
        while True:
            answered = len(self._accepted & expected)
            lost = {index for index, entry in enumerate(plan.roster) if entry.client_id in self.journal.record.lost}
            waiting = len(expected - self._accepted - self._refused - lost)
            match quorum(answered, answered + waiting, needed, self.journal.elapsed_s, bounds):
                case Quorum.CLOSE:
                    return
                case Quorum.FAIL:
                    detail = f"{answered} uploads are here and {waiting} may still come, {needed} are needed"
                    await self._check_not_restarted(plan)
                    raise AttemptFailed(AbandonReason.TOO_FEW_UPLOADS, detail + self._last_words())
            left = next_deadline_s(answered, needed, bounds) - self.journal.elapsed_s
            await self.journal.changes.wait(max(left, 0.0) + 0.001)

    async def _check_not_restarted(self, plan: RoundPlan) -> None:
        """Tell sites that gave up from sites that were turned away by an aggregator that forgot the session.

        Raises:
            AttemptFailed: the aggregator was restarted, or is out of reach.
        """
        if not await self._aggregator.holds(plan):
            raise AttemptFailed(AbandonReason.SERVICE_RESTARTED, "the aggregator does not know the session any more")

    def _last_words(self) -> str:
        """Why a site left, in its words: often all of them left for the same reason."""
        said = next(((client_id, detail) for client_id, detail in self._departed.items() if detail), None)
        return "" if said is None else f"; {said[0]} left because {said[1]}"

    async def _await_last_records(self) -> None:
        try:
            async with asyncio.timeout(LAST_RECORDS_S):
                await self._records_ended.wait()
        except TimeoutError:
            return

    def _record_part(self, kind: str, part: round_pb2.SignedPart) -> None:
        if self.transcript is not None:
            self.transcript.take(kind, part)

    async def _unmask(
        self, plan: RoundPlan, survivors: Sequence[int], frozen: round_pb2.SignedPart, arrival: Arrival
    ) -> None:
        try:
            response = await self._keyserver.unmask(plan, survivors, frozen)
        except TacitError as error:
            if arrival.aggregate is None and isinstance(error, SessionFrozen):
                # The key server wrote down that it unmasks, and was restarted before the sum was here.
                raise AttemptFailed(AbandonReason.SERVICE_RESTARTED, str(error)) from error
            if arrival.aggregate is None:
                raise
            # The sum is here and checked; only the answer was lost on its way.
            log.warning("unmask_answer_lost", error=str(error))
            return
        self._count_key_bytes(response.bytes_up, response.bytes_down)
        await self._take_dropouts(response.dropouts)
        self._record_part("unmasked", response.part)
        failure = abandon_reason_from_proto(response.failure)
        if failure is not None:
            raise AttemptFailed(failure, response.detail)

    async def _watch_uploads(self, plan: RoundPlan) -> None:
        seen: set[int] = set()
        async for upload in _checked(self._aggregator.uploads(plan), len(plan.roster)):
            if upload.index in seen:
                continue
            seen.add(upload.index)
            self._upload_bytes[upload.index] = upload.bytes
            if upload.accepted:
                self._accepted.add(upload.index)
            else:
                self._refused.add(upload.index)
                await self._drop(upload.index, dropout_reason_from_proto(upload.reason))
            self.journal.changes.announce()
        self._records_ended.set()

    async def _watch_exchange(self, plan: RoundPlan) -> None:
        async for event in self._keyserver.exchange(plan):
            match event.WhichOneof("event"):
                case "dropout":
                    await self._take_dropouts([event.dropout])
                case "frozen":
                    await self._reveal_beacon(plan, digest_from_proto("a digest", event.frozen.directory_digest))
                case "closed" if not self._exchange.done():
                    self._exchange.set_result(event.closed)
                case "failed":
                    reason = abandon_reason_from_proto(event.failed.reason) or AbandonReason.SERVICE_LOST
                    raise AttemptFailed(reason, event.failed.detail)
        if not self._exchange.done():
            raise AttemptFailed(AbandonReason.SERVICE_LOST, "the key server ended the exchange without a result")

    async def _reveal_beacon(self, plan: RoundPlan, digest: bytes) -> None:
        """Reveal the beacon for one directory. A stream that is followed again may ask for the same one again."""
        assert self._beacon is not None
        if self._revealed is None:
            self._revealed = digest, self._beacon.reveal(plan.binding, digest)
        frozen, beacon = self._revealed
        if digest != frozen:
            raise AttemptFailed(AbandonReason.SERVICE_LOST, "the key server froze two directories of one session")
        await self._keyserver.reveal_beacon(plan, beacon)

    async def _pass_departures_on(self, plan: RoundPlan) -> None:
        while True:
            departed = [await self._departures.get()]
            while not self._departures.empty():
                departed.append(self._departures.get_nowait())
            for client_id, reason in departed:
                await self.journal.drop(client_id, reason)
                log.info("site_dropped", client_id=client_id, reason=reason.value)
            if plan.aggregation is Aggregation.SECAGG:
                await self._mark_lost(plan, sorted(plan.index_of(client_id) for client_id, _ in departed))

    async def _mark_lost(self, plan: RoundPlan, indices: Sequence[int]) -> None:
        try:
            await self._keyserver.mark_lost(plan, indices)
        except UnknownSession:
            raise
        except RemoteProtocolError as error:
            # Past its last phase the key server waits for nobody any more.
            log.info("mark_lost_refused", error=str(error))

    async def _take_dropouts(self, dropouts: Iterable[keyserver_pb2.IndexedDropout]) -> None:
        for dropout in dropouts:
            await self._drop(dropout.index, dropout_reason_from_proto(dropout.reason))

    async def _drop(self, index: int, reason: DropoutReason) -> None:
        invited = self.journal.record.invited
        if not 0 <= index < len(invited):
            raise RemoteProtocolError("a site dropped out that was not invited", expected=len(invited), got=index)
        if await self.journal.drop(invited[index], reason):
            log.info("site_dropped", client_id=invited[index], reason=reason.value)

    def _count_key_bytes(self, up: Mapping[int, int], down: Mapping[int, int]) -> None:
        for index, count in up.items():
            self._key_bytes[index] += SiteBytes(up=count)
        for index, count in down.items():
            self._key_bytes[index] += SiteBytes(down=count)

    def _names(self, indices: Iterable[int]) -> tuple[ClientId, ...]:
        return tuple(self.journal.record.invited[index] for index in indices)


async def forget_sessions(peers: Sequence[AggregatorPeer | KeyServerPeer], session_ids: Sequence[bytes]) -> None:
    """Let services forget sessions, as far as they can be reached."""
    asked = [peer.abandon(session_id) for peer in peers for session_id in session_ids]
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(outcome, TacitError):
            log.info("abandon_not_delivered", error=str(outcome))
        elif isinstance(outcome, BaseException):
            raise outcome


async def _checked(
    uploads: AsyncIterator[aggregator_pb2.UploadRecord], size: int
) -> AsyncIterator[aggregator_pb2.UploadRecord]:
    async for upload in uploads:
        if upload.index >= size:
            raise RemoteProtocolError(
                "an upload of a site that was not invited", expected=f"below {size}", got=upload.index
            )
        yield upload
