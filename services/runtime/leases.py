"""Leases with fencing: of several replicas one may act, and what a former holder still writes is refused.

The clock is the database's, so that replicas need not agree about the time. A holder that is stopped does not know
that its lease has passed on; its token does: every acquisition has a higher one, and `LeaseStore.check` compares it
inside the very transaction that writes.

Source: Gray and Cheriton 1989, Leases; the fencing token as in Burrows 2006, The Chubby lock service (sequencers).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, ColumnElement, Double, MetaData, String, Table, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from fl_core.errors import StorageError
from services.runtime.database import Database, undivided

# The Julian day of 1970-01-01, which is how SQLite tells the time in fractions of a second.
_EPOCH_AS_JULIAN_DAY = 2440587.5
_DAY_S = 86_400.0


class LeaseLost(StorageError):
    """A write of somebody who does not hold the lease, or no longer holds it. Nothing was written."""

    code: ClassVar[str] = "lease_lost"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was acquired.

    Args:
        name: of what is leased.
        holder: id of the service that holds it.
        token: higher than that of every holder before.
    """

    name: str
    holder: str
    token: int


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease now, and the address under which it can be reached."""

    service_id: str
    address: str


def lease_table(metadata: MetaData) -> Table:
    """The table of the leases, as a part of a service's schema."""
    return Table(
        "leases",
        metadata,
        Column("name", String(64), primary_key=True),
        Column("holder", String(200), nullable=False),
        Column("address", String(256), nullable=False),
        Column("token", BigInteger, nullable=False),
        Column("expires_at", Double, nullable=False),
    )


class LeaseStore:
    """The leases in one database.

    Args:
        database: with the table.
        table: of `lease_table`.
        duration_s: a lease that is not renewed for so long is free.
    """

    def __init__(self, database: Database, table: Table, duration_s: float) -> None:
        self._database = database
        self._table = table
        self.duration_s = duration_s

    @undivided
    async def acquire(self, name: str, holder: Holder, *, even_own: bool = False) -> Lease | None:
        """Take a lease that is free.

        Args:
            name: of what is leased.
            holder: who takes it.
            even_own: also take a lease that runs and is held under our own id: by our process before a restart.

        Returns:
            The lease, or None while somebody else holds it.

        Raises:
            StorageError: the database failed.
        """
        table, now = self._table, self._now()
        fresh = {"holder": holder.service_id, "address": holder.address, "expires_at": now + self.duration_s}
        free: ColumnElement[bool] = table.c.expires_at <= now
        if even_own:
            free = or_(free, table.c.holder == holder.service_id)
        take = (
            self._insert()
            .values(name=name, token=1, **fresh)
            .on_conflict_do_update(
                index_elements=[table.c.name], set_={"token": table.c.token + 1, **fresh}, where=free
            )
            .returning(table.c.token)
        )
        async with self._database.transaction() as session:
            token = await session.scalar(take)
        return None if token is None else Lease(name, holder.service_id, token)

    @undivided
    async def renew(self, lease: Lease) -> None:
        """Hold a lease for its whole duration from now on. One that ran out and nobody took is still ours.

        Raises:
            LeaseLost: somebody else took it.
            StorageError: the database failed.
        """
        async with self._database.transaction() as session:
            if await session.scalar(self._extend(lease, self._now() + self.duration_s)) is None:
                raise _lost(lease)

    @undivided
    async def release(self, lease: Lease) -> None:
        """Let go of a lease, so that nobody waits for its end. Releasing a lost one changes nothing."""
        async with self._database.transaction() as session:
            await session.execute(self._extend(lease, 0.0))

    @undivided
    async def holder(self, name: str) -> Holder | None:
        """Who holds a lease now, if anybody does."""
        table = self._table
        query = select(table.c.holder, table.c.address).where(table.c.name == name, table.c.expires_at > self._now())
        async with self._database.transaction() as session:
            row = (await session.execute(query)).first()
        return None if row is None else Holder(row.holder, row.address)

    async def check(self, session: AsyncSession, lease: Lease) -> None:
        """Check a lease inside a transaction, and keep it from passing on before that transaction ends.

        Raises:
            LeaseLost: somebody else took it.
        """
        # In PostgreSQL the shared lock makes an acquisition wait for us; in SQLite a transaction is alone anyway.
        query = select(self._table.c.token).where(self._table.c.name == lease.name).with_for_update(read=True)
        if await session.scalar(query) != lease.token:
            raise _lost(lease)

    def _extend(self, lease: Lease, until: Any) -> Any:
        table = self._table
        mine = (table.c.name == lease.name) & (table.c.token == lease.token)
        return update(table).where(mine).values(expires_at=until).returning(table.c.token)

    def _now(self) -> ColumnElement[Any]:
        """Seconds since the epoch, by the clock of the database."""
        if self._database.is_sqlite:
            return (func.julianday("now") - _EPOCH_AS_JULIAN_DAY) * _DAY_S
        return func.date_part("epoch", func.clock_timestamp())

    def _insert(self) -> Any:
        return sqlite.insert(self._table) if self._database.is_sqlite else postgresql.insert(self._table)


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"{lease.holder} does not hold the lease {lease.name!r} any more",
        expected=f"token {lease.token}",
        got="a later holder",
        fix="nothing was written; the holder of the lease goes on",
    )
