"""One attempt at one round, from recruiting to a committed model, or to a reason why not."""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack

import structlog

from fl_core.codec.tensors import TensorManifest
from fl_core.errors import RemoteProtocolError, StorageError, TacitError, UnknownSession
from fl_core.rounds.cohort import choose_cohort, fill_up
from fl_core.rounds.job import JobSpec
from fl_core.rounds.machine import (
    AbandonReason,
    DropoutReason,
    Quorum,
    RoundRecord,
    RoundState,
    next_deadline_s,
    quorum,
)
from fl_core.rounds.plan import Aggregation, ClientId, RosterEntry, RoundPlan
from fl_core.rounds.planner import build_plan
from fl_core.secagg.beacon import make_beacon
from fl_core.secagg.messages import Beacon
from fl_core.wire.checks import digest_from_proto, indices_from_proto
from fl_core.wire.convert import (
    abandon_reason_from_proto,
    abandon_reason_to_proto,
    dropout_reason_from_proto,
    plan_to_proto,
    round_state_to_proto,
)
from fl_core.wire.v1 import aggregator_pb2, keyserver_pb2, round_pb2
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.aggregates import Aggregate, Arrival
from services.coordinator.applying import make_next_version
from services.coordinator.failures import AttemptFailed, reason_of, run_beside, until_cancelled
from services.coordinator.journal import AttemptJournal
from services.coordinator.measures import QUARANTINES_SUSPENDED
from services.coordinator.records import ModelRecord, SiteBytes
from services.coordinator.resources import Resources
from services.coordinator.spans import load_span
from services.coordinator.transcripts import AttemptTranscript

log = structlog.get_logger(__name__)

EXCHANGE_SLACK_S = 20.0
"""The key server ends its phases by itself; this much later we stop believing that it will."""

LAST_RECORDS_S = 1.0
"""For the uploads that broke off, which the aggregator tells about when it freezes."""


