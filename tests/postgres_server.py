"""A real PostgreSQL for one test session: started from the machine's own binaries, gone afterwards."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=127.0.0.1")


def find_binaries() -> Path | None:
    """The newest folder with `initdb` and `postgres`: on PATH, or where Debian puts them."""
    on_path = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    for folder in [*([Path(on_path).resolve().parent] if on_path else []), *installed]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


def unprivileged_user() -> str | None:
    """Whom the server runs as: PostgreSQL refuses root. None when we are not root ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@contextmanager
def running_postgres(binaries: Path) -> Iterator[str]:
    """Run a server in a temporary folder; gives an SQLAlchemy URL without a database name: `{url}/{database}`."""
    user = unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="tacit-postgres-"))
    port = _free_port()
    try:
        if user is not None:
            shutil.chown(folder, user)
        initialise = [binaries / "initdb", "-D", folder / "data", "-U", "tacit", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initialise, check=True, capture_output=True, user=user, cwd=folder, timeout=120)
        options = [part for setting in (*SETTINGS, f"port={port}") for part in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", folder / "data", "-k", folder, *options],
                stdout=log,
                stderr=log,
                user=user,
                cwd=folder,
            )
        try:
            _wait_until_ready(server, port, folder / "log")
            yield f"postgresql+asyncpg://tacit@127.0.0.1:{port}"
        finally:
            # A fast shutdown: it does not wait for clients that a failed test left connected.
            server.send_signal(signal.SIGINT)
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while "ready to accept connections" not in log.read_text(errors="replace"):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL on port {port} did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


async def create_database(server: str, name: str) -> str:
    """Make an empty database and give its URL."""
    engine = create_async_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(f'CREATE DATABASE "{name}"'))
    await engine.dispose()
    return f"{server}/{name}"
