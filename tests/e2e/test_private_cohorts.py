"""Private jobs whose cohort is drawn by coins, or split into sessions: what is claimed and what is charged."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_federation import MODEL, PHASE, Steps, WholeFederation, running_federation

from client_sdk.privacy import PrivacyLedger
from fl_core.errors import PeerLost
from fl_core.privacy.events import PrivacyEvent, event_from_json
from fl_core.privacy.ledger import spent
from fl_core.rounds.cohort import choose_cohort
from fl_core.rounds.machine import AbandonReason, RoundState
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import private_codec_of
from fl_core.rounds.privacy_terms import exposure
from fl_core.transport.identity import Role
from fl_core.wire.convert import report_from_proto
from fl_core.wire.v1 import coordinator_pb2
from services.coordinator import attempt
from services.coordinator.peers import KeyServerPeer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

DELTA, RATE = 1e-5, 0.6
PHASES: dict[str, object] = dict.fromkeys(("advertising", "sharing", "uploading", "signing", "revealing"), PHASE)
BUDGET = {"epsilon": 40.0, "delta": DELTA, "clip": 1.0}
SAMPLED = BUDGET | {"mechanism": "central", "sampling_rate": RATE, "epsilon": 4.0}
DRAWN_FROM = tuple("abcdef")
RECRUITING = {"recruiting": {"min_seconds": 3.0, "max_seconds": 20.0}}
"""Six sites are fewer than nobody would wait for, (3 + 6) / 2 / 0.6, and enough to draw from."""

SPLIT_SITES = tuple("abcdefghij")
SPLIT = {"min": 10, "max": 10, "split": 5}


@pytest.fixture
async def whole(federation: Any, tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[WholeFederation]:
    async with running_federation(federation, tmp_path, free_port()) as running:
        yield running


def _join(whole: WholeFederation, names: tuple[str, ...]) -> None:
    for name in names:
        whole.join(name, Steps(0.0))


async def _report(whole: WholeFederation, job_id: str) -> dict[str, Any]:
    request = coordinator_pb2.GetPrivacyReportRequest(job_id=job_id)
    answer = await whole.stub(Role.COORDINATOR, whole.operator).GetPrivacyReport(request)
    report: dict[str, Any] = json.loads(answer.report_json)
    return report


async def _model(whole: WholeFederation, job_id: str, version: int) -> np.ndarray:
    stub = whole.stub(Role.COORDINATOR, whole.operator)
    request = coordinator_pb2.GetParametersRequest(job_id=job_id, model_version=version)
    data = b"".join([part.chunk.data async for part in stub.GetParameters(request) if part.HasField("chunk")])
    return np.frombuffer(data, np.float32)


def _events(lines: list[dict[str, Any]]) -> list[PrivacyEvent]:
    return [event_from_json(line["event"]) for line in lines]


def _noise(plan: RoundPlan) -> tuple[float, float]:
    """The model's units in a step of the ring, and the planned variance in steps squared."""
    codec = private_codec_of(plan)
    assert codec is not None
    return codec.terms.clip / codec.terms.levels, codec.terms.variance(codec.coordinates)


def _toss(monkeypatch: pytest.MonkeyPatch, *draws: str) -> None:
    """Let the coordinator's coins fall so: for each draw the sites that are in it; for ever the last one."""
    following = chain(draws, repeat(draws[-1]))

    def coins(count: int) -> bytes:
        assert count == 8 * len(DRAWN_FROM)
        drawn = next(following)
        return b"".join(bytes(8) if name in drawn else b"\xff" * 8 for name in DRAWN_FROM)

    def choose(connected: Any, bounds: Any, _: Any, rate: float | None) -> Any:
        return choose_cohort(connected, bounds, coins, rate)

    monkeypatch.setattr(attempt, "choose_cohort", choose)


