"""The round machines of an attempt and their rows: every step is in the database before anybody acts on it."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from fl_core.rounds.machine import (
    AbandonReason,
    AggregateReceived,
    AttemptAbandoned,
    CohortInvited,
    DropoutReason,
    Event,
    ExchangeClosed,
    ModelCommitted,
    PhaseDuration,
    RoundRecord,
    RoundState,
    SiteDropped,
    SurvivorsFrozen,
    advance,
    begin,
)
from fl_core.rounds.plan import Aggregation, ClientId, JobId, RoundPlan
from fl_core.rounds.report import AggregateInfo
from fl_core.rounds.sessions import attempt_state, fails_for_absence, give_up, join
from services.coordinator.records import AttemptKey, ModelRecord, Opening, SessionFacts, Step
from services.coordinator.round_store import RoundStore
from services.runtime.events import Notice
from services.runtime.sessions import run_to_end

Clock = Callable[[], float]
"""Seconds since the epoch that never run backwards."""


class AttemptJournal:
    """One attempt and its sessions: what has happened, in memory and in the database.

    A step that the machine refuses changes neither; a step that the database refuses changes neither.
    """

    def __init__(self, rounds: RoundStore, key: AttemptKey, record: RoundRecord, clock: Clock, changes: Notice) -> None:
        self._rounds = rounds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._own = record
        self.key = key
        self.changes = changes
        self.sessions: tuple[SessionJournal, ...] = ()

    @classmethod
    async def open(
        cls, rounds: RoundStore, job_id: JobId, aggregation: Aggregation, clock: Clock, changes: Notice
    ) -> "AttemptJournal":
        """Begin the next attempt of a job, in state recruiting.

        Raises:
            LocalProtocolError: the job has an open attempt.
        """
        now = clock()
        key = await rounds.open(job_id, now)
        record = begin(job_id, key.round_id, key.attempt, aggregation, now)
        return cls(rounds, key, record, clock, changes)

    @property
    def record(self) -> RoundRecord:
        """The whole attempt: its state, and the sites of all its sessions."""
        return join(self._own, [session.record for session in self.sessions])

    @property
    def state(self) -> RoundState:
        """What the attempt is waiting for."""
        return self._own.state

    @property
    def elapsed_s(self) -> float:
        """Seconds since this state was entered."""
        return self._clock() - self._own.entered_s

    async def invite(self, plans: Sequence[RoundPlan]) -> None:
        """The plans stand, one for each session: recruiting is over."""
        async with self._lock:
            now = self._now()
            sessions, place = [], 0
            for number, plan in enumerate(plans, 1):
                sessions.append(SessionJournal(self, number, place, self._invited(plan, now)))
                place += len(plan.roster)
            state = attempt_state([session.record for session in sessions])
            openings = [_opening(plan) for plan in plans]
            await _whole(self._rounds.bind(self.key, openings, state, now), lambda: self._begin(sessions, state, now))

    async def commit(self, model: ModelRecord, total_weight: int, aggregate_sha256: bytes) -> None:
        """The new version is the job's model."""
        async with self._lock:
            now = self._now()
            committed = {
                session: advance(session.record, ModelCommitted(model.version), now)[0]
                for session in self.sessions
                if session.state is not RoundState.ABANDONED
            }
            write = self._rounds.commit(self.key, model, total_weight, aggregate_sha256, now)
            end = replace(self._own, model_version=model.version)
            await _whole(write, lambda: self._end(end, RoundState.COMMITTED, committed, now))

    async def abandon(self, reason: AbandonReason, detail: str, *, is_private: bool = False) -> None:
        """The attempt is given up, with every session that has not ended.

        Args:
            reason: why.
            detail: one sentence more about that.
            is_private: whether each unmasking is counted against a budget.
        """
        async with self._lock:
            now = self._now()
            event = AttemptAbandoned(reason, detail)
            ended = {
                session: advance(session.record, event, now)[0]
                for session in self.sessions
                if not session.state.is_final
            }
            records = [ended.get(session, session.record) for session in self.sessions]
            is_excused = fails_for_absence(reason, records, is_private=is_private)
            end = replace(self._own, abandon_reason=reason, detail=detail, is_excused=is_excused)
            write = self._rounds.abandon(self.key, reason, now, detail, is_excused=is_excused)
            await _whole(write, lambda: self._end(end, RoundState.ABANDONED, ended, now))

    async def take(self, session: "SessionJournal", event: Event, facts: SessionFacts | None) -> None:
        """One session takes a step, and the attempt with it when it waited for that."""
        async with self._lock:
            now = self._now()
            after, step = advance(session.record, event, now)
            whole = self._whole_step(session, after)
            write = self._rounds.advance(self.key, session.number, Step(step.before, step.after), whole, now, facts)
            await _whole(write, lambda: self._keep(session, after, whole, now))

    async def give_up(self, session: "SessionJournal", reason: AbandonReason, detail: str) -> None:
        """The attempt goes on without one session."""
        async with self._lock:
            now = self._now()
            before, after = session.state, give_up(session.record, reason, detail, now)
            whole = self._whole_step(session, after)
            write = self._rounds.end_session(self.key, session.number, before, whole, now, reason, detail)
            await _whole(write, lambda: self._keep(session, after, whole, now))

    async def drop(self, session: "SessionJournal", client_id: ClientId, reason: DropoutReason) -> bool:
        """A site of a session dropped out; says whether that is news (see `RoundRecord.is_news`)."""
        async with self._lock:
            if session.state.is_final or not session.record.is_news(client_id, reason):
                return False
            now = self._now()
            after, step = advance(session.record, SiteDropped(client_id, reason), now)
            write = self._rounds.record_dropout(self.key, session.place_of(client_id), reason, step.before)
            await _whole(write, lambda: self._keep(session, after, Step(self.state, self.state), now))
            return True

    def seconds_since(self, then: float) -> float:
        """Seconds since a moment on the clock of the records."""
        return self._clock() - then

    def _now(self) -> float:
        return max(self._clock(), self._own.entered_s, *(session.record.entered_s for session in self.sessions), 0.0)

    def _invited(self, plan: RoundPlan, now: float) -> RoundRecord:
        names = tuple(entry.client_id for entry in plan.roster)
        return advance(self._own, CohortInvited(names, plan.min_survivors), now)[0]

    def _whole_step(self, session: "SessionJournal", after: RoundRecord) -> Step:
        records = [after if other is session else other.record for other in self.sessions]
        return Step(self.state, attempt_state(records))

    def _begin(self, sessions: Sequence["SessionJournal"], state: RoundState, now: float) -> None:
        self.sessions = tuple(sessions)
        self._enter(state, now)

    def _keep(self, session: "SessionJournal", after: RoundRecord, whole: Step, now: float) -> None:
        session.record = after
        self._enter(whole.after, now)

    def _end(
        self, own: RoundRecord, state: RoundState, records: dict["SessionJournal", RoundRecord], now: float
    ) -> None:
        self._own = own
        for session, record in records.items():
            session.record = record
        self._enter(state, now)

    def _enter(self, state: RoundState, now: float) -> None:
        own = self._own
        if state is not own.state:
            phases = (*own.phases, PhaseDuration(own.state, now - own.entered_s))
            self._own = replace(own, state=state, entered_s=now, phases=phases)
        self.changes.announce()


