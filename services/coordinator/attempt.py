"""One attempt at one round, from recruiting to a committed model, or to a reason why not.

Its cohort is split at random into sessions that run side by side. One that fails is left out; the attempt goes on as
long as enough others can still succeed.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import structlog

from fl_core.codec.tensors import TensorManifest
from fl_core.errors import NotEnough, StorageError
from fl_core.rounds.cohort import choose_cohort, fill_up, pool_bounds
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
from fl_core.rounds.paillier_terms import PaillierTerms
from fl_core.rounds.partition import partition
from fl_core.rounds.plan import Aggregation, ClientId, RosterEntry
from fl_core.rounds.planner import build_plan, choose_codec
from fl_core.rounds.privacy_terms import PrivacyTerms, drawing_rate
from fl_core.secagg.beacon import make_beacon
from fl_core.wire.convert import abandon_reason_to_proto, round_state_to_proto
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.aggregates import Aggregate
from services.coordinator.applying import make_next_version
from services.coordinator.failures import AttemptFailed, Halt, failure_of, run_beside, until_cancelled
from services.coordinator.journal import AttemptJournal
from services.coordinator.measures import QUARANTINES_SUSPENDED
from services.coordinator.peers import KeyServerPeer
from services.coordinator.records import ModelRecord, SiteBytes
from services.coordinator.resources import Resources
from services.coordinator.session_run import SessionRun
from services.coordinator.spans import load_span
from services.coordinator.totals import SessionSum

log = structlog.get_logger(__name__)


class Attempt:
    """One attempt. Made for one call of `run`.

    Args:
        spec: the job.
        base: the version that the sites train from.
        manifest: its form.
        journal: of this attempt, in state recruiting.
        resources: stores, sites and services.
        cancelled: set when the operator gives the job up, or the coordinator stops.
    """

    def __init__(
        self,
        spec: JobSpec,
        base: ModelRecord,
        manifest: TensorManifest,
        journal: AttemptJournal,
        resources: Resources,
        cancelled: Halt,
    ) -> None:
        self._spec = spec
        self._base = base
        self._manifest = manifest
        self._with = resources
        self._cancelled = cancelled
        self.journal = journal
        self.sessions: tuple[SessionRun, ...] = ()
        self._sums: dict[SessionRun, Aggregate] = {}
        self._committed: ModelRecord | None = None
        self._room = ExitStack()

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
        except StorageError:
            raise
        except Exception as error:
            await self._abandon(failure_of(error))
        for session in self.sessions:
            await session.close_transcript(self._committed, self._sums.get(session))
        record = self.journal.record
        self._announce(record, record.invited)
        return record

    def session_of(self, session_id: bytes) -> SessionRun | None:
        """The session of this id, if it is one of this attempt."""
        return next((session for session in self.sessions if session.plan.session_id == session_id), None)

    def site_bytes(self) -> dict[int, SiteBytes]:
        """Message bytes of each site by its place in the attempt, on all its streams."""
        return {place: count for session in self.sessions for place, count in session.site_bytes().items()}

    async def _run(self) -> None:
        await run_beside(self._gather(), until_cancelled(self._cancelled))
        # From here on a cancellation waits: what was released is applied and committed, or fails by itself.
        sums = [SessionSum(session.plan, self._sums[session]) for session in self.sessions if session in self._sums]
        made = await make_next_version(
            self._with.models, self._spec, self._base, sums, self._with.clock(), self._with.privacy
        )
        await self.journal.commit(made.model, made.total_weight, made.aggregate_sha256)
        self._committed = made.model
        survivors = sum(len(part.aggregate.info.survivors) for part in sums)
        log.info("round_committed", survivors=survivors, sessions=len(sums), model_version=made.model.version)

    async def _gather(self) -> None:
        sessions = await self._recruit()
        await self.journal.invite([session.plan for session in sessions])
        for session, journal in zip(sessions, self.journal.sessions, strict=True):
            await session.begin(journal)
        self.sessions = sessions
        with self._with.presence.losses(self._lose):
            await self._gather_sums()

    async def _gather_sums(self) -> None:
        """Run the sessions side by side, until each has its sum or was left out."""
        running = {asyncio.create_task(session.gather(self._room)): session for session in self.sessions}
        needed = self._spec.cohort.sessions_needed(len(running))
        pending = set(running)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                # Sums first: whether enough sessions are possible depends on those that succeeded at the same moment.
                for task in sorted(done, key=lambda ended: ended.exception() is not None):
                    await self._settle(running[task], task, possible=len(self._sums) + len(pending), needed=needed)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _settle(
        self, session: SessionRun, task: "asyncio.Task[Aggregate]", *, possible: int, needed: int
    ) -> None:
        """Keep the sum of a session that has ended, or leave it out, as long as enough others are possible.

        Raises:
            AttemptFailed: too few are.
            StorageError: database or blob store failed.
        """
        error = task.exception()
        if error is None:
            self._sums[session] = task.result()
            return
        if isinstance(error, StorageError):
            raise error
        failure = failure_of(error)
        if possible < needed:
            raise failure
        await session.note_last_departures()
        await session.journal.give_up(failure.reason, failure.detail)
        log.warning(
            "session_abandoned",
            session_id=session.plan.session_id.hex(),
            reason=failure.reason.value,
            detail=failure.detail,
        )
        self._announce(session.journal.record, session.journal.record.invited)
        await session.abandon()

    async def _recruit(self) -> tuple[SessionRun, ...]:
        since_round = self.journal.key.round_id - self._spec.quarantine_rounds
        quarantined = await self._with.rounds.blamed(self.journal.key.job_id, since_round)
        if quarantined:
            log.info("sites_quarantined", sites=sorted(quarantined))
        await self._await_sites(quarantined)
        connected = {site.client_id: site.certificate_sha256 for site in self._with.presence.connected()}
        candidates, recalled = fill_up(connected, quarantined, self._spec.cohort)
        if recalled:
            QUARANTINES_SUSPENDED.inc(len(recalled))
            log.warning("quarantine_gave_way", sites=recalled, cohort_min=self._spec.cohort.min)
        privacy = await self._with.privacy.terms(self._spec, self.journal.key.job_id, self._manifest, len(candidates))
        cohort = self._choose(candidates, drawing_rate(privacy))
        parts = partition(cohort, self._spec.cohort.split, os.urandom)
        rosters = [tuple(RosterEntry(name, connected[name]) for name in part) for part in parts]
        return await self._place(rosters, privacy)

    def _choose(self, candidates: Sequence[ClientId], rate: float | None) -> tuple[ClientId, ...]:
        try:
            return choose_cohort(candidates, self._spec.cohort, os.urandom, rate)
        except NotEnough as error:
            raise AttemptFailed(AbandonReason.TOO_FEW_SITES, str(error)) from error

    async def _place(
        self, rosters: Sequence[tuple[RosterEntry, ...]], privacy: PrivacyTerms | None
    ) -> tuple[SessionRun, ...]:
        """Give each part of the cohort its services, and a plan."""
        is_secure = self._spec.aggregation is Aggregation.SECAGG
        span, key = await self._span(), self.journal.key
        spec = self._common_codec(len(rosters[0]), span)
        aggregators = await self._with.aggregators.place(len(rosters))
        needs_keys = self._spec.aggregation is not Aggregation.PLAIN
        keyservers = await self._with.keyservers.place(len(rosters)) if needs_keys else [None] * len(rosters)
        sessions = []
        for roster, aggregator, keyserver in zip(rosters, aggregators, keyservers, strict=True):
            beacon = make_beacon(os.urandom) if is_secure else None
            plan = build_plan(
                spec,
                job_id=key.job_id,
                round_id=key.round_id,
                attempt=key.attempt,
                model_version=self._base.version,
                model_digest=self._base.model_digest,
                manifest=self._manifest,
                roster=roster,
                aggregator=aggregator.endpoint,
                keyserver=keyserver.endpoint if keyserver else None,
                graph_commitment=beacon.commitment if beacon else None,
                span=span,
                paillier=await self._paillier_terms(keyserver.peer) if keyserver else None,
                privacy=privacy,
            )
            peer = keyserver.peer if keyserver else None
            sessions.append(SessionRun(plan, beacon, aggregator.peer, peer, self._with))
        return tuple(sessions)

    async def _paillier_terms(self, keyserver: KeyServerPeer) -> PaillierTerms | None:
        if self._spec.aggregation is not Aggregation.PAILLIER:
            return None
        return await keyserver.paillier_terms(self._spec.paillier.custody)

    def _common_codec(self, largest: int, span: float | None) -> JobSpec:
        """The job with the codec of its largest session: sums are added only where a level means the same."""
        codec = choose_codec(self._spec.codec, largest, span)
        return replace(self._spec, codec=replace(self._spec.codec, bits=codec.bits, ring_bits=codec.ring_bits))

    async def _span(self) -> float | None:
        """How wide the levels of an adaptive codec must spread, when a round before has said it."""
        span = await load_span(self._with.models, self._base) if self._spec.codec.adaptive else None
        return None if span is None else span.width

    async def _await_sites(self, quarantined: Sequence[ClientId]) -> None:
        bounds, cohort, privacy = self._spec.phases.recruiting, self._spec.cohort, self._spec.privacy
        fewest, enough = pool_bounds(cohort, None if privacy is None else privacy.drawing_rate)
        while True:
            connected = [site.client_id for site in self._with.presence.connected()]
            here = min(len(fill_up(connected, quarantined, cohort)[0]), enough)
            match quorum(here, enough, fewest, self.journal.elapsed_s, bounds):
                case Quorum.CLOSE:
                    return
                case Quorum.FAIL:
                    raise AttemptFailed(
                        AbandonReason.TOO_FEW_SITES, f"{here} sites are connected, the job needs {fewest}"
                    )
            left = next_deadline_s(here, fewest, bounds) - self.journal.elapsed_s
            await self._with.presence.changes.wait(max(left, 0.0) + 0.001)

    def _lose(self, client_id: ClientId) -> None:
        for session in self.sessions:
            if client_id in session.journal.record.invited:
                session.leave(client_id, DropoutReason.DISCONNECTED)

    async def _abandon(self, failure: AttemptFailed) -> None:
        for session in self.sessions:
            await session.note_last_departures()
        going = [session for session in self.sessions if not session.journal.state.is_final]
        await self.journal.abandon(failure.reason, failure.detail, is_private=self._spec.privacy is not None)
        excused = self.journal.record.is_excused
        log.warning("attempt_abandoned", reason=failure.reason.value, detail=failure.detail, excused=excused)
        await asyncio.gather(*(session.abandon() for session in going))

    def _announce(self, record: RoundRecord, sites: Sequence[ClientId]) -> None:
        """Tell sites how their attempt ended."""
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
        for client_id in sites:
            if self._with.presence.send(client_id, event):
                self._with.traffic.count(record.job_id, client_id, down=event.ByteSize())
