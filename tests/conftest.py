"""Fixtures of the whole tree: a federation with its CA, and free ports."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from postgres_server import find_binaries, running_postgres
from precompile import precompile

from fl_core.transport.authority import CERTIFICATE_DAYS, CertificateAuthority, IssuedFiles
from fl_core.transport.identity import Role, TrustStore
from fl_core.transport.tls import Credentials, load_trust

S = TypeVar("S")

# How fast an example is depends on the machine and says nothing about the code. In CI the examples are the same each
# time, so that a change is judged by itself; elsewhere every run tries new ones.
settings.register_profile(
    "tacit",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
settings.load_profile("tacit")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile once before the workers of a whole run start; a run of a few tests in one process needs little of it."""
    if getattr(session.config.option, "numprocesses", None):
        precompile()


@dataclass(frozen=True)
class Federation:
    """A CA in a temporary folder that issues certificates quickly."""

    folder: Path
    authority: CertificateAuthority

    def issue(
        self, role: Role, subject_id: str, *, days: float = CERTIFICATE_DAYS, now: datetime | None = None
    ) -> IssuedFiles:
        """Paths of certificate, key, CA and revocation list of a party; the same files when asked again."""
        out = self.folder / f"{role.value}-{subject_id}"
        if (out / "key.pem").exists():
            return IssuedFiles(out / "certificate.pem", out / "key.pem", out / "ca.pem", self.authority.crl_path)
        return self.authority.issue(role, subject_id, out, days=days, now=now)

    def credentials(self, role: Role, subject_id: str) -> Credentials:
        files = self.issue(role, subject_id)
        return Credentials.from_files(files.certificate, files.key, files.ca, files.crl)

    def revoke(self, credentials: Credentials) -> None:
        self.authority.revoke(credentials.identity.serial)

    @property
    def trust(self) -> TrustStore:
        return load_trust(self.authority.ca_path, self.authority.crl_path)

    def settings(self, kind: Callable[..., S], role: Role, service_id: str, **fields: Any) -> S:
        """Settings of a service with a certificate of its own, on a free port, with its state below the folder."""
        files = self.issue(role, service_id)
        defaults: dict[str, Any] = {
            "service_id": service_id,
            "listen": "127.0.0.1:0",
            "certificate": files.certificate,
            "key": files.key,
            "ca": files.ca,
            "crl": files.crl,
            "state_dir": self.folder / f"state-{service_id}",
            "grace_seconds": 0.2,
        }
        return kind(**{**defaults, **fields})


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL that runs for this session, without a database name."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: neither initdb on PATH nor /usr/lib/postgresql/*/bin")
    with running_postgres(binaries) as url:
        yield url


@pytest.fixture
def make_federation(tmp_path: Path) -> Callable[[str], Federation]:
    """Makes federations by name, for tests that need more than one."""

    def make(name: str) -> Federation:
        folder = tmp_path / f"federation-{name}"
        # The CA is older than today, so that it can have issued certificates that are expired now.
        founded = datetime.now(UTC) - timedelta(days=30)
        return Federation(folder, CertificateAuthority.create(folder / "ca", name, now=founded))

    return make


@pytest.fixture
def federation(make_federation: Callable[[str], Federation]) -> Federation:
    """A federation named `test`."""
    return make_federation("test")


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Finds a port of 127.0.0.1 that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
