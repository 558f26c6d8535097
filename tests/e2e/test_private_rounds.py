"""Private jobs over the three real services: who ever holds which sum, what the ledgers say, and what is refused."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_federation import HONEST, MODEL, RING_BITS, Steps, WholeFederation, running_federation

from client_sdk import Array, TrainingContext, TrainResult
from client_sdk.policy import SitePolicy, check_budget
from client_sdk.privacy import PrivacyLedger
from fl_core.errors import BudgetExhausted, PeerLost, PlanError, PolicyRefused
from fl_core.privacy.events import Noise, PrivacyEvent, event_from_json
from fl_core.privacy.receipts import verify_receipt
from fl_core.rounds.machine import RoundState
from fl_core.rounds.plan import JobId
from fl_core.rounds.planner import private_codec_of
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire.v1 import coordinator_pb2
from services.aggregator.sums import ReleasedSum
from services.coordinator.peers import KeyServerPeer
from services.coordinator.totals import LevelReader

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

BUDGET = {"epsilon": 20.0, "delta": 1e-5, "clip": 1.0}


@pytest.fixture
async def whole(federation: Any, tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[WholeFederation]:
    async with running_federation(federation, tmp_path, free_port()) as running:
        yield running


def _join(whole: WholeFederation) -> None:
    for number, name in enumerate(HONEST):
        whole.join(name, Steps(0.001 * (number + 1)))


async def _report(whole: WholeFederation, job_id: str) -> dict[str, Any]:
    with rpc_errors():
        answer = await whole.stub(Role.COORDINATOR, whole.operator).GetPrivacyReport(
            coordinator_pb2.GetPrivacyReportRequest(job_id=job_id)
        )
    report: dict[str, Any] = json.loads(answer.report_json)
    return report


@pytest.mark.parametrize(
    "privacy",
    [
        {"mechanism": "central"},
        {"mechanism": "central", "noise": "both", "quantile": 0.5},
        {"mechanism": "distributed", "colluders": 1},
    ],
    ids=["central", "both servers, clip follows", "distributed"],
)
async def test_a_private_job_commits_and_every_ledger_is_countersigned(
    whole: WholeFederation, privacy: dict[str, object]
) -> None:
    _join(whole)
    job_id = await whole.submit(2, privacy=BUDGET | privacy)
    reports = await whole.watch(job_id)
    assert [report.state for report in reports] == [RoundState.COMMITTED] * 2
    assert all(report.total_weight == len(HONEST) for report in reports)
    ledger = await _report(whole, job_id)
    assert ledger["unit_of_privacy"] == "site"
    assert 0 < ledger["spent"]["epsilon"] <= 20.0
    assert [line["round_id"] for line in ledger["releases"]] == [1, 2]
    assert sorted(ledger["sites"]) == sorted(HONEST)
    plans = {plan.session_id.hex(): plan for plan in whole.witnesses["alpha"].plans}
    for site, own in ledger["sites"].items():
        assert own["epsilon"] == pytest.approx(ledger["spent"]["epsilon"])
        for line in own["releases"]:
            certificate = whole.federation.credentials(Role.SITE, site).signer().certificate_der
            binding = plans[line["session_id"]].binding
            verify_receipt(binding, event_from_json(line["event"]), certificate, bytes.fromhex(line["signature"]))
        counted = PrivacyLedger(whole.config(site).state_dir).counted
        assert [line.session_id for line in counted] == [line["session_id"] for line in own["releases"]]


class Noisy(Steps):
    """Says that it trained with noise, with a chance of its own for each sample."""

    def __init__(self, rate: float) -> None:
        super().__init__(0.001)
        self.rate = rate

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        assert context.privacy is not None
        event = PrivacyEvent(Noise.GAUSSIAN, 1.0, context.privacy.noise_multiplier**2, self.rate, 5)
        return replace(super().train(parameters, context), privacy=event)


async def test_with_local_noise_each_site_has_its_own_ledger_and_the_job_is_the_worst_of_them(
    whole: WholeFederation,
) -> None:
    rates = dict(zip(HONEST, (0.1, 0.05, 0.2, 0.1), strict=True))
    for name, rate in rates.items():
        whole.join(name, Noisy(rate))
    local = BUDGET | {"mechanism": "local", "sampling_rate": 0.2, "steps": 5}
    job_id = await whole.submit(1, privacy=local)
    reports = await whole.watch(job_id)
    whole.check_exact(reports[0])
    assert reports[0].total_weight == len(HONEST)
    ledger = await _report(whole, job_id)
    epsilons = {name: own["epsilon"] for name, own in ledger["sites"].items()}
    assert epsilons["beta"] < epsilons["alpha"] == epsilons["delta"] < epsilons["gamma"] <= 20.0
    assert ledger["spent"]["epsilon"] == epsilons["gamma"]
    assert ledger["unit_of_privacy"] == "sample"


async def test_a_trainer_that_adds_no_noise_is_never_uploaded(whole: WholeFederation) -> None:
    for name in HONEST[:3]:
        whole.join(name, Noisy(0.1))
    whole.join(HONEST[3], Steps())
    reports = await whole.run_job(1, privacy=BUDGET | {"mechanism": "local", "sampling_rate": 0.1, "steps": 5})
    assert HONEST[3] not in reports[-1].survivors
    assert any("too little noise" in str(error) for _, error in whole.witnesses[HONEST[3]].errors)


async def test_neither_aggregator_nor_coordinator_ever_holds_the_sum_without_noise(
    whole: WholeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[np.ndarray] = []
    release, take = ReleasedSum.__post_init__, LevelReader.take

    def released(self: ReleasedSum) -> None:
        # Every vector in this process at the moment at which the sum is in the clear, except what belongs to sites.
        held.extend(part.copy() for part in gc.get_objects() if _is_like(part, self.vector))
        held.append(self.vector.copy())
        release(self)

    def taken(self: LevelReader, count: int) -> Any:
        levels = take(self, count)
        held.append(levels.copy())
        return levels

    monkeypatch.setattr(ReleasedSum, "__post_init__", released)
    monkeypatch.setattr(LevelReader, "take", taken)
    _join(whole)
    reports = await whole.run_job(1, privacy=BUDGET | {"mechanism": "central"})
    plan = whole.witnesses["alpha"].plans[0]
    plain = sum(whole._plain_update(reports[0], name).astype(np.uint64) for name in HONEST) % (1 << RING_BITS)
    codec = private_codec_of(plan)
    assert codec is not None
    assert len(held) >= 3
    for vector in held:
        body = vector[2:] if len(vector) == plan.length else vector
        for start in range(0, plan.length - len(body) + 1):
            assert len(body) < 8 or not np.array_equal(body, plain[start : start + len(body)])
    noise = _signed(held[-1] if len(held[-1]) == plan.length else _vector(held, plan.length), plain)
    assert noise.std() == pytest.approx(np.sqrt(codec.terms.variance(codec.coordinates)), rel=0.15)


def _is_like(part: object, vector: np.ndarray) -> bool:
    return type(part) is np.ndarray and part.shape == vector.shape and part.dtype == vector.dtype


def _vector(held: list[np.ndarray], length: int) -> np.ndarray:
    return next(vector for vector in held if len(vector) == length)


def _signed(noised: np.ndarray, plain: np.ndarray) -> np.ndarray:
    half = 1 << (RING_BITS - 1)
    difference = noised[2:].astype(np.int64) - plain[2:].astype(np.int64)
    return (difference + half) % (2 * half) - half


async def test_in_a_plain_job_the_coordinator_adds_the_noise_and_the_report_says_whom_that_trusts(
    whole: WholeFederation,
) -> None:
    strict = whole.config
    whole.config = lambda name: replace(strict(name), policy=SitePolicy(require_secure_aggregation=False))  # type: ignore[method-assign]
    _join(whole)
    job_id = await whole.submit(1, aggregation="plain", privacy=BUDGET | {"mechanism": "central"})
    reports = await whole.watch(job_id)
    whole.check_exact(reports[0])
    assert "coordinator" in (await _report(whole, job_id))["trusted"]
    plan = whole.witnesses["alpha"].plans[0]
    codec = private_codec_of(plan)
    assert codec is not None
    moved = await _model_of(whole, job_id, 2) - np.concatenate([MODEL["weight"].ravel(), MODEL["bias"]])
    # Four clipped steps, and noise: the spread of the coordinates is that of the noise over four sites.
    step = codec.terms.clip / codec.terms.levels / len(HONEST)
    planned = step * np.sqrt(codec.terms.variance(codec.coordinates))
    assert moved.std() == pytest.approx(planned, rel=0.15)


async def test_a_job_whose_budget_is_too_small_is_refused_with_the_number_of_rounds(whole: WholeFederation) -> None:
    _join(whole)
    with pytest.raises(PlanError, match=r"at most \d+ rounds"):
        await whole.submit(50, privacy=BUDGET | {"mechanism": "central", "epsilon": 1.0, "noise_multiplier": 5.0})


async def test_a_lost_unmasking_stays_counted_and_the_job_stops_before_it_overshoots(
    whole: WholeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmask, lost = KeyServerPeer.unmask, []

    async def unmask_once_in_vain(self: KeyServerPeer, *arguments: Any) -> Any:
        if not lost:
            lost.append(True)
            raise PeerLost("the key server is gone")
        return await unmask(self, *arguments)

    monkeypatch.setattr(KeyServerPeer, "unmask", unmask_once_in_vain)
    _join(whole)
    # The budget is for two releases. One is lost in unmasking, so that one round is all that the job can make.
    job_id = await whole.submit(2, privacy=BUDGET | {"mechanism": "central"})
    async with asyncio.timeout(60):
        request = coordinator_pb2.WatchJobRequest(job_id=job_id)
        events = [event async for event in whole.stub(Role.COORDINATOR, whole.operator).WatchJob(request)]
    final = events[-1].status
    assert final.status == "failed"
    assert "privacy budget of job" in final.detail
    assert "2 releases" in final.detail
    states = [(event.report.round_id, event.report.attempt) for event in events if event.HasField("report")]
    assert states == [(1, 1), (1, 2), (2, 1)]
    ledger = await _report(whole, job_id)
    assert [(line["round_id"], line["attempt"]) for line in ledger["releases"]] == [(1, 1), (1, 2)]
    assert ledger["spent"]["epsilon"] <= 20.0


async def test_what_sites_measure_is_refused_unless_the_job_says_it_is_outside(whole: WholeFederation) -> None:
    _join(whole)
    with pytest.raises(PlanError, match="no noise covers what sites measure"):
        await whole.submit(1, evaluate_every=1, privacy=BUDGET | {"mechanism": "central"})


async def test_a_site_declines_a_budget_above_its_own(whole: WholeFederation) -> None:
    _join(whole)
    await whole.run_job(1, privacy=BUDGET | {"mechanism": "central"})
    plan = whole.witnesses["alpha"].plans[0]
    check_budget(plan, SitePolicy(max_epsilon=20.0))
    with pytest.raises(PolicyRefused, match="epsilon up to 2"):
        check_budget(plan, SitePolicy(max_epsilon=2.0))
    with pytest.raises(PolicyRefused, match="takes no part"):
        check_budget(plan, SitePolicy(mechanisms=("distributed",)))


async def test_a_sites_own_ledger_stops_it_over_all_jobs_and_survives_a_restart(
    whole: WholeFederation, tmp_path: Path
) -> None:
    _join(whole)
    await whole.run_job(1, privacy=BUDGET | {"mechanism": "central"})
    plan = whole.witnesses["alpha"].plans[0]
    codec = private_codec_of(plan)
    assert codec is not None
    event = codec.terms.event(codec.coordinates)
    folder = tmp_path / "own"
    folder.mkdir()
    allowed = SitePolicy(max_total_epsilon=25.0)
    PrivacyLedger(folder).count(plan, event, allowed)
    again = PrivacyLedger(folder)
    again.count(plan, event, allowed)
    assert len(again.counted) == 1
    another = replace(plan, job_id=JobId("another"))
    with pytest.raises(BudgetExhausted, match="over all jobs"):
        again.count(another, event, allowed)
    assert len(PrivacyLedger(folder).counted) == 1


async def _model_of(whole: WholeFederation, job_id: str, version: int) -> np.ndarray:
    stub = whole.stub(Role.COORDINATOR, whole.operator)
    request = coordinator_pb2.GetParametersRequest(job_id=job_id, model_version=version)
    data = b"".join([part.chunk.data async for part in stub.GetParameters(request) if part.HasField("chunk")])
    return np.frombuffer(data, np.float32)


async def test_two_sessions_of_one_attempt_are_noised_each_and_counted_once(whole: WholeFederation) -> None:
    for number in range(6):
        whole.join(f"site-{number}", Steps(0.001))
    cohort = {"min": 6, "max": 6, "split": 3}
    job_id = await whole.submit(1, cohort=cohort, privacy=BUDGET | {"mechanism": "distributed"})
    reports = await whole.watch(job_id)
    assert len(reports[-1].survivors) == 6
    ledger = await _report(whole, job_id)
    assert len(ledger["releases"]) == 2
    assert ledger["spent"]["epsilon"] <= 20.0
    assert len({line["session_id"] for line in ledger["releases"]}) == 2