async def test_a_cohort_drawn_by_coins_is_charged_with_amplification_and_the_rest_of_the_sites_with_nothing(
    whole: WholeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second draw is too small and made again; sites that are not drawn hear nothing of the round.
    cohorts = ["abcd", "bf", "acdef"]
    _toss(monkeypatch, *cohorts)
    _join(whole, DRAWN_FROM)
    job_id = await whole.submit(2, cohort={"min": 3, "max": 6}, phases=PHASES | RECRUITING, privacy=SAMPLED)
    reports = await whole.watch(job_id)
    assert ["".join(report.invited) for report in reports] == ["abcd", "acdef"]
    assert [(report.attempt, report.state) for report in reports] == [(1, RoundState.COMMITTED)] * 2

    ledger = await _report(whole, job_id)
    events = _events(ledger["releases"])
    assert [event.sampling_rate for event in events] == [RATE] * 2
    assert {event.exposed for event in events} == {exposure(6, RATE, 3, 6)}
    figures = spent(events, DELTA)
    assert ledger["spent"]["epsilon"] == pytest.approx(figures.epsilon)
    assert 3.9 < figures.epsilon <= 4.0 < 4.3 < ledger["spent"]["epsilon_to_who_knows_the_cohort"]
    counted = {name: len(PrivacyLedger(whole.config(name).state_dir).counted) for name in DRAWN_FROM}
    assert counted == {"a": 2, "b": 1, "c": 2, "d": 2, "e": 1, "f": 1}
    assert {name: len(own["releases"]) for name, own in ledger["sites"].items()} == counted
    assert {name: len(witness.plans) for name, witness in whole.witnesses.items()} == counted

    # The sum is divided by the sites that are expected, 0.6 of 6, and not by the five that were drawn.
    step, variance = _noise(whole.witnesses["a"].plans[1])
    moved = await _model(whole, job_id, 3) - await _model(whole, job_id, 2)
    assert moved.std() == pytest.approx(step / 4 * np.sqrt(variance), rel=0.12)


async def test_without_coins_no_amplification_is_claimed(whole: WholeFederation) -> None:
    _join(whole, DRAWN_FROM)
    # Fewer are taken than are there, but the cohort has a fixed size: that is no Poisson sampling.
    job_id = await whole.submit(1, cohort={"min": 4, "max": 4}, privacy=BUDGET | {"mechanism": "central"})
    (report,) = await whole.watch(job_id)
    assert len(report.invited) == 4
    ledger = await _report(whole, job_id)
    (event,) = _events(ledger["releases"])
    assert (event.sampling_rate, event.exposed) == (1.0, 0.0)
    assert ledger["spent"]["epsilon"] == ledger["spent"]["epsilon_to_who_knows_the_cohort"]
    step, variance = _noise(whole.witnesses[report.invited[0]].plans[0])
    moved = await _model(whole, job_id, 2) - np.concatenate([MODEL["weight"].ravel(), MODEL["bias"]])
    assert moved.std() == pytest.approx(step / 4 * np.sqrt(variance), rel=0.12)


async def test_draws_that_are_always_too_small_end_the_job_and_cost_nothing(
    whole: WholeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _toss(monkeypatch, "ab", "")
    _join(whole, DRAWN_FROM)
    fields: dict[str, Any] = {"cohort": {"min": 3, "max": 6}, "phases": PHASES | RECRUITING, "max_absences": 1}
    job_id = await whole.submit(1, **fields, privacy=SAMPLED)
    request = coordinator_pb2.WatchJobRequest(job_id=job_id)
    events = [event async for event in whole.stub(Role.COORDINATOR, whole.operator).WatchJob(request, timeout=60)]
    reports = [report_from_proto(event.report) for event in events if event.HasField("report")]
    assert [report.abandon_reason for report in reports] == [AbandonReason.TOO_FEW_SITES]
    assert events[-1].status.status == "failed"
    assert "too few sites were drawn" in events[-1].status.detail
    ledger = await _report(whole, job_id)
    assert (ledger["releases"], ledger["spent"]["epsilon"]) == ([], 0.0)
    assert not any(witness.plans for witness in whole.witnesses.values())


def _check_split_ledgers(whole: WholeFederation, ledger: dict[str, Any], attempts: int) -> None:
    """Two sessions were reserved in each attempt, and the job and every site are charged for it once."""
    lines = ledger["releases"]
    assert len({line["session_id"] for line in lines}) == len(lines) == 2 * attempts
    assert len(set(_events(lines))) == 1
    once = spent(_events(lines)[:attempts], DELTA).epsilon
    assert once < spent(_events(lines), DELTA).epsilon
    assert ledger["spent"]["epsilon"] == pytest.approx(once)
    assert ledger["spent"]["release_count"] == attempts
    for name in SPLIT_SITES:
        own = PrivacyLedger(whole.config(name).state_dir).counted
        assert len(own) == len(ledger["sites"][name]["releases"]) == attempts
        assert ledger["sites"][name]["epsilon"] == pytest.approx(once)
        assert {line.session_id for line in own} <= {line["session_id"] for line in lines}


@pytest.mark.parametrize("mechanism", ["central", "distributed"])
async def test_a_split_cohort_is_charged_once_for_each_attempt(whole: WholeFederation, mechanism: str) -> None:
    _join(whole, SPLIT_SITES)
    job_id = await whole.submit(2, cohort=SPLIT, privacy=BUDGET | {"mechanism": mechanism})
    reports = await whole.watch(job_id)
    assert [[session.invited for session in report.sessions] for report in reports] == [[5, 5]] * 2
    assert [len(report.survivors) for report in reports] == [10, 10]
    _check_split_ledgers(whole, await _report(whole, job_id), attempts=2)
    # A site is in one session only, whose sum has all the noise that one release needs: the total has it twice.
    step, variance = _noise(whole.witnesses["a"].plans[-1])
    moved = await _model(whole, job_id, 3) - await _model(whole, job_id, 2)
    assert moved.std() == pytest.approx(step / 10 * np.sqrt(2 * variance), rel=0.12)


@pytest.mark.parametrize("min_sessions", [0.5, 1.0])
async def test_a_session_that_is_lost_in_unmasking_stays_charged(
    whole: WholeFederation, monkeypatch: pytest.MonkeyPatch, min_sessions: float
) -> None:
    unmask, lost, both_reserved = KeyServerPeer.unmask, [], asyncio.Event()

    async def unmask_all_but_the_first(self: KeyServerPeer, *arguments: Any) -> Any:
        if not lost:
            lost.append(True)
            # What a session costs is reserved before it is unmasked; one that never came so far would cost nothing.
            async with asyncio.timeout(60):
                await both_reserved.wait()
            raise PeerLost("the key server is gone")
        both_reserved.set()
        return await unmask(self, *arguments)

    monkeypatch.setattr(KeyServerPeer, "unmask", unmask_all_but_the_first)
    _join(whole, SPLIT_SITES)
    job_id = await whole.submit(
        1, cohort=SPLIT | {"min_sessions": min_sessions}, privacy=BUDGET | {"mechanism": "central", "releases": 2}
    )
    reports = await whole.watch(job_id)
    ledger = await _report(whole, job_id)
    if min_sessions == 0.5:
        # The other session's sum is committed; both were reserved, and together they cost what one costs.
        assert [(report.state, len(report.survivors)) for report in reports] == [(RoundState.COMMITTED, 5)]
        _check_split_ledgers(whole, ledger, attempts=1)
        return
    # The attempt is given up whole, stays charged, and is run again: two attempts, two charges.
    assert [report.state for report in reports] == [RoundState.ABANDONED, RoundState.COMMITTED]
    lines = ledger["releases"]
    assert {(line["round_id"], line["attempt"]) for line in lines} == {(1, 1), (1, 2)}
    assert ledger["spent"]["release_count"] == 2
    assert ledger["spent"]["epsilon"] == pytest.approx(spent(_events(lines)[:1] * 2, DELTA).epsilon)
    for own in ledger["sites"].values():
        assert len(own["releases"]) == 2
