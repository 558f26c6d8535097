"""kill -9 of the coordinator at every step of private rounds: its ledger never shows less than what was released.

The key server writes down each session before it asks for a share of it, so its own records say, independently of the
coordinator, of which sums there may be a release. The default suite kills where it hurts most; `TACIT_KILL_MATRIX=1`
kills at every step.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from battered_federation import BatteredFederation, battered_federation
from test_kill_matrix import PHASES, SITES, kill_in_round

from client_sdk.privacy import PrivacyLedger
from fl_core.privacy.events import event_from_json
from fl_core.privacy.ledger import spent

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLED_AT = PHASES if os.environ.get("TACIT_KILL_MATRIX") else ("unmasked", "applying")
PRIVACY = {"mechanism": "central", "epsilon": 50.0, "delta": 1e-5, "clip": 1.0, "releases": 40}


def _rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def check_ledger(federation: BatteredFederation) -> int:
    """Check that all that may have been released is in the ledger, and that no site knows of more; how much it is."""
    workdir = federation.cluster.workdir
    # The key server's records are read first: what is released between the two looks may be missing in neither.
    unmasked = _rows(
        workdir / "keyserver" / "state" / "keyserver.db", "SELECT session_id FROM keyserver_unmasked_sessions"
    )
    counted = _rows(
        workdir / "coordinator" / "state" / "coordinator.db",
        "SELECT session_id, event_json FROM privacy_releases WHERE client_id = ''",
    )
    assert {session for (session,) in unmasked} <= {session for session, _ in counted}
    events = [event_from_json(str(event)) for _, event in counted]
    assert 0 <= spent(events, PRIVACY["delta"]).epsilon <= PRIVACY["epsilon"]
    for state in workdir.glob("sites/*/state"):
        own = {bytes.fromhex(line.session_id) for line in PrivacyLedger(state).counted}
        revealed = {bytes(session) for (session,) in unmasked}  # type: ignore[arg-type]
        assert revealed & own <= {session for session, _ in counted}
    return len(counted)


async def test_the_ledger_never_shows_less_than_was_released(tmp_path: Path) -> None:
    async with battered_federation(tmp_path, SITES) as federation:
        for round_id, phase in enumerate(KILLED_AT, start=1):
            if phase != "applying":
                federation.shut("unmasked" if phase == "reporting" else phase, round_id)
        cohort = {"min": SITES, "max": SITES}
        job_id = await federation.submit(rounds=len(KILLED_AT) + 1, cohort=cohort, privacy=PRIVACY)
        for round_id, phase in enumerate(KILLED_AT, start=1):
            await kill_in_round(federation, "coordinator", phase, round_id)
            check_ledger(federation)
            await federation.until_committed(job_id, round_id)
        reports = await federation.until_committed(job_id, len(KILLED_AT) + 1)
        releases = check_ledger(federation)
        # Every committed round was counted, and so was every attempt that broke off in unmasking or after it.
        assert releases >= len(KILLED_AT) + 1
        if "unmasked" in KILLED_AT:
            assert releases > len(KILLED_AT) + 1
        assert len({report.round_id for report in reports}) == len(KILLED_AT) + 1
        federation.check_chain()
        federation.check_unmasked_once()
    federation.check_files()
