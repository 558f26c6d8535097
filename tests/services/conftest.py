"""Fixtures of the services' tests: databases of both kinds."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import create_database, find_binaries, running_postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL that runs for this session, without a database name."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: neither initdb on PATH nor /usr/lib/postgresql/*/bin")
    with running_postgres(binaries) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    server = request.getfixturevalue("postgres_server")
    return await create_database(server, f"test_{secrets.token_hex(8)}")
