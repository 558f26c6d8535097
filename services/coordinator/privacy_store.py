"""The privacy ledger in the database: what was reserved for each release, and what each site countersigned.

A row is written before the step that may release something, and nothing ever takes a row away: an attempt that breaks
off between its reservation and its end has been counted, and so has one that is run again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from fl_core.errors import RemoteProtocolError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.events import PrivacyEvent, event_from_json
from fl_core.privacy.ledger import check_affordable
from fl_core.rounds.plan import ClientId, JobId
from services.coordinator.records import AttemptKey
from services.coordinator.tables import PrivacyRow
from services.runtime.database import Database, undivided

JOB = ""
"""Stands for the job itself where a row of a site has its client_id."""


@dataclass(frozen=True, slots=True)
class Release:
    """One row of the ledger.

    Args:
        key: the attempt.
        session_id: of the attempt, 16 bytes.
        client_id: whose ledger; `JOB` for that of the job.
        event: what was, or may have been, released.
        reserved_at: seconds since the epoch.
        clip: of the attempt, model units.
        binding: that a site signed together with the event, 32 bytes; empty in the ledger of the job.
        certificate_der: of the site.
        signature: of the site.
    """

    key: AttemptKey
    session_id: bytes
    client_id: str
    event: PrivacyEvent
    reserved_at: float
    clip: float = 0.0
    binding: bytes = b""
    certificate_der: bytes = b""
    signature: bytes = b""


class PrivacyStore:
    """The ledgers of all jobs. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @undivided
    async def reserve(self, release: Release, budget: PrivacyBudget, owner: str) -> None:
        """Count a release, durably, before it is made. The same release again changes nothing.

        Raises:
            BudgetExhausted: it would overshoot the budget; then nothing is written.
            RemoteProtocolError: another event was counted for the same release before.
        """
        async with self._database.writing() as session:
            rows = await _rows(session, release.key.job_id, release.client_id)
            if _is_known(rows, release):
                return
            place = (release.key.round_id, release.key.attempt)
            others = [row for row in rows if (row.round_id, row.attempt) != place]
            # Of several sessions of one attempt a site is in one only, so that together they cost what one costs.
            check_affordable(budget, _events(others), release.event, owner)
            session.add(_row(release))
            try:
                await session.flush()
            except IntegrityError as error:
                raise RemoteProtocolError(
                    "a release was counted twice at once", got=release.session_id.hex()
                ) from error

    @undivided
    async def signers(self, session_id: bytes) -> frozenset[ClientId]:
        """Sites that countersigned a release."""
        query = select(PrivacyRow.client_id).where(PrivacyRow.session_id == session_id, PrivacyRow.client_id != JOB)
        async with self._database.transaction() as session:
            return frozenset(ClientId(name) for name in await session.scalars(query))

    @undivided
    async def events(self, job_id: JobId, client_id: str = JOB) -> tuple[PrivacyEvent, ...]:
        """What was counted for a job, or for a site in it: one event for each attempt."""
        async with self._database.transaction() as session:
            return tuple(_events(await _rows(session, job_id, client_id)))

    @undivided
    async def releases(self, job_id: JobId) -> Sequence[Release]:
        """All rows of a job, in order of time."""
        query = select(PrivacyRow).where(PrivacyRow.job_id == job_id).order_by(PrivacyRow.reserved_at)
        async with self._database.transaction() as session:
            return [_release(row) for row in await session.scalars(query)]

    @undivided
    async def set_next_clip(self, key: AttemptKey, clip: float) -> None:
        """Remember the clip that follows from a released sum."""
        async with self._database.writing() as session:
            for row in await session.scalars(
                select(PrivacyRow).where(
                    PrivacyRow.job_id == key.job_id,
                    PrivacyRow.round_id == key.round_id,
                    PrivacyRow.attempt == key.attempt,
                    PrivacyRow.client_id == JOB,
                )
            ):
                row.next_clip = clip

    @undivided
    async def clip(self, job_id: JobId) -> float | None:
        """The clip that followed from the last sum; None before there was one."""
        query = (
            select(PrivacyRow.next_clip)
            .where(PrivacyRow.job_id == job_id, PrivacyRow.client_id == JOB, PrivacyRow.next_clip.is_not(None))
            .order_by(PrivacyRow.round_id.desc(), PrivacyRow.attempt.desc())
            .limit(1)
        )
        async with self._database.transaction() as session:
            found: float | None = await session.scalar(query)
            return found


async def _rows(session: AsyncSession, job_id: JobId, client_id: str) -> Sequence[PrivacyRow]:
    query = select(PrivacyRow).where(PrivacyRow.job_id == job_id, PrivacyRow.client_id == client_id)
    return (await session.scalars(query)).all()


def _is_known(rows: Sequence[PrivacyRow], release: Release) -> bool:
    for row in rows:
        if row.session_id == release.session_id:
            if event_from_json(row.event_json) != release.event:
                raise RemoteProtocolError(
                    "another event was counted for this release", expected=row.event_json, got=release.event.to_json()
                )
            return True
    return False


def _events(rows: Sequence[PrivacyRow]) -> list[PrivacyEvent]:
    """One event for each attempt: of several sessions of one attempt a site is in one only."""
    costliest: dict[tuple[int, int], PrivacyEvent] = {}
    for row in rows:
        event, place = event_from_json(row.event_json), (row.round_id, row.attempt)
        if place not in costliest or event.noise_multiplier < costliest[place].noise_multiplier:
            costliest[place] = event
    return list(costliest.values())


def events_of(releases: Sequence[Release]) -> list[PrivacyEvent]:
    """One event for each attempt, as `PrivacyStore.events` gives them."""
    return _events([_row(release) for release in releases])


def by_client(releases: Sequence[Release]) -> Mapping[str, Sequence[Release]]:
    """The rows of each ledger, in order."""
    ledgers: dict[str, list[Release]] = {}
    for release in releases:
        ledgers.setdefault(release.client_id, []).append(release)
    return ledgers


def _row(release: Release) -> PrivacyRow:
    return PrivacyRow(
        job_id=release.key.job_id,
        round_id=release.key.round_id,
        attempt=release.key.attempt,
        session_id=release.session_id,
        client_id=release.client_id,
        event_json=release.event.to_json(),
        reserved_at=release.reserved_at,
        clip=release.clip,
        binding=release.binding,
        certificate_der=release.certificate_der,
        signature=release.signature,
    )


def _release(row: PrivacyRow) -> Release:
    return Release(
        AttemptKey(JobId(row.job_id), row.round_id, row.attempt),
        row.session_id,
        row.client_id,
        event_from_json(row.event_json),
        row.reserved_at,
        row.clip,
        row.binding,
        row.certificate_der,
        row.signature,
    )
