"""A coordinator that lost its lease writes nothing: refused by the fence, and by nothing else."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256

import pytest

from fl_core.errors import ConfigError, NotLeading
from fl_core.rounds.plan import JobId
from services.coordinator.database import upgrade_database
from services.coordinator.job_store import JobStore
from services.coordinator.leadership import LEASE, Leadership
from services.coordinator.records import JobRecord, ModelRecord
from services.coordinator.round_store import RoundStore
from services.coordinator.tables import LEASES
from services.runtime.database import Database, open_database
from services.runtime.leases import Holder, LeaseLost, LeaseStore

JOB = JobId("job-1")
ANNA, BERT = Holder("coord-anna", "127.0.0.1:1"), Holder("coord-bert", "127.0.0.1:2")
LEASE_S = 0.6


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await upgrade_database(database_url)
    opened = open_database(database_url)
    yield opened
    await opened.close()


def leadership(database: Database, own: Holder, duration_s: float = LEASE_S) -> Leadership:
    return Leadership(LeaseStore(database, LEASES, duration_s), own, is_alone=False)


async def until_cancelled() -> None:
    await asyncio.Event().wait()


async def test_a_former_leader_writes_nothing_and_only_the_fence_keeps_it_from_that(database: Database) -> None:
    anna = leadership(database, ANNA, duration_s=3600.0)
    jobs, rounds = (kind(replace(database, fence=anna)) for kind in (JobStore, RoundStore))
    async with anna.driving(until_cancelled, lambda _: None):
        digest = sha256(b"m").digest()
        await jobs.add(JobRecord(JOB, "digits", "{}", "olga", 1.0), ModelRecord(JOB, 1, digest, "m", 1, 1.0))
        # The lease passes on while its holder knows nothing of it: as if it had been stopped for an hour.
        taken = await LeaseStore(database, LEASES, 3600.0).acquire(LEASE, ANNA, even_own=True)
        assert taken is not None
        assert anna.is_leading
        with pytest.raises(LeaseLost):
            await rounds.open(JOB, 2.0)
        assert await rounds.current(JOB, 3.0) is None
        await RoundStore(database).open(JOB, 2.0)
        assert await rounds.current(JOB, 3.0) is not None


async def test_a_leader_whose_lease_passed_on_steps_down_and_dismisses_its_sites(database: Database) -> None:
    anna = leadership(database, ANNA)
    dismissed: asyncio.Queue[Exception] = asyncio.Queue()
    async with anna.driving(until_cancelled, dismissed.put_nowait):
        taken = await LeaseStore(database, LEASES, 3600.0).acquire(LEASE, replace_id(ANNA), even_own=True)
        assert taken is None
        taken = await LeaseStore(database, LEASES, 3600.0).acquire(LEASE, ANNA, even_own=True)
        assert taken is not None
        async with asyncio.timeout(30):
            error = await dismissed.get()
        assert isinstance(error, NotLeading)
        assert not anna.is_leading
        with pytest.raises(NotLeading):
            await anna.require()


def replace_id(holder: Holder) -> Holder:
    return Holder(holder.service_id + "-other", holder.address)


async def test_the_next_one_drives_as_soon_as_the_first_lets_go(database: Database) -> None:
    driving = asyncio.Event()

    async def drive() -> None:
        driving.set()
        await until_cancelled()

    anna, bert = leadership(database, ANNA), leadership(database, BERT)
    async with anna.driving(until_cancelled, lambda _: None), bert.driving(drive, lambda _: None):
        assert not bert.is_leading
        with pytest.raises(NotLeading) as refused:
            await bert.require()
        assert refused.value.expected == ANNA.address
        assert not driving.is_set()
    async with anna.driving(until_cancelled, lambda _: None), asyncio.timeout(30):
        pass
    async with bert.driving(drive, lambda _: None), asyncio.timeout(30):
        await driving.wait()
        assert await bert.leader() == BERT.address


async def test_a_second_coordinator_on_sqlite_is_refused(database: Database) -> None:
    leases = LeaseStore(database, LEASES, 3600.0)
    first, second = (Leadership(leases, own, is_alone=True) for own in (ANNA, BERT))
    async with first.driving(until_cancelled, lambda _: None):
        with pytest.raises(ConfigError, match="SQLite takes one"):
            async with second.driving(until_cancelled, lambda _: None):
                pass
