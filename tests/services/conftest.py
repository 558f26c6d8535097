"""Fixtures of the services' tests: databases of both kinds."""

import secrets
from pathlib import Path

import pytest
from postgres_server import create_database


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    server = request.getfixturevalue("postgres_server")
    return await create_database(server, f"test_{secrets.token_hex(8)}")
