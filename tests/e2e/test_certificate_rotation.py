"""Every party gets a new key and a new certificate while the federation runs, and nobody is restarted."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_federation import running_federation

from fl_core.errors import IdentityError
from fl_core.rounds.machine import RoundState
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.transport.tls import Credentials
from fl_core.wire.v1 import status_pb2

SITES = ("alpha", "beta", "gamma", "delta")
PARTIES = [
    (Role.COORDINATOR, "coord-1"),
    (Role.AGGREGATOR, "agg-1"),
    (Role.KEYSERVER, "key-1"),
    *((Role.SITE, name) for name in SITES),
]


def rotate(federation: Any, role: Role, subject_id: str, fresh: Path) -> tuple[Credentials, Credentials]:
    """Put a new key and certificate in the place of the old ones; gives both."""
    old = federation.credentials(role, subject_id)
    new = federation.authority.issue(role, subject_id, fresh / f"{role.value}-{subject_id}")
    new.key.replace(old.key_path)
    new.certificate.replace(old.certificate_path)
    return old, federation.credentials(role, subject_id)


async def test_certificates_rotate_without_a_restart(
    federation: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    async with running_federation(federation, tmp_path, free_port(), heartbeat_s=0.1) as whole:
        for name in SITES:
            whole.join(name)
        (before,) = await whole.run_job(rounds=1)
        assert before.state is RoundState.COMMITTED
        # A connection from before, which nobody renews: it stays open, and its certificate counts no more.
        stale = whole.stub(Role.COORDINATOR, federation.credentials(Role.SITE, "alpha"))
        await stale.GetStatus(status_pb2.GetStatusRequest(), timeout=20)

        changed = {party: rotate(federation, *party, tmp_path / "fresh") for party in PARTIES}
        # Every heartbeat lets a site look at its files.
        await asyncio.sleep(0.5)
        (after,) = await whole.run_job(rounds=1)

        assert after.state is RoundState.COMMITTED
        assert set(after.survivors) == set(SITES)
        plan = whole.witnesses["alpha"].plans[-1]
        known = {entry.client_id: entry.certificate_sha256 for entry in plan.roster}
        for name in SITES:
            old, new = changed[Role.SITE, name]
            assert known[name] == new.identity.certificate_sha256 != old.identity.certificate_sha256
        assert plan.aggregator.certificate_sha256 == changed[Role.AGGREGATOR, "agg-1"][1].identity.certificate_sha256
        assert plan.keyserver is not None
        assert plan.keyserver.certificate_sha256 == changed[Role.KEYSERVER, "key-1"][1].identity.certificate_sha256
        for old, _ in changed.values():
            federation.revoke(old)
        with pytest.raises(IdentityError, match="revoked"), rpc_errors():
            await stale.GetStatus(status_pb2.GetStatusRequest(), timeout=20)
        (last,) = await whole.run_job(rounds=1)
        assert set(last.survivors) == set(SITES)
