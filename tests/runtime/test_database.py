"""Databases: durable SQLite, transactions that do not fail under load, migrations, and errors without secrets."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from fl_core.errors import ConfigError, StorageError
from services.runtime.database import (
    Database,
    current_revision,
    database_url,
    open_database,
    sqlite_url,
    undivided,
    upgrade,
)

ENV = """
from sqlalchemy import MetaData
from services.runtime.database import run_migrations
run_migrations(MetaData())
"""

REVISION = """
import sqlalchemy as sa
from alembic import op
revision = {revision!r}
down_revision = {down!r}
branch_labels = depends_on = None
def upgrade():
    {body}
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "deep" / "state.db")


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "100% migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    body = "op.create_table('job', sa.Column('id', sa.Integer, primary_key=True))"
    (folder / "versions" / "a1.py").write_text(REVISION.format(revision="a1", down=None, body=body))
    return folder


async def insert(database: Database, *values: object, failure: Exception | None = None) -> None:
    async with database.transaction() as session:
        for value in values:
            await session.execute(text("INSERT INTO t VALUES (:x)"), {"x": value})
        if failure is not None:
            raise failure


async def test_sqlite_is_durable_and_checks_foreign_keys(url: str) -> None:
    database = open_database(url)
    async with database.transaction() as session:
        pragmas = [
            (await session.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    await database.close()
    assert pragmas == ["wal", 2, 1, 10000]


async def test_a_transaction_that_raises_leaves_nothing_behind(url: str) -> None:
    database = open_database(url)
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE t (x INTEGER UNIQUE)"))
    with pytest.raises(ZeroDivisionError):
        await insert(database, 1, failure=ZeroDivisionError())
    async with database.transaction() as session:
        assert (await session.execute(text("SELECT count(*) FROM t"))).scalar_one() == 0
    await database.close()


async def test_many_read_then_write_transactions_at_once_lose_nothing(url: str) -> None:
    database = open_database(url)
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE t (x INTEGER)"))
        await session.execute(text("INSERT INTO t VALUES (0)"))

    async def increment() -> None:
        async with database.transaction() as session:
            value = (await session.execute(text("SELECT x FROM t"))).scalar_one()
            await session.execute(text("UPDATE t SET x = :x"), {"x": value + 1})

    await asyncio.gather(*(increment() for _ in range(25)))
    async with database.transaction() as session:
        assert (await session.execute(text("SELECT x FROM t"))).scalar_one() == 25
    await database.close()


async def test_a_transaction_whose_caller_goes_away_runs_to_its_end(url: str) -> None:
    database = open_database(url)
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE t (x INTEGER)"))
    begun, go_on = asyncio.Event(), asyncio.Event()

    @undivided
    async def work() -> None:
        async with database.transaction() as session:
            await session.execute(text("INSERT INTO t VALUES (1)"))
            begun.set()
            await go_on.wait()
            await session.execute(text("INSERT INTO t VALUES (2)"))

    caller = asyncio.create_task(work())
    await begun.wait()
    for _ in range(2):
        caller.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with asyncio.timeout(30), database.transaction() as session:
        assert (await session.execute(text("SELECT sum(x) FROM t"))).scalar_one() == 3
    await database.close()


async def test_an_undivided_transaction_gives_its_result_or_its_error() -> None:
    @undivided
    async def divide(number: int, *, by: int) -> int:
        return number // by

    assert await divide(6, by=3) == 2
    with pytest.raises(ZeroDivisionError):
        await divide(6, by=0)


async def test_an_error_of_the_database_shows_no_values(url: str) -> None:
    database = open_database(url)
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE t (x TEXT UNIQUE)"))
    with pytest.raises(StorageError, match="the database failed: got IntegrityError") as caught:
        await insert(database, "patient 12", "patient 12")
    assert "patient" not in str(caught.value)
    assert isinstance(caught.value.__cause__, IntegrityError)
    await database.close()


async def test_migrations_bring_a_database_to_the_newest_schema_once(url: str, migrations: Path) -> None:
    assert await current_revision(url) is None
    assert await upgrade(url, migrations) == "a1"
    assert await upgrade(url, migrations) == "a1"
    body = "op.add_column('job', sa.Column('name', sa.String))"
    (migrations / "versions" / "b2.py").write_text(REVISION.format(revision="b2", down="a1", body=body))
    assert await upgrade(url, migrations) == "b2"
    assert await current_revision(url) == "b2"


async def test_a_migration_that_fails_changes_nothing(url: str, migrations: Path) -> None:
    await upgrade(url, migrations)
    body = "op.add_column('job', sa.Column('name', sa.String)); op.execute('nonsense')"
    (migrations / "versions" / "b2.py").write_text(REVISION.format(revision="b2", down="a1", body=body))
    with pytest.raises(StorageError, match="the database failed"):
        await upgrade(url, migrations)
    database = open_database(url)
    async with database.transaction() as session:
        columns = [row[1] for row in (await session.execute(text("PRAGMA table_info(job)"))).all()]
    await database.close()
    assert columns == ["id"]
    assert await current_revision(url) == "a1"


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite"),
        ("postgresql://u:p@h/d", "postgresql+asyncpg"),
        ("postgres://u:p@h/d", "postgresql+asyncpg"),
    ],
)
def test_the_asynchronous_driver_is_chosen(given: str, driver: str) -> None:
    assert database_url(given).drivername == driver


@pytest.mark.parametrize("given", ["", "nonsense", "mysql://root:hunter2@h/d"])
def test_a_url_of_another_kind_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(ConfigError, match="database_url") as caught:
        database_url(given)
    assert "hunter2" not in str(caught.value)


async def test_a_database_that_cannot_be_reached_is_a_storage_error(free_port: object) -> None:
    port = free_port()  # type: ignore[operator]
    with pytest.raises(StorageError, match="cannot be reached"):
        await current_revision(f"postgresql://u:hunter2@127.0.0.1:{port}/d")
