"""The round machine of one attempt and its rows: every step is in the database before anybody acts on it."""

import asyncio
from collections.abc import Callable, Coroutine
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
    RoundRecord,
    RoundState,
    SiteDropped,
    SurvivorsFrozen,
    Transition,
    advance,
    begin,
)
from fl_core.rounds.plan import Aggregation, ClientId, JobId, RoundPlan
from services.coordinator.records import AttemptKey, ModelRecord, Opening
from services.coordinator.round_store import RoundStore
from services.runtime.events import Notice
from services.runtime.sessions import run_to_end

Clock = Callable[[], float]
"""Seconds since the epoch that never run backwards."""


class AttemptJournal:
    """One attempt: what has happened, in memory and in the database.

    A step that the machine refuses changes neither; a step that the database refuses changes neither.
    """

    def __init__(self, rounds: RoundStore, key: AttemptKey, record: RoundRecord, clock: Clock, changes: Notice) -> None:
        self._rounds = rounds
        self._clock = clock
        self._lock = asyncio.Lock()
        self.key = key
        self.record = record
        self.changes = changes

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
    def state(self) -> RoundState:
        """What the attempt is waiting for."""
        return self.record.state

    @property
    def elapsed_s(self) -> float:
        """Seconds since this state was entered."""
        return self._clock() - self.record.entered_s

    async def invite(self, plan: RoundPlan) -> None:
        """The plan stands: recruiting is over."""
        event = CohortInvited(tuple(entry.client_id for entry in plan.roster), plan.min_survivors)
        opening = Opening(plan.session_id, plan.roster)
        await self._take(event, lambda step, now: self._rounds.bind(self.key, opening, step.after, now))

    async def close_exchange(self, shared: tuple[ClientId, ...]) -> None:
        """The key server closed the exchange with these sites."""
        await self._take(ExchangeClosed(shared), self._advance)

    async def freeze(self, survivors: tuple[ClientId, ...]) -> None:
        """The survivors stand; written before anything is unmasked for them."""
        await self._take(SurvivorsFrozen(survivors), lambda step, now: self._survive(step, survivors, now))

    async def receive(self, survivors: tuple[ClientId, ...]) -> None:
        """The checked sum of these sites is here."""
        await self._take(AggregateReceived(survivors), lambda step, now: self._survive(step, survivors, now))

    async def commit(self, model: ModelRecord, total_weight: int, aggregate_sha256: bytes) -> None:
        """The new version is the job's model."""
        await self._take(
            ModelCommitted(model.version),
            lambda _, now: self._rounds.commit(self.key, model, total_weight, aggregate_sha256, now),
        )

    async def abandon(self, reason: AbandonReason, detail: str) -> None:
        """The attempt is given up."""
        await self._take(
            AttemptAbandoned(reason, detail), lambda _, now: self._rounds.abandon(self.key, reason, now, detail)
        )

    async def drop(self, client_id: ClientId, reason: DropoutReason) -> bool:
        """A site left, was lost, refused or blamed; says whether that is news (see `RoundRecord.is_news`)."""
        if self.state.is_final or not self.record.is_news(client_id, reason):
            return False
        index = self.record.invited.index(client_id)
        await self._take(
            SiteDropped(client_id, reason),
            lambda step, _: self._rounds.record_dropout(self.key, index, reason, step.before),
        )
        return True

    async def _advance(self, step: Transition, now: float) -> None:
        await self._rounds.advance(self.key, step.before, step.after, now)

    async def _survive(self, step: Transition, survivors: tuple[ClientId, ...], now: float) -> None:
        places = {client_id: index for index, client_id in enumerate(self.record.invited)}
        indices = [places[client_id] for client_id in survivors]
        await self._rounds.advance(self.key, step.before, step.after, now, survivors=indices)

    async def _take(self, event: Event, write: Callable[[Transition, float], Coroutine[Any, Any, None]]) -> None:
        async with self._lock:
            now = max(self._clock(), self.record.entered_s)
            after, step = advance(self.record, event, now)
            # A cancelled caller must not leave memory and database apart.
            await run_to_end(lambda: asyncio.create_task(self._write(write(step, now), after)))

    async def _write(self, written: Coroutine[Any, Any, None], after: RoundRecord) -> None:
        await written
        self.record = after
        self.changes.announce()
