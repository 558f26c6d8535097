"""Attempts of several sessions: which of them count, and when too few are left."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from coordinator_kit import MODEL, Kit, ScriptedSession, ScriptedSite, obedient, read_model, running_kit

from fl_core.errors import PeerLost
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState
from fl_core.rounds.plan import ServiceEndpoint
from fl_core.wire.v1 import coordinator_pb2, round_pb2
from services.coordinator.peers import AggregatorPeer
from services.coordinator.placement import ServicePool

SITES = tuple(f"site-{number:02}" for number in range(9))
SPLIT = {"min": 9, "max": 9, "split": 3}


@pytest.fixture
async def kit(federation: Any, free_port: Callable[[], int]) -> AsyncIterator[Kit]:
    async with running_kit(federation, free_port) as running:
        yield running


@pytest.mark.parametrize("aggregation", ["plain", "secagg"])
async def test_the_sums_of_all_sessions_make_one_step_of_the_model(kit: Kit, aggregation: str) -> None:
    kit.connect(*SITES)
    reports, status = await kit.run_job(rounds=2, aggregation=aggregation, cohort=SPLIT)
    assert status.status == "completed"
    for report in reports:
        assert [(session.number, session.invited, session.survivors) for session in report.sessions] == [
            (1, 3, 3),
            (2, 3, 3),
            (3, 3, 3),
        ]
        assert sorted(report.survivors) == list(SITES)
        assert report.total_weight == 90
        assert {session.state for session in report.sessions} == {RoundState.COMMITTED}
    _, tensors = await read_model(kit.operator, coordinator_pb2.GetParametersRequest(job_id=status.job_id))
    for name, before in MODEL.items():
        np.testing.assert_allclose(tensors[name], np.asarray(before) + 1.0, atol=2e-3)


async def test_who_is_with_whom_changes_from_round_to_round(kit: Kit) -> None:
    kit.connect(*SITES)
    reports, _ = await kit.run_job(rounds=4, cohort=SPLIT)
    parts = {frozenset(frozenset(report.invited[at : at + 3]) for at in (0, 3, 6)) for report in reports}
    # 280 partitions are equally likely: four equal ones have a chance of 5e-8.
    assert len(parts) > 1


def first_session_leaves() -> Any:
    """The sites of whichever session is invited first leave it; the others do what they should."""
    spoiled: set[bytes] = set()

    async def behave(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if not spoiled:
            spoiled.add(session.plan.session_id)
        if session.plan.session_id in spoiled and session.plan.attempt == 1:
            await site.leave(session.plan, round_pb2.DROPOUT_REASON_TRAINING_FAILED)
            return
        await obedient(site, session, index)

    return behave


async def test_a_session_that_fails_is_left_out_with_a_reason(kit: Kit) -> None:
    kit.connect(*SITES, behaviour=first_session_leaves())
    (report,), status = await kit.run_job(cohort=SPLIT)
    assert (status.status, report.attempt, len(report.survivors)) == ("completed", 1, 6)
    lost = [session for session in report.sessions if session.state is RoundState.ABANDONED]
    assert [(session.abandon_reason, session.survivors) for session in lost] == [(AbandonReason.TOO_FEW_UPLOADS, 0)]
    assert len(report.dropouts) == 3
    assert {drop.reason for drop in report.dropouts} <= {
        DropoutReason.TRAINING_FAILED,
        DropoutReason.SESSION_ABANDONED,
    }
    assert report.total_weight == 60


async def test_too_few_sessions_abandon_the_attempt_and_the_next_one_commits(kit: Kit) -> None:
    kit.connect(*SITES, behaviour=first_session_leaves())
    (first, second), status = await kit.run_job(cohort={**SPLIT, "min_sessions": 0.7})
    assert status.status == "completed"
    assert (first.state, first.abandon_reason) == (RoundState.ABANDONED, AbandonReason.TOO_FEW_UPLOADS)
    assert {session.state for session in first.sessions} == {RoundState.ABANDONED}
    assert (second.state, second.attempt, len(second.survivors)) == (RoundState.COMMITTED, 2, 9)


async def test_a_sum_that_is_wrong_costs_its_own_session_only(kit: Kit) -> None:
    kit.connect(*SITES)
    tampered: list[bytes] = []

    def tamper(info: Any, packed: bytes) -> Any:
        if not tampered:
            tampered.append(info.session_id)
        return (info, bytes(len(packed))) if info.session_id in tampered else (info, packed)

    kit.aggregator.tamper = tamper
    (report,), status = await kit.run_job(cohort=SPLIT)
    assert status.status == "completed"
    lost = [session for session in report.sessions if session.state is RoundState.ABANDONED]
    assert [session.session_id for session in lost] == tampered
    assert lost[0].abandon_reason is AbandonReason.BAD_AGGREGATE
    assert len(report.survivors) == 6


class ScriptedPeer(AggregatorPeer):
    """A replica that answers or not."""

    def __init__(self, name: str, *, answers: bool = True) -> None:
        super().__init__(name, lambda: pytest.fail("nothing is dialled"), 1.0)
        self.answers = answers
        self.looks = 0

    async def endpoint(self) -> ServiceEndpoint:
        self.looks += 1
        if not self.answers:
            raise PeerLost("nobody listens there")
        return ServiceEndpoint(self.address, self.address, bytes(32))


async def test_sessions_are_spread_over_the_replicas_that_answer_and_the_least_busy_come_first() -> None:
    one, two, three = (ScriptedPeer(name) for name in ("one:1", "two:1", "three:1"))
    two.answers = False
    pool = ServicePool([one, two, three], patience_s=30.0)
    with one.busy():
        placed = [placed.peer for placed in await pool.place(3)]
    assert (placed.count(one), placed.count(two), placed.count(three)) == (1, 0, 2)


async def test_a_replica_that_did_not_answer_rests_until_nobody_else_is_left() -> None:
    one, two = ScriptedPeer("one:1"), ScriptedPeer("two:1", answers=False)
    pool = ServicePool([one, two], patience_s=30.0)
    await pool.place(1)
    await pool.place(1)
    assert (one.looks, two.looks) == (2, 1)
    one.answers, two.answers = False, True
    assert [placed.peer for placed in await pool.place(1)] == [two]


async def test_without_any_replica_a_session_waits_for_the_patience_and_then_fails() -> None:
    pool = ServicePool([ScriptedPeer("one:1", answers=False)], patience_s=0.2)
    with pytest.raises(PeerLost):
        await pool.place(1)
