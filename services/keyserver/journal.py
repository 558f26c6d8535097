"""What the key server must still know after a crash: which sessions it has unmasked.

Asking the shares of one session for two survivor sets would give away what double masking hides. So a session is
written here, durably, before the first site is asked, and one that stands here is never opened or unmasked again.
"""

import time
from collections.abc import Callable

from fl_core.crypto import labels
from fl_core.errors import SessionFrozen
from fl_core.rounds.plan import RoundPlan
from services.keyserver.tables import UnmaskedSession
from services.runtime.database import Database, open_database, undivided, upgrade

MIGRATIONS = "services.keyserver:migrations"


class UnmaskJournal:
    """The sessions that were unmasked.

    Args:
        database: with the schema of `services.keyserver.tables`.
        clock: seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    async def open(cls, url: str) -> "UnmaskJournal":
        """Open the journal and bring its schema up to date.

        Raises:
            ConfigError: the URL is wrong.
            StorageError: the database failed.
        """
        await upgrade(url, MIGRATIONS)
        return cls(open_database(url))

    @undivided
    async def check_not_unmasked(self, session_id: bytes) -> None:
        """Check that a session was never unmasked.

        Raises:
            SessionFrozen: it was.
            StorageError: the database failed.
        """
        async with self._database.transaction() as transaction:
            if await transaction.get(UnmaskedSession, session_id) is not None:
                raise _unmasked_before(session_id)

    @undivided
    async def record(self, plan: RoundPlan, survivors: tuple[int, ...], name: bytes | None = None) -> None:
        """Record that a session is unmasked now. It is on disk when this returns.

        Args:
            plan: of the session.
            survivors: whose sum it is.
            name: 16 bytes by which it is recorded; the session's id when None.

        Raises:
            SessionFrozen: it was unmasked before.
            StorageError: the database failed; nothing may be asked of the sites.
        """
        recorded = name or plan.session_id
        row = UnmaskedSession(
            session_id=recorded,
            job_id=plan.job_id,
            round_id=plan.round_id,
            attempt=plan.attempt,
            survivors_sha256=labels.digest_fields(labels.INDEX_SET, plan.binding, *sorted(survivors)),
            recorded_at=self._clock(),
        )
        async with self._database.transaction() as transaction:
            if await transaction.get(UnmaskedSession, recorded) is not None:
                raise _unmasked_before(plan.session_id)
            transaction.add(row)

    async def close(self) -> None:
        """Close the database."""
        await self._database.close()


def _unmasked_before(session_id: bytes) -> SessionFrozen:
    return SessionFrozen(
        "the session was unmasked before",
        expected="one unmasking of a session",
        got=f"another one of session {session_id.hex()}",
        fix="run the round again as the next attempt",
    )
