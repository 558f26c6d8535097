"""Leases on SQLite and PostgreSQL: one holder at a time, and a former one writes nothing any more."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text

from services.runtime.database import Database, open_database
from services.runtime.leases import Holder, Lease, LeaseLost, LeaseStore, lease_table

METADATA = MetaData()
LEASES = lease_table(METADATA)
NOTES = Table("notes", METADATA, Column("number", Integer, primary_key=True))
ANNA, BERT = Holder("anna", "127.0.0.1:1"), Holder("bert", "127.0.0.1:2")
SHORT_S = 0.2
LONG_S = 60.0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = open_database(database_url)
    async with opened.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield opened
    await opened.close()


async def write_note(database: Database, store: LeaseStore, lease: Lease) -> None:
    async with database.transaction() as session:
        await store.check(session, lease)
        await session.execute(insert(NOTES).values(number=1))


async def test_one_holder_at_a_time_and_others_learn_who_it_is(database: Database) -> None:
    store = LeaseStore(database, LEASES, LONG_S)
    assert await store.holder("rounds") is None
    lease = await store.acquire("rounds", ANNA)
    assert lease is not None
    assert await store.acquire("rounds", BERT) is None
    assert await store.holder("rounds") == ANNA


async def test_a_lease_that_is_not_renewed_passes_on_with_a_higher_token(database: Database) -> None:
    store = LeaseStore(database, LEASES, SHORT_S)
    first = await store.acquire("rounds", ANNA)
    assert first is not None
    await asyncio.sleep(2 * SHORT_S)
    assert await store.holder("rounds") is None
    second = await store.acquire("rounds", BERT)
    assert second is not None
    assert second.token > first.token


async def test_a_lease_that_is_renewed_stays(database: Database) -> None:
    store = LeaseStore(database, LEASES, 3.0)
    lease = await store.acquire("rounds", ANNA)
    assert lease is not None
    for _ in range(5):
        await asyncio.sleep(0.8)
        await store.renew(lease)
    assert await store.acquire("rounds", BERT) is None


async def test_a_former_holder_can_neither_renew_nor_release_nor_write(database: Database) -> None:
    store = LeaseStore(database, LEASES, SHORT_S)
    former = await store.acquire("rounds", ANNA)
    assert former is not None
    await asyncio.sleep(2 * SHORT_S)
    later = LeaseStore(database, LEASES, LONG_S)
    assert await later.acquire("rounds", BERT) is not None
    with pytest.raises(LeaseLost):
        await store.renew(former)
    await store.release(former)
    assert await store.holder("rounds") == BERT
    with pytest.raises(LeaseLost, match="anna"):
        await write_note(database, store, former)
    async with database.transaction() as session:
        assert (await session.execute(select(NOTES))).all() == []


async def test_a_lease_that_ran_out_and_nobody_took_still_writes(database: Database) -> None:
    store = LeaseStore(database, LEASES, SHORT_S)
    lease = await store.acquire("rounds", ANNA)
    assert lease is not None
    await asyncio.sleep(2 * SHORT_S)
    async with database.transaction() as session:
        await store.check(session, lease)
    await store.renew(lease)


async def test_a_released_lease_is_free_at_once(database: Database) -> None:
    store = LeaseStore(database, LEASES, LONG_S)
    lease = await store.acquire("rounds", ANNA)
    assert lease is not None
    await store.release(lease)
    assert await store.acquire("rounds", BERT) is not None


async def test_a_restarted_holder_takes_its_own_lease_and_fences_its_former_self(database: Database) -> None:
    store = LeaseStore(database, LEASES, LONG_S)
    before = await store.acquire("rounds", ANNA)
    assert before is not None
    assert await store.acquire("rounds", BERT, even_own=True) is None
    assert await store.acquire("rounds", ANNA) is None
    after = await store.acquire("rounds", ANNA, even_own=True)
    assert after is not None
    with pytest.raises(LeaseLost):
        await store.renew(before)


async def test_of_many_who_try_at_once_one_gets_it(database: Database) -> None:
    store = LeaseStore(database, LEASES, LONG_S)
    taken = await asyncio.gather(*(store.acquire("rounds", Holder(f"c{n}", "x:1")) for n in range(6)))
    assert sum(lease is not None for lease in taken) == 1


async def test_leases_of_different_names_do_not_meet(database: Database) -> None:
    store = LeaseStore(database, LEASES, LONG_S)
    assert await store.acquire("rounds", ANNA) is not None
    assert await store.acquire("other", BERT) is not None


async def test_a_lease_does_not_pass_on_while_its_holder_is_inside_a_write(database: Database) -> None:
    """Between the check and the commit nobody else may become the holder, however long that takes."""
    if database.engine.dialect.name == "sqlite":
        pytest.skip("in SQLite a transaction is alone")
    store = LeaseStore(database, LEASES, SHORT_S)
    lease = await store.acquire("rounds", ANNA)
    assert lease is not None
    async with database.transaction() as session:
        await store.check(session, lease)
        await asyncio.sleep(2 * SHORT_S)
        waiting = asyncio.create_task(store.acquire("rounds", BERT))
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done
        await session.execute(insert(NOTES).values(number=2))
    assert await waiting is not None
    async with database.transaction() as session:
        assert (await session.execute(text("SELECT number FROM notes"))).scalar() == 2