class Attempt:
    """One attempt. Made for one call of `run`.

    Args:
        spec: the job.
        base: the version that the sites train from.
        manifest: its form.
        journal: of this attempt, in state recruiting.
        resources: stores, sites and services.
        cancelled: set when the operator gives the job up.
    """

    def __init__(
        self,
        spec: JobSpec,
        base: ModelRecord,
        manifest: TensorManifest,
        journal: AttemptJournal,
        resources: Resources,
        cancelled: asyncio.Event,
    ) -> None:
        self._spec = spec
        self._base = base
        self._manifest = manifest
        self._with = resources
        self._cancelled = cancelled
        self.journal = journal
        self.plan: RoundPlan | None = None
        self.transcript: AttemptTranscript | None = None
        self._committed: ModelRecord | None = None
        self._aggregate_sha256 = b""
        self._departures: asyncio.Queue[tuple[ClientId, DropoutReason]] = asyncio.Queue()
        self._departed: dict[ClientId, str] = {}
        self._room = ExitStack()
        self._beacon = make_beacon(os.urandom)
        self._revealed: tuple[bytes, Beacon] | None = None
        self._accepted: set[int] = set()
        self._refused: set[int] = set()
        self._records_ended = asyncio.Event()
        self._exchange: asyncio.Future[keyserver_pb2.ExchangeClosed] = asyncio.get_running_loop().create_future()
        self._upload_bytes: dict[int, int] = defaultdict(int)
        self._key_bytes: dict[int, SiteBytes] = defaultdict(SiteBytes)

    async def run(self) -> RoundRecord:
        """Do the attempt, to its end.

        Returns:
            What became of it: committed, or abandoned with the reason.

        Raises:
            StorageError: database or blob store failed; then the attempt is still open.
        """
        try:
            with self._room:
                await self._run()
        except AttemptFailed as failure:
            await self._abandon(failure.reason, failure.detail)
        except StorageError:
            raise
        except TacitError as error:
            await self._abandon(reason_of(error), str(error))
        except Exception:
            log.exception("attempt_failed")
            await self._abandon(AbandonReason.SERVICE_LOST, "a fault of the coordinator; its log has the details")
        await self._close_transcript()
        self._announce_end()
        return self.journal.record

    def leave(self, client_id: ClientId, reason: DropoutReason, detail: str = "") -> None:
        """A site leaves on purpose, in its own words, or is lost; said again it changes nothing."""
        if self.plan is not None and client_id in self.journal.record.invited and client_id not in self._departed:
            # Bounded by the cohort: each site departs once.
            self._departed[client_id] = detail
            self._departures.put_nowait((client_id, reason))

    def site_bytes(self) -> dict[int, SiteBytes]:
        """Message bytes of each site by its place in the roster, on all its streams."""
        job_id = self.journal.key.job_id
        own = [self._with.traffic.take(job_id, client_id) for client_id in self.journal.record.invited]
        return {
            index: count + self._key_bytes[index] + SiteBytes(up=self._upload_bytes[index])
            for index, count in enumerate(own)
        }

    async def _run(self) -> None:
        aggregate = await run_beside(self._gather(), until_cancelled(self._cancelled))
        # From here on a cancellation waits: what was released is applied and committed, or fails by itself.
        plan = self._the_plan()
        model, total_weight = await make_next_version(
            self._with.models, self._spec, plan, self._base, aggregate, self._with.clock()
        )
        await self.journal.commit(model, total_weight, aggregate.info.sha256)
        self._committed, self._aggregate_sha256 = model, aggregate.info.sha256
        log.info("round_committed", survivors=len(aggregate.info.survivors), model_version=model.version)

    async def _gather(self) -> Aggregate:
        plan = self.plan = await self._recruit()
        await self.journal.invite(plan)
        self.transcript = await self._with.transcripts.begin(plan)
        structlog.contextvars.bind_contextvars(session_id=plan.session_id.hex())
        lost = self._with.presence.losses(lambda client_id: self.leave(client_id, DropoutReason.DISCONNECTED))
        with self._with.inbox.expect(plan, self._room) as arrival, lost:
            await self._open_sessions(plan)
            self._invite(plan)
            watchers = [self._watch_uploads(plan), self._pass_departures_on(plan)]
            if plan.aggregation is Aggregation.SECAGG:
                return await run_beside(self._sum_masked(plan, arrival), self._watch_exchange(plan), *watchers)
            return await run_beside(self._sum_plain(plan, arrival), *watchers)

    async def _recruit(self) -> RoundPlan:
        since_round = self.journal.key.round_id - self._spec.quarantine_rounds
        quarantined = await self._with.rounds.blamed(self.journal.key.job_id, since_round)
        if quarantined:
            log.info("sites_quarantined", sites=sorted(quarantined))
        await self._await_sites(quarantined)
        connected = {site.client_id: site for site in self._with.presence.connected()}
        candidates, recalled = fill_up(connected, quarantined, self._spec.cohort)
        if recalled:
            QUARANTINES_SUSPENDED.inc(len(recalled))
            log.warning("quarantine_gave_way", sites=recalled, cohort_min=self._spec.cohort.min)
        cohort = choose_cohort(candidates, self._spec.cohort, os.urandom)
        is_secure = self._spec.aggregation is Aggregation.SECAGG
        key = self.journal.key
        return build_plan(
            self._spec,
            job_id=key.job_id,
            round_id=key.round_id,
            attempt=key.attempt,
            model_version=self._base.version,
            model_digest=self._base.model_digest,
            manifest=self._manifest,
            roster=tuple(RosterEntry(name, connected[name].certificate_sha256) for name in cohort),
            aggregator=await self._with.aggregator.endpoint(),
            keyserver=await self._with.keyserver.endpoint() if is_secure else None,
            graph_commitment=self._beacon.commitment if is_secure else None,
            span=await self._span(),
        )

    async def _span(self) -> float | None:
        """How wide the levels of an adaptive codec must spread, when a round before has said it."""
        span = await load_span(self._with.models, self._base) if self._spec.codec.adaptive else None
        return None if span is None else span.width

    async def _await_sites(self, quarantined: Sequence[ClientId]) -> None:
        bounds, cohort = self._spec.phases.recruiting, self._spec.cohort
        while True:
            connected = [site.client_id for site in self._with.presence.connected()]
            here = min(len(fill_up(connected, quarantined, cohort)[0]), cohort.max)
            match quorum(here, cohort.max, cohort.min, self.journal.elapsed_s, bounds):
                case Quorum.CLOSE:
                    return
                case Quorum.FAIL:
                    raise AttemptFailed(
                        AbandonReason.TOO_FEW_SITES, f"{here} sites are connected, the job needs {cohort.min}"
                    )
            left = next_deadline_s(here, cohort.min, bounds) - self.journal.elapsed_s
            await self._with.presence.changes.wait(max(left, 0.0) + 0.001)

    async def _open_sessions(self, plan: RoundPlan) -> None:
        await self._with.aggregator.open(plan)
        if plan.aggregation is Aggregation.SECAGG:
            await self._with.keyserver.open(plan)

    def _invite(self, plan: RoundPlan) -> None:
        event = pb.WatchRoundsResponse(invitation=plan_to_proto(plan))
        size = event.ByteSize()
        for entry in plan.roster:
            if self._with.presence.send(entry.client_id, event):
                self._with.traffic.count(plan.job_id, entry.client_id, down=size)
            else:
                self.leave(entry.client_id, DropoutReason.DISCONNECTED)
        log.info("cohort_invited", sites=len(plan.roster), aggregation=plan.aggregation.value)

    async def _sum_masked(self, plan: RoundPlan, arrival: Arrival) -> Aggregate:
        eligible = await self._close_exchange(plan)
        await self._with.aggregator.admit(plan, eligible)
        survivors, frozen = await self._collect_uploads(plan, eligible)
        arrival.survivors = survivors
        await self.journal.freeze(self._names(survivors))
        await self._unmask(plan, survivors, frozen, arrival)
        aggregate = arrival.take()
        self._record_part("released", aggregate.part)
        await self.journal.receive(self._names(aggregate.info.survivors))
        return aggregate

    async def _sum_plain(self, plan: RoundPlan, arrival: Arrival) -> Aggregate:
        survivors, _ = await self._collect_uploads(plan, range(len(plan.roster)))
        arrival.survivors = survivors
        aggregate = arrival.take()
        self._record_part("released", aggregate.part)
        arrival.check(aggregate.info)
        await self.journal.receive(self._names(survivors))
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
        survivors, frozen = await self._with.aggregator.freeze(plan, sorted(expected))
        if not set(survivors) <= expected or len(survivors) < plan.min_survivors:
            raise AttemptFailed(AbandonReason.BAD_AGGREGATE, "the aggregator froze impossible survivors")
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
                    raise AttemptFailed(AbandonReason.TOO_FEW_UPLOADS, detail + self._last_words())
            left = next_deadline_s(answered, needed, bounds) - self.journal.elapsed_s
            await self.journal.changes.wait(max(left, 0.0) + 0.001)

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
            response = await self._with.keyserver.unmask(plan, survivors, frozen)
        except TacitError as error:
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
        async for upload in _checked(self._with.aggregator.uploads(plan), len(plan.roster)):
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
        async for event in self._with.keyserver.exchange(plan):
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
        if self._revealed is None:
            self._revealed = digest, self._beacon.reveal(plan.binding, digest)
        frozen, beacon = self._revealed
        if digest != frozen:
            raise AttemptFailed(AbandonReason.SERVICE_LOST, "the key server froze two directories of one session")
        await self._with.keyserver.reveal_beacon(plan, beacon)

    async def _pass_departures_on(self, plan: RoundPlan) -> None:
        while True:
            client_id, reason = await self._departures.get()
            await self.journal.drop(client_id, reason)
            log.info("site_dropped", client_id=client_id, reason=reason.value)
            if plan.aggregation is Aggregation.SECAGG:
                await self._mark_lost(plan, plan.index_of(client_id))

    async def _mark_lost(self, plan: RoundPlan, index: int) -> None:
        try:
            await self._with.keyserver.mark_lost(plan, [index])
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

    async def _abandon(self, reason: AbandonReason, detail: str) -> None:
        while not self._departures.empty():
            # Those who left in the last moment belong into the report too.
            await self.journal.drop(*self._departures.get_nowait())
        await self.journal.abandon(reason, detail)
        log.warning("attempt_abandoned", reason=reason.value, detail=detail)
        if self.plan is not None:
            await abandon_sessions(self._with, [self.plan.session_id])

    async def _close_transcript(self) -> None:
        if self.transcript is None:
            return
        try:
            await self._with.transcripts.close(
                self.transcript, self.journal.key, self.journal.record, self._committed, self._aggregate_sha256
            )
        except StorageError as error:
            # What was committed stays committed; the gap shows in the chain of the transcripts.
            log.error("transcript_not_stored", error=str(error))

    def _announce_end(self) -> None:
        record = self.journal.record
        committed = record.state is RoundState.COMMITTED
        event = pb.WatchRoundsResponse(
            attempt_ended=pb.AttemptEnded(
                job_id=record.job_id,
                round_id=record.round_id,
                attempt=record.attempt,
                state=round_state_to_proto(record.state),
                reason=abandon_reason_to_proto(record.abandon_reason),
                model_version=record.model_version if committed and record.model_version else self._base.version,
            )
        )
        for client_id in record.invited:
            if self._with.presence.send(client_id, event):
                self._with.traffic.count(record.job_id, client_id, down=event.ByteSize())

    def _names(self, indices: Iterable[int]) -> tuple[ClientId, ...]:
        return tuple(self.journal.record.invited[index] for index in indices)

    def _the_plan(self) -> RoundPlan:
        assert self.plan is not None
        return self.plan


async def abandon_sessions(resources: Resources, session_ids: Iterable[bytes]) -> None:
    """Let aggregator and key server forget sessions, as far as they can be reached: they expire anyway."""
    for session_id in session_ids:
        outcomes = await asyncio.gather(
            resources.aggregator.abandon(session_id), resources.keyserver.abandon(session_id), return_exceptions=True
        )
        for outcome in outcomes:
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
