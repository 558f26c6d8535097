"""Rounds that are split into sessions over several aggregators and key servers, with an aggregator that is killed."""

import asyncio
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, running_fleet
from whole_federation import Steps

from client_sdk import Array, TrainingContext, TrainResult
from fl_core.rounds.machine import DropoutReason, RoundState

pytestmark = pytest.mark.e2e

SITES = tuple(f"site-{number:02}" for number in range(24))
PATIENCE_S = 60.0
PHASES = ("recruiting", "advertising", "sharing", "uploading", "signing", "revealing")
PHASE = {"min_seconds": 20.0, "max_seconds": 40.0}


class Held(Steps):
    """Waits in the first round until the gate opens; each site moves by a step of its own."""

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        if context.round_id == 1 and self.gate is not None and not self.gate.wait(PATIENCE_S):
            raise AssertionError("nobody opened the gate")
        for tensor in parameters.values():
            tensor += self.step
        return TrainResult(parameters, 10)


def join_all(fleet: Fleet, gate: threading.Event) -> None:
    for number, client_id in enumerate(SITES):
        fleet.join(client_id, Held(0.001 * (number + 1), gate=gate))


async def until_shared(fleet: Fleet) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not all(witness.shared for witness in fleet.witnesses.values()):
            await asyncio.sleep(0.05)


async def test_an_aggregator_is_killed_and_the_round_commits_the_exact_sum_of_the_other_sessions(
    federation: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    gate = threading.Event()
    async with running_fleet(federation, tmp_path, free_port) as fleet:
        await fleet.start_fleet(aggregators=3, keyservers=2)
        await fleet.serve_coordinator()
        join_all(fleet, gate)
        job_id = await fleet.submit(2, cohort={"min": 24, "max": 24, "split": 8}, phases=dict.fromkeys(PHASES, PHASE))
        await until_shared(fleet)
        fleet.signal("agg-1", signal.SIGKILL)
        gate.set()
        first, second = await fleet.watch(job_id)
    assert [session.invited for session in first.sessions] == [8, 8, 8]
    assert {session.aggregator for session in first.sessions} == {"agg-1", "agg-2", "agg-3"}
    assert {session.keyserver for session in first.sessions} == {"key-1", "key-2"}
    assert (first.state, len(first.survivors)) == (RoundState.COMMITTED, 16)
    lost = [session for session in first.sessions if session.state is RoundState.ABANDONED]
    assert [session.aggregator for session in lost] == ["agg-1"]
    assert [drop.reason for drop in first.dropouts] == [DropoutReason.SESSION_ABANDONED] * 8
    fleet.check_total(first)
    # The next round is placed on what is left, and takes in those whose session was lost.
    assert {session.aggregator for session in second.sessions} == {"agg-2", "agg-3"}
    assert len(second.survivors) == 24
    fleet.check_total(second)
