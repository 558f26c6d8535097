"""The coordinator of a sparse graph: it commits to a beacon in the plan and reveals it once, for one directory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from coordinator_kit import Behaviour, Kit, ScriptedSession, ScriptedSite, obedient, running_kit

from fl_core.errors import BadSignature
from fl_core.rounds.machine import AbandonReason, RoundState
from fl_core.secagg import profiles
from fl_core.secagg.beacon import graph_seed
from fl_core.wire.v1 import keyserver_pb2

SITES = tuple(f"site-{number:02}" for number in range(12))
DIGEST, OTHER = b"d" * 32, b"o" * 32
JOB: dict[str, Any] = {
    "aggregation": "secagg",
    "cohort": {"min": 12, "max": 12},
    "profile": "honest_but_curious",
    "max_corrupt": 0.0,
    "max_dropout": 0.1,
}


@pytest.fixture(autouse=True)
def sparse_from_twelve_sites_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The graph of a cohort is chosen once; what was chosen before and meanwhile is forgotten."""
    profiles.choose_graph.cache_clear()
    monkeypatch.setattr(profiles, "SMALLEST_SPARSE_COHORT", 12)
    yield
    profiles.choose_graph.cache_clear()


@pytest.fixture
async def kit(federation: Any, free_port: Callable[[], int]) -> AsyncIterator[Kit]:
    async with running_kit(federation, free_port) as running:
        yield running


def after_freezing(kit: Kit, *digests: bytes) -> Behaviour:
    """The first site makes the key server freeze these directories, and shares once it was answered as often."""

    def is_answered(session: ScriptedSession) -> bool:
        ended = session.plan.session_id in kit.sessions.abandoned
        return ended or len(kit.keyserver.beacons) >= len(digests)

    async def behave(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if index == 0:
            for digest in digests:
                frozen = keyserver_pb2.KeysFrozen(directory_digest=digest)
                session.exchange.append(keyserver_pb2.WatchExchangeResponse(frozen=frozen))
            while not is_answered(session):
                await asyncio.sleep(0.01)
        await obedient(site, session, index)

    return behave


async def test_the_beacon_of_the_plan_is_revealed_for_the_frozen_directory(kit: Kit) -> None:
    kit.connect(*SITES, behaviour=after_freezing(kit, DIGEST, DIGEST))
    (report,), _ = await kit.run_job(**JOB)
    assert report.state is RoundState.COMMITTED
    first, again = kit.keyserver.beacons
    assert first == again
    (session,) = kit.sessions._sessions.values()
    assert session.plan.graph is not None
    context = session.plan.session_context()
    assert len(graph_seed(context, DIGEST, first)) == 32
    with pytest.raises(BadSignature):
        graph_seed(context, OTHER, first)


async def test_a_second_directory_of_one_session_ends_the_attempt(kit: Kit) -> None:
    kit.connect(*SITES, behaviour=after_freezing(kit, DIGEST, OTHER))
    (report,), status = await kit.run_job(**JOB, max_attempts=1)
    assert report.abandon_reason is AbandonReason.SERVICE_LOST
    assert "two directories" in report.detail
    assert status.status == "failed"
    assert len(kit.keyserver.beacons) == 1


async def test_every_attempt_has_a_beacon_of_its_own(kit: Kit) -> None:
    kit.connect(*SITES)
    await kit.run_job(**JOB, rounds=2)
    commitments = {session.plan.graph.commitment for session in kit.sessions._sessions.values() if session.plan.graph}
    assert len(commitments) == 2
