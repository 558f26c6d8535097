"""Attempts in the database: transitions, participants, results, reports. Each method is one transaction.

The driver calls these before it acts on a step, so that a restart finds what was decided and never more.
"""

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from fl_core.errors import LocalProtocolError, NotFound, StorageError
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState, SiteDropout
from fl_core.rounds.plan import MAX_COUNT, ClientId, JobId
from fl_core.rounds.report import RoundReport, SessionReport, SiteEvaluation
from services.coordinator.job_store import model_row
from services.coordinator.records import AttemptKey, ModelRecord, Opening, SessionFacts, SiteBytes, Step
from services.coordinator.tables import (
    AttemptRow,
    EvaluationRow,
    JobRow,
    OfAttempt,
    ParticipantRow,
    Scalars,
    SessionRow,
    TransitionRow,
)
from services.runtime.database import Database, undivided

_BLAME = [reason.value for reason in DropoutReason if reason.is_blame]
_FINAL = [RoundState.COMMITTED.value, RoundState.ABANDONED.value]


class RoundStore:
    """Attempts: their transitions, participants, results and reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @undivided
    async def open(self, job_id: JobId, now: float) -> AttemptKey:
        """Begin the next attempt at the job's next round, in state recruiting.

        Raises:
            NotFound: there is no such job.
            LocalProtocolError: the job has an open attempt.
        """
        async with self._database.writing() as session:
            try:
                return await self._open(session, job_id, now)
            except IntegrityError as error:
                raise LocalProtocolError("the job has an open attempt", expected="one at a time", got=job_id) from error

    async def _open(self, session: AsyncSession, job_id: JobId, now: float) -> AttemptKey:
        job = await session.get(JobRow, job_id)
        if job is None:
            raise NotFound("there is no such job", expected="the id of a submitted job", got=job_id)
        round_id = job.rounds_committed + 1
        tried = await session.scalar(
            select(func.max(AttemptRow.attempt)).where(AttemptRow.job_id == job_id, AttemptRow.round_id == round_id)
        )
        key = AttemptKey(job_id, round_id, (tried or 0) + 1)
        session.add(
            AttemptRow(**_columns(key), state=RoundState.RECRUITING.value, model_version=job.model_version, metrics={})
        )
        await session.flush()
        await _log(session, key, RoundState.RECRUITING, now)
        return key

    @undivided
    async def bind(self, key: AttemptKey, openings: Sequence[Opening], state: RoundState, now: float) -> None:
        """Leave recruiting: the plans stand, sessions and cohort are known. Sites are placed session by session.

        Raises:
            LocalProtocolError: the attempt is not recruiting.
        """
        async with self._database.writing() as session:
            await _move(session, key, RoundState.RECRUITING, state, now)
            session.add_all(_session_row(key, number, opening, state) for number, opening in enumerate(openings, 1))
            session.add_all(_participants(key, openings))

    @undivided
    async def advance(
        self, key: AttemptKey, number: int, step: Step, whole: Step, now: float, facts: SessionFacts | None = None
    ) -> None:
        """Move one session from one state to the next, and the attempt with it when it waited for that.

        Args:
            key: the attempt.
            number: of the session.
            step: of the session.
            whole: of the attempt.
            now: seconds since the epoch.
            facts: what this step decides about the session.

        Raises:
            LocalProtocolError: session or attempt are in another state.
        """
        known = facts or SessionFacts()
        survive = (
            update(ParticipantRow)
            .where(*_is(ParticipantRow, key), ParticipantRow.position.in_(known.survivors))
            .values(survived=True)
        )
        async with self._database.writing() as session:
            await _move_session(session, key, number, step, known.columns)
            if whole.moves:
                await _move(session, key, whole.before, whole.after, now)
            if known.survivors:
                await session.execute(survive)

    @undivided
    async def end_session(
        self,
        key: AttemptKey,
        number: int,
        before: RoundState,
        whole: Step,
        now: float,
        reason: AbandonReason,
        detail: str,
    ) -> None:
        """Give up one session of an attempt that goes on without it. None of its sites is a survivor.

        Raises:
            LocalProtocolError: session or attempt are in another state.
        """
        of_session = (*_is(ParticipantRow, key), ParticipantRow.session_number == number)
        spared = update(ParticipantRow).where(*of_session).values(survived=False)
        dropped = (
            update(ParticipantRow)
            .where(*of_session, ParticipantRow.dropout_reason.is_(None))
            .values(dropout_reason=DropoutReason.SESSION_ABANDONED.value, dropout_phase=before.value)
        )
        async with self._database.writing() as session:
            facts = {"abandon_reason": reason.value, "detail": detail}
            await _move_session(session, key, number, Step(before, RoundState.ABANDONED), facts)
            if whole.moves:
                await _move(session, key, whole.before, whole.after, now)
            await session.execute(spared)
            await session.execute(dropped)

    @undivided
    async def record_dropout(self, key: AttemptKey, index: int, reason: DropoutReason, phase: RoundState) -> None:
        """Keep why a site dropped out and when; the first reason stands, unless it is no blame and this one is."""
        replaceable: ColumnElement[bool] = ParticipantRow.dropout_reason.is_(None)
        if reason.is_blame:
            replaceable |= ParticipantRow.dropout_reason.not_in(_BLAME)
        change = (
            update(ParticipantRow)
            .where(*_is(ParticipantRow, key), ParticipantRow.position == index)
            .where(replaceable)
            .values(dropout_reason=reason.value, dropout_phase=phase.value)
        )
        async with self._database.writing() as session:
            await session.execute(change)

    @undivided
    async def failures(self, job_id: str, round_id: int, *, excused: bool) -> int:
        """Attempts at a round that were abandoned, without those that a service interrupted.

        Args:
            job_id: the job.
            round_id: the round.
            excused: count those that failed only because sites were away, or all others.
        """
        query = select(func.count()).where(
            AttemptRow.job_id == job_id,
            AttemptRow.round_id == round_id,
            AttemptRow.state == RoundState.ABANDONED.value,
            AttemptRow.abandon_reason != AbandonReason.SERVICE_RESTARTED.value,
            AttemptRow.is_excused.is_(excused),
        )
        async with self._database.transaction() as session:
            return await session.scalar(query) or 0

    @undivided
    async def last_attempt(self, job_id: str, round_id: int) -> int:
        """The number of the last attempt at a round; 0 when there was none."""
        if round_id > MAX_COUNT:
            # The wire has rounds that no database can hold.
            return 0
        query = select(func.max(AttemptRow.attempt)).where(AttemptRow.job_id == job_id, AttemptRow.round_id == round_id)
        async with self._database.transaction() as session:
            return await session.scalar(query) or 0

    @undivided
    async def blamed(self, job_id: JobId, since_round: int) -> tuple[ClientId, ...]:
        """Sites that were caught lying in this round of a job or a later one; whose last lie is the oldest, first."""
        query = (
            select(ParticipantRow.client_id)
            .where(
                ParticipantRow.job_id == job_id,
                ParticipantRow.round_id >= since_round,
                ParticipantRow.dropout_reason.in_(_BLAME),
            )
            .order_by(ParticipantRow.round_id.desc(), ParticipantRow.attempt.desc(), ParticipantRow.client_id)
        )
        async with self._database.transaction() as session:
            latest_first = dict.fromkeys(ClientId(name) for name in await session.scalars(query))
        return tuple(reversed(latest_first))

    @undivided
    async def commit(
        self, key: AttemptKey, model: ModelRecord, total_weight: int, aggregate_sha256: bytes, now: float
    ) -> None:
        """Finish a round: the new model becomes the job's newest version and the attempt is committed, or neither.

        Raises:
            LocalProtocolError: the attempt is not applying.
            StorageError: the model does not follow the job's newest version.
        """
        facts = {"total_weight": total_weight, "aggregate_sha256": aggregate_sha256}
        advance_job = (
            update(JobRow)
            .where(JobRow.job_id == key.job_id, JobRow.model_version == model.parent_version)
            .where(JobRow.rounds_committed == key.round_id - 1)
            .values(model_version=model.version, rounds_committed=key.round_id)
            .returning(JobRow.job_id)
        )
        finish = (
            update(SessionRow)
            .where(*_is(SessionRow, key), SessionRow.state == RoundState.APPLYING.value)
            .values(state=RoundState.COMMITTED.value)
        )
        async with self._database.writing() as session:
            await _move(session, key, RoundState.APPLYING, RoundState.COMMITTED, now, facts)
            await session.execute(finish)
            if await session.scalar(advance_job) is None:
                raise StorageError(
                    "the model does not follow the job's newest version",
                    expected=f"round {key.round_id} to make the version after its parent",
                    got=f"version {model.version}",
                )
            session.add(model_row(model))

    @undivided
    async def abandon(
        self, key: AttemptKey, reason: AbandonReason, now: float, detail: str = "", *, is_excused: bool = False
    ) -> None:
        """Give up an open attempt.

        Args:
            key: the attempt.
            reason: why.
            now: seconds since the epoch.
            detail: one sentence more about the reason.
            is_excused: whether it failed only because sites were away.

        Raises:
            LocalProtocolError: the attempt has ended.
        """
        async with self._database.writing() as session:
            await _abandon(session, key, reason, now, detail, is_excused=is_excused)

    @undivided
    async def abandon_open(self, reason: AbandonReason, now: float, detail: str = "") -> list[bytes]:
        """Give up every open attempt and close every report left open: the first act after a restart.

        Returns:
            The sessions that were given up, which aggregator and key server may still hold.
        """
        query = select(AttemptRow).where(AttemptRow.closed_at.is_(None)).order_by(AttemptRow.job_id)
        async with self._database.writing() as session:
            rows = list(await session.scalars(query))
            given_up: list[bytes] = []
            for row in rows:
                if row.state not in _FINAL:
                    given_up += await _open_sessions(session, _key(row))
                    await _abandon(session, _key(row), reason, now, detail)
                row.closed_at = now
        return given_up

    @undivided
    async def close(
        self,
        key: AttemptKey,
        traffic: Mapping[int, SiteBytes],
        metrics: Scalars,
        evaluations: Sequence[SiteEvaluation],
        now: float,
    ) -> None:
        """Finish the report of an ended attempt: bytes by index, means, evaluations. Nothing is added after this.

        Raises:
            LocalProtocolError: the attempt is open, or its report is closed.
        """
        change = (
            update(AttemptRow)
            .where(*_is(AttemptRow, key), AttemptRow.state.in_(_FINAL), AttemptRow.closed_at.is_(None))
            .values(metrics=metrics, closed_at=now)
            .returning(AttemptRow.attempt)
        )
        async with self._database.writing() as session:
            if await session.scalar(change) is None:
                raise LocalProtocolError("the report cannot be closed", expected="an ended attempt, once", got=key)
            for row in await session.scalars(select(ParticipantRow).where(*_is(ParticipantRow, key))):
                count = traffic.get(row.position, SiteBytes())
                row.bytes_up, row.bytes_down = count.up, count.down
            session.add_all(
                EvaluationRow(
                    **_columns(key),
                    client_id=site.client_id,
                    loss=site.loss,
                    num_samples=site.num_samples,
                    metrics=dict(site.metrics),
                )
                for site in evaluations
            )

    @undivided
    async def current(self, job_id: str, now: float) -> RoundReport | None:
        """The attempt of a job whose report is still open; the phase that it is in counts up to `now`."""
        query = (
            select(AttemptRow)
            .where(AttemptRow.job_id == job_id, AttemptRow.closed_at.is_(None))
            .order_by(AttemptRow.round_id.desc(), AttemptRow.attempt.desc())
            .limit(1)
        )
        async with self._database.transaction() as session:
            row = await session.scalar(query)
            return await _report(session, row, now) if row is not None else None

    @undivided
    async def reports(self, job_id: str, *, after: tuple[int, int] = (0, 0)) -> list[RoundReport]:
        """Closed reports of a job in order: those behind this round and attempt."""
        round_id, attempt = after
        later_attempt = (AttemptRow.round_id == round_id) & (AttemptRow.attempt > attempt)
        query = (
            select(AttemptRow)
            .where(AttemptRow.job_id == job_id, AttemptRow.closed_at.is_not(None))
            .where((AttemptRow.round_id > round_id) | later_attempt)
            .order_by(AttemptRow.round_id, AttemptRow.attempt)
        )
        async with self._database.transaction() as session:
            return [await _report(session, row, row.closed_at or 0.0) for row in await session.scalars(query)]


def _columns(key: AttemptKey) -> dict[str, str | int]:
    return {"job_id": key.job_id, "round_id": key.round_id, "attempt": key.attempt}


def _is(table: type[OfAttempt], key: AttemptKey) -> tuple[ColumnElement[bool], ...]:
    return (table.job_id == key.job_id, table.round_id == key.round_id, table.attempt == key.attempt)


def _key(row: AttemptRow) -> AttemptKey:
    return AttemptKey(JobId(row.job_id), row.round_id, row.attempt)


async def _log(session: AsyncSession, key: AttemptKey, state: RoundState, now: float) -> None:
    taken = await session.scalar(select(func.count()).select_from(TransitionRow).where(*_is(TransitionRow, key)))
    session.add(TransitionRow(**_columns(key), sequence=(taken or 0) + 1, state=state.value, entered_at=now))


async def _move(
    session: AsyncSession,
    key: AttemptKey,
    before: RoundState,
    after: RoundState,
    now: float,
    facts: Mapping[str, object] | None = None,
) -> None:
    # The state that we come from is part of the condition, so that two drivers can never both take a step.
    change = (
        update(AttemptRow)
        .where(*_is(AttemptRow, key), AttemptRow.state == before.value)
        .values(state=after.value, **(facts or {}))
        .returning(AttemptRow.attempt)
    )
    if await session.scalar(change) is None:
        raise LocalProtocolError(f"the attempt cannot become {after.value}", expected=before.value, got=key)
    await _log(session, key, after, now)


async def _move_session(
    session: AsyncSession, key: AttemptKey, number: int, step: Step, facts: Mapping[str, object]
) -> None:
    change = (
        update(SessionRow)
        .where(*_is(SessionRow, key), SessionRow.number == number, SessionRow.state == step.before.value)
        .values(state=step.after.value, **facts)
        .returning(SessionRow.number)
    )
    if await session.scalar(change) is None:
        raise LocalProtocolError(
            f"session {number} cannot become {step.after.value}", expected=step.before.value, got=key
        )


async def _open_sessions(session: AsyncSession, key: AttemptKey) -> list[bytes]:
    query = select(SessionRow.session_id).where(*_is(SessionRow, key), SessionRow.state.not_in(_FINAL))
    return list(await session.scalars(query.order_by(SessionRow.number)))


async def _abandon(
    session: AsyncSession,
    key: AttemptKey,
    reason: AbandonReason,
    now: float,
    detail: str,
    *,
    is_excused: bool = False,
) -> None:
    change = (
        update(AttemptRow)
        .where(*_is(AttemptRow, key), AttemptRow.state.not_in(_FINAL))
        .values(state=RoundState.ABANDONED.value, abandon_reason=reason.value, detail=detail, is_excused=is_excused)
        .returning(AttemptRow.attempt)
    )
    if await session.scalar(change) is None:
        raise LocalProtocolError("the attempt cannot be abandoned", expected="an open attempt", got=key)
    await session.execute(
        update(SessionRow)
        .where(*_is(SessionRow, key), SessionRow.state.not_in(_FINAL))
        .values(state=RoundState.ABANDONED.value, abandon_reason=reason.value, detail=detail)
    )
    await _log(session, key, RoundState.ABANDONED, now)


async def _report(session: AsyncSession, row: AttemptRow, now: float) -> RoundReport:
    key = _key(row)
    steps = list(
        await session.scalars(select(TransitionRow).where(*_is(TransitionRow, key)).order_by(TransitionRow.sequence))
    )
    sites = list(
        await session.scalars(select(ParticipantRow).where(*_is(ParticipantRow, key)).order_by(ParticipantRow.position))
    )
    sessions = await session.scalars(select(SessionRow).where(*_is(SessionRow, key)).order_by(SessionRow.number))
    measured = await session.scalars(
        select(EvaluationRow).where(*_is(EvaluationRow, key)).order_by(EvaluationRow.client_id)
    )
    state = RoundState(row.state)
    seconds = _phase_seconds(steps, now)
    return RoundReport(
        job_id=key.job_id,
        round_id=key.round_id,
        attempt=key.attempt,
        state=state,
        abandon_reason=AbandonReason(row.abandon_reason) if row.abandon_reason else None,
        model_version=row.model_version + (state is RoundState.COMMITTED),
        invited=tuple(ClientId(site.client_id) for site in sites),
        survivors=tuple(ClientId(site.client_id) for site in sites if site.survived),
        dropouts=tuple(dropout for site in sites if (dropout := _dropout(site)) is not None),
        phase_seconds=seconds,
        round_seconds=sum(seconds.values()),
        total_weight=row.total_weight or 0,
        aggregate_sha256=row.aggregate_sha256 or b"",
        metrics=dict(row.metrics),
        bytes_up={site.client_id: site.bytes_up for site in sites},
        bytes_down={site.client_id: site.bytes_down for site in sites},
        detail=row.detail,
        evaluations=tuple(_evaluation(site) for site in measured),
        sessions=tuple(_session(row, sites) for row in sessions),
    )


def _session(row: SessionRow, sites: Sequence[ParticipantRow]) -> SessionReport:
    own = [site for site in sites if site.session_number == row.number]
    return SessionReport(
        number=row.number,
        session_id=row.session_id,
        aggregator=row.aggregator,
        keyserver=row.keyserver,
        state=RoundState(row.state),
        abandon_reason=AbandonReason(row.abandon_reason) if row.abandon_reason else None,
        detail=row.detail,
        invited=len(own),
        survivors=sum(site.survived for site in own),
        total_weight=row.total_weight or 0,
        aggregate_sha256=row.aggregate_sha256 or b"",
    )


def _session_row(key: AttemptKey, number: int, opening: Opening, state: RoundState) -> SessionRow:
    return SessionRow(
        **_columns(key),
        number=number,
        session_id=opening.session_id,
        aggregator=opening.aggregator,
        keyserver=opening.keyserver,
        state=state.value,
    )


def _participants(key: AttemptKey, openings: Sequence[Opening]) -> Iterator[ParticipantRow]:
    placed = ((number, entry) for number, opening in enumerate(openings, 1) for entry in opening.roster)
    for position, (number, entry) in enumerate(placed):
        yield ParticipantRow(
            **_columns(key),
            position=position,
            client_id=entry.client_id,
            certificate_sha256=entry.certificate_sha256,
            session_number=number,
        )


def _phase_seconds(steps: Sequence[TransitionRow], now: float) -> dict[str, float]:
    ends = [step.entered_at for step in steps[1:]] + [now]
    spans = zip(steps, ends, strict=True)
    return {step.state: max(0.0, end - step.entered_at) for step, end in spans if step.state not in _FINAL}


def _dropout(row: ParticipantRow) -> SiteDropout | None:
    if row.dropout_reason is None or row.dropout_phase is None:
        return None
    return SiteDropout(ClientId(row.client_id), DropoutReason(row.dropout_reason), RoundState(row.dropout_phase))


def _evaluation(row: EvaluationRow) -> SiteEvaluation:
    return SiteEvaluation(ClientId(row.client_id), row.loss, row.num_samples, dict(row.metrics))