class SessionJournal:
    """One session of an attempt.

    Args:
        attempt: that it belongs to.
        number: counts from 1 within the attempt.
        first_place: of its first site among all sites of the attempt.
        record: what has happened in it.
    """

    def __init__(self, attempt: AttemptJournal, number: int, first_place: int, record: RoundRecord) -> None:
        self._attempt = attempt
        self._first_place = first_place
        self.number = number
        self.record = record

    @property
    def key(self) -> AttemptKey:
        """The attempt that it belongs to."""
        return self._attempt.key

    @property
    def changes(self) -> Notice:
        """Announces every change of the attempt."""
        return self._attempt.changes

    @property
    def state(self) -> RoundState:
        """What the session is waiting for."""
        return self.record.state

    @property
    def elapsed_s(self) -> float:
        """Seconds since this state was entered."""
        return self._attempt.seconds_since(self.record.entered_s)

    def place_of(self, client_id: ClientId) -> int:
        """Place of a site among all sites of the attempt."""
        return self._first_place + self.record.invited.index(client_id)

    async def close_exchange(self, shared: tuple[ClientId, ...]) -> None:
        """The key server closed the exchange with these sites."""
        await self._attempt.take(self, ExchangeClosed(shared), None)

    async def freeze(self, survivors: tuple[ClientId, ...]) -> None:
        """The survivors stand; written before anything is unmasked for them."""
        await self._attempt.take(self, SurvivorsFrozen(survivors), SessionFacts(self._places(survivors)))

    async def receive(self, survivors: tuple[ClientId, ...], info: AggregateInfo) -> None:
        """The checked sum of these sites is here."""
        facts = SessionFacts(self._places(survivors), info.total_weight, info.sha256)
        await self._attempt.take(self, AggregateReceived(survivors), facts)

    async def give_up(self, reason: AbandonReason, detail: str) -> None:
        """The attempt goes on without this session."""
        await self._attempt.give_up(self, reason, detail)

    async def drop(self, client_id: ClientId, reason: DropoutReason) -> bool:
        """A site left, was lost, refused or blamed; says whether that is news (see `RoundRecord.is_news`)."""
        return await self._attempt.drop(self, client_id, reason)

    def _places(self, names: Sequence[ClientId]) -> tuple[int, ...]:
        places = {client_id: index for index, client_id in enumerate(self.record.invited, self._first_place)}
        return tuple(places[name] for name in names)


def _opening(plan: RoundPlan) -> Opening:
    keyserver = plan.keyserver.service_id if plan.keyserver else ""
    return Opening(plan.session_id, plan.roster, plan.aggregator.service_id, keyserver)


async def _whole(write: Coroutine[Any, Any, None], keep: Callable[[], None]) -> None:
    """Write, then keep in memory what was written; a cancelled caller must not leave the two apart."""

    async def both() -> None:
        await write
        keep()

    task = asyncio.create_task(both())
    # The error of a write whose caller has gone concerns nobody.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    await run_to_end(lambda: task)
