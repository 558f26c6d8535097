"""Which replica of the coordinator drives the rounds: the one that holds the lease in the database they share.

Every write of the holder is fenced: a replica that was stopped for longer than its lease writes nothing any more when
it goes on, steps down, and waits for its turn like the others. Without replicas the lease is simply ours.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from fl_core.errors import ConfigError, NotLeading, StorageError, TacitError
from services.coordinator.failures import run_beside
from services.runtime.leases import Holder, Lease, LeaseLost, LeaseStore

log = structlog.get_logger(__name__)

LEASE = "rounds"
RENEWALS = 3
"""Renewals in the time of one lease: one may fail, and the next still comes in time."""


class Leadership:
    """The lease of this replica, while it has it.

    Args:
        leases: in the shared database, outside of the fence.
        own: this replica, and where it can be reached.
        is_alone: the database can have no second replica: it is a SQLite file.
    """

    def __init__(self, leases: LeaseStore, own: Holder, *, is_alone: bool) -> None:
        self._leases = leases
        self._own = own
        self._is_alone = is_alone
        self._lease: Lease | None = None

    @property
    def is_leading(self) -> bool:
        """Whether this replica drives the rounds, as far as it knows."""
        return self._lease is not None

    async def check(self, session: AsyncSession) -> None:
        """The fence in front of every write, see `services.runtime.database.Fence`.

        Raises:
            LeaseLost: this replica does not drive the rounds, or does not any more.
        """
        lease = self._lease
        if lease is None:
            raise LeaseLost("this coordinator does not drive the rounds", expected="the lease", got="none")
        await self._leases.check(session, lease)

    async def require(self) -> None:
        """Check that a call which only the driving replica can answer has come to it.

        Raises:
            NotLeading: it has not; the error names the replica that drives.
        """
        if self._lease is None:
            raise await self._not_leading()

    async def leader(self) -> str:
        """host:port of the replica that drives the rounds; empty when none does."""
        holder = await self._leases.holder(LEASE)
        return "" if holder is None else holder.address

    @asynccontextmanager
    async def driving(
        self, work: Callable[[], Coroutine[Any, Any, None]], step_down: Callable[[TacitError], None]
    ) -> AsyncIterator[None]:
        """Do `work` whenever this replica holds the lease, while the block runs.

        Args:
            work: drives the rounds until it is cancelled.
            step_down: called after the lease was lost, with what those who are connected are told.

        Raises:
            ConfigError: another coordinator uses the same SQLite file.
            StorageError: the database failed.
        """
        # Our former process may hold it; nobody else takes a lease that runs.
        self._lease = await self._leases.acquire(LEASE, self._own, even_own=True)
        if self._lease is None and self._is_alone:
            raise await self._second_of_sqlite()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._take_turns(work, step_down))
            try:
                yield
            finally:
                task.cancel()

    async def _take_turns(
        self, work: Callable[[], Coroutine[Any, Any, None]], step_down: Callable[[TacitError], None]
    ) -> None:
        while True:
            lease = self._lease = self._lease or await self._wait()
            log.info("leadership_taken", token=lease.token)
            try:
                await run_beside(work(), self._keep(lease))
            except* StorageError as failures:
                # A transaction that a stopped process left open was ended by the database, and says only that.
                await self._check_lost(lease, failures)
                log.warning("leadership_lost", error=str(failures.exceptions[0]))
            finally:
                self._lease = None
                await self._release(lease)
            step_down(await self._not_leading())

    async def _check_lost(self, lease: Lease, failures: BaseExceptionGroup[StorageError]) -> None:
        """Check that a failure came from a lease that is lost; any other one is raised again."""
        if failures.subgroup(LeaseLost) is not None:
            return
        try:
            await self._leases.renew(lease)
        except LeaseLost:
            return
        raise failures

    async def _release(self, lease: Lease) -> None:
        try:
            await self._leases.release(lease)
        except StorageError as error:
            # It runs out by itself.
            log.warning("lease_not_released", error=str(error))

    async def _wait(self) -> Lease:
        log.info("leadership_awaited", leader=await self.leader())
        while True:
            await asyncio.sleep(self._leases.duration_s / RENEWALS)
            lease = await self._leases.acquire(LEASE, self._own)
            if lease is not None:
                return lease

    async def _keep(self, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self._leases.duration_s / RENEWALS)
            began = loop.time()
            try:
                await self._leases.renew(lease)
            except LeaseLost:
                raise
            except StorageError as error:
                log.warning("lease_not_renewed", error=str(error))
                if loop.time() - renewed > self._leases.duration_s:
                    raise LeaseLost("the lease could not be renewed in time", got=str(error)) from error
                continue
            renewed = began

    async def _not_leading(self) -> NotLeading:
        leader = await self.leader()
        return NotLeading(
            "this coordinator does not drive the rounds",
            expected=leader or "another replica, in a moment",
            got=self._own.address,
            fix="call the replica that does; a site or an operator whose configuration lists it does so by itself",
        )

    async def _second_of_sqlite(self) -> ConfigError:
        holder = await self._leases.holder(LEASE)
        return ConfigError(
            "another coordinator uses this database, and SQLite takes one",
            expected="one coordinator, or a PostgreSQL database that several share",
            got=None if holder is None else f"{holder.service_id} at {holder.address}",
            fix="stop the other one, or set database_url to postgresql://... on all of them",
        )
