"""Databases of the services: SQLite by default, PostgreSQL by URL, schema by Alembic migrations."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from fl_core.errors import ConfigError, StorageError
from services.runtime.sessions import run_to_end

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

# A process that is stopped in the middle of a transaction holds its locks, among them that of its lease: the database
# ends the transaction, so that another replica can take over.
_POSTGRES_SETTINGS = {"idle_in_transaction_session_timeout": "5s"}

# Any constant does; it keeps two services from migrating one PostgreSQL database at the same time.
_MIGRATION_LOCK = 0x7AC17


class Fence(Protocol):
    """What stands in front of every write of a database that several replicas share."""

    async def check(self, session: AsyncSession) -> None:
        """Check, inside the transaction that is about to write, that we may.

        Raises:
            StorageError: we may not.
        """


@dataclass(frozen=True, slots=True)
class Database:
    """An engine and the factory of its sessions. Made by `open_database`, ended by `close`.

    Args:
        engine: to the database.
        sessions: makes sessions on it.
        fence: stands in front of every `writing`, where several replicas share the database.
    """

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    fence: Fence | None = None

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a SQLite file, which one service has for itself."""
        return bool(self.engine.dialect.name == "sqlite")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session in one transaction: committed at the end of the block, rolled back when it raises.

        Raises:
            StorageError: the database failed or refused.
        """
        with storage_errors():
            async with self.sessions.begin() as session:
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """As `transaction`, of a service that may have replicas: only the one that holds the lease may write.

        Raises:
            StorageError: the database failed or refused; `LeaseLost` when another replica writes now.
        """
        async with self.transaction() as session:
            if self.fence is not None:
                await self.fence.check(session)
            yield session

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def undivided(
    work: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Coroutine[Any, Any, Result]]:
    """Let a coroutine function that is one transaction run to its end when its caller is cancelled.

    A caller that hangs up cancels its handler. Inside a statement that leaves the driver's connection with an open
    transaction, and with it the lock of SQLite, until the garbage collector comes by: nobody could write any more.
    """

    @wraps(work)
    async def whole(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        task = asyncio.create_task(work(*args, **kwargs))
        # The error of work whose caller has gone concerns nobody.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await run_to_end(lambda: task)
        return task.result()

    return whole


class storage_errors:  # noqa: N801 - used as a statement: `with storage_errors():`
    """Raise `StorageError` instead of the errors of the driver. SQL and its values stay out of the message."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, DBAPIError):
            reason = type(error.orig).__name__ if error.orig is not None else type(error).__name__
            raise StorageError("the database failed", got=reason, fix="its own log has the details") from error
        if isinstance(error, OSError):
            raise StorageError("the database cannot be reached", got=error.strerror or type(error).__name__) from error


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite+aiosqlite:///{path}"


def with_password(url: str, password_file: Path | None) -> str:
    """A database URL with the password of a file in it, so that no config or environment holds it.

    Raises:
        ConfigError: the file cannot be read, or there is no URL that it belongs to.
    """
    if password_file is None:
        return url
    if not url:
        raise ConfigError("database_password_file belongs to a database_url", fix="add database_url, or take it out")
    try:
        password = password_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the password in {password_file} cannot be read", expected="a file of one line") from error
    return database_url(url).set(password=password).render_as_string(hide_password=False)


def database_url(url: str) -> URL:
    """Read a database URL and choose the asynchronous driver.

    Raises:
        ConfigError: it cannot be read or names another database; the message does not hold the password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("database_url cannot be read", expected="sqlite:///... or postgresql://...") from error
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigError(
            "database_url names a database that is not supported",
            expected="sqlite or postgresql",
            got=parsed.drivername,
        )
    return parsed.set(drivername=driver)


def open_database(url: str) -> Database:
    """Open a database. It connects when it is first used; the folder of a SQLite file is made here.

    Args:
        url: `sqlite:///path` or `postgresql://user:password@host/name`.

    Raises:
        ConfigError: the URL is wrong or the folder cannot be made.
    """
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = _sqlite_engine(parsed)
    else:
        engine = create_async_engine(parsed, pool_pre_ping=True, connect_args={"server_settings": _POSTGRES_SETTINGS})
    return Database(engine, async_sessionmaker(engine, expire_on_commit=False))


async def upgrade(url: str, script_location: str | Path) -> str:
    """Bring a database to the newest schema.

    Args:
        url: as `open_database`.
        script_location: folder of the migrations, or `package:folder`; its env.py calls `run_migrations`.

    Returns:
        The revision that it is at now.

    Raises:
        ConfigError: the URL is wrong.
        StorageError: the database failed.
    """
    database = open_database(url)
    try:
        with storage_errors():
            async with database.engine.begin() as connection:
                return await connection.run_sync(_upgrade, str(script_location))
    finally:
        await database.close()


async def current_revision(url: str) -> str | None:
    """The revision of the schema in a database, None when it is empty."""
    database = open_database(url)
    try:
        with storage_errors():
            async with database.engine.connect() as connection:
                return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    finally:
        await database.close()


def run_migrations(metadata: MetaData) -> None:
    """All that an env.py of Alembic has to call.

    Args:
        metadata: of the service's tables.
    """
    connection = context.config.attributes.get("connection")
    if connection is None:
        raise ConfigError("migrations run inside a service or `tacit db upgrade`, not by the alembic command")
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    context.run_migrations()


def _upgrade(connection: Connection, script_location: str) -> str:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    config = Config()
    # Alembic reads the option with ConfigParser, to which a percent sign is special.
    config.set_main_option("script_location", script_location.replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return MigrationContext.configure(connection).get_current_revision() or ""


def _sqlite_engine(url: URL) -> AsyncEngine:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the folder of {url.database} cannot be made", got=error.strerror) from error
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver must not begin transactions by itself: it would do so too late and leave DDL outside.
    connection.isolation_level = None
    cursor: sqlite3.Cursor = connection.cursor()
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE waits for the writer in front; a deferred transaction would fail when it first writes.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
