"""Services that go away and come back, and a coordinator that is told to stop: no job fails for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from coordinator_kit import Kit, ScriptedSession, ScriptedSite, obedient, running_kit
from settling import settle

from fl_core.rounds.machine import AbandonReason, RoundState
from fl_core.transport.identity import Role
from fl_core.wire.v1 import aggregator_pb2_grpc, coordinator_pb2, round_pb2
from services.coordinator import program
from services.coordinator.driver import Driver

SITES = ("anna", "bert", "carl")


@pytest.fixture
async def kit(federation: Any, free_port: Callable[[], int]) -> AsyncIterator[Kit]:
    async with running_kit(federation, free_port) as running:
        yield running


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> list[Driver]:
    """The drivers of the coordinators that are started in this process."""
    made: list[Driver] = []
    make = program.make_driver

    def remember(*arguments: Any) -> Driver:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(program, "make_driver", remember)
    return made


def held(gate: asyncio.Event) -> Any:
    """A site that shares its keys and uploads when the gate opens."""

    async def behaviour(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        await gate.wait()
        await obedient(site, session, index)

    return behaviour


def is_invited(status: Any) -> bool:
    return bool(status.jobs) and bool(status.jobs[0].current.invited)


async def test_a_job_waits_for_a_service_that_is_away_and_spends_no_attempt_on_it(
    kit: Kit, free_port: Callable[[], int]
) -> None:
    port = free_port()
    await kit.stop_coordinator()
    await kit.start_coordinator(aggregator=f"127.0.0.1:{port}", service_patience_s=0.2)
    kit.connect(*SITES)
    job_id = await kit.submit(rounds=1, max_attempts=1)
    await kit.until(lambda status: "waits for the aggregator" in status.jobs[0].detail, job_id)
    await asyncio.sleep(1.0)
    await kit._serve(
        Role.AGGREGATOR,
        "fl_core.wire.v1.AggregatorService",
        aggregator_pb2_grpc,
        kit.aggregator,
        listen=f"127.0.0.1:{port}",
    )
    (report,), status = await kit.watch(job_id)
    assert (report.attempt, report.state) == (1, RoundState.COMMITTED)
    assert (status.status, status.detail) == ("completed", "")


async def test_a_job_that_waits_for_a_service_can_be_cancelled(kit: Kit, free_port: Callable[[], int]) -> None:
    await kit.stop_coordinator()
    await kit.start_coordinator(aggregator=f"127.0.0.1:{free_port()}", service_patience_s=0.2)
    job_id = await kit.submit(rounds=1)
    await kit.until(lambda status: "waits for" in status.jobs[0].detail, job_id)
    await kit.operator.CancelJob(coordinator_pb2.CancelJobRequest(job_id=job_id), timeout=20)
    reports, status = await kit.watch(job_id)
    assert (reports, status.status) == ([], "cancelled")


async def test_interruptions_do_not_count_as_failures(kit: Kit) -> None:
    async def restarts_the_services(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if session.plan.attempt <= 3:
            kit.sessions.restart()
            return
        await obedient(site, session, index)

    kit.connect("anna", behaviour=restarts_the_services)
    kit.connect("bert", "carl")
    reports, status = await kit.run_job(rounds=1, max_attempts=1, aggregation="secagg")
    assert [report.abandon_reason for report in reports] == [AbandonReason.SERVICE_RESTARTED] * 3 + [None]
    assert status.status == "completed"


async def test_sites_that_are_away_do_not_end_a_job(kit: Kit) -> None:
    async def stays_away_thrice(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if session.plan.attempt <= 3:
            await site.leave(session.plan, round_pb2.DROPOUT_REASON_DISCONNECTED)
            return
        await obedient(site, session, index)

    kit.connect("anna", "bert", behaviour=stays_away_thrice)
    kit.connect("carl")
    reports, status = await kit.run_job(rounds=1, max_attempts=1, aggregation="secagg")
    assert len(reports) == 4
    # In which phase the others stop depends on when they are missed.
    assert all(report.abandon_reason is not None and report.abandon_reason.is_shortage for report in reports[:3])
    assert (status.status, status.detail) == ("completed", "")


async def test_sites_that_stay_away_end_a_job_at_the_bound_of_its_own_also_after_a_restart(kit: Kit) -> None:
    phases = {"recruiting": {"min_seconds": 0.0, "max_seconds": 0.2}}
    job_id = await kit.submit(rounds=1, max_attempts=1, max_absences=4, phases=phases)
    await kit.until(lambda status: "waits for sites: round 1" in status.jobs[0].detail, job_id)
    await kit.until(lambda status: status.jobs[0].current.attempt >= 3, job_id)
    await kit.stop_coordinator()
    await kit.start_coordinator()
    reports, status = await kit.watch(job_id)
    away = [report for report in reports if report.abandon_reason is AbandonReason.TOO_FEW_SITES]
    assert (len(away), status.status) == (4, "failed")
    assert "too_few_sites" in status.detail


async def test_sites_that_cannot_train_end_a_job_after_its_attempts(kit: Kit) -> None:
    async def cannot_train(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        await site.leave(session.plan, round_pb2.DROPOUT_REASON_TRAINING_FAILED)

    kit.connect("anna", "bert", behaviour=cannot_train)
    kit.connect("carl")
    reports, status = await kit.run_job(rounds=1, max_attempts=2, aggregation="secagg")
    assert len(reports) == 2
    assert all(report.abandon_reason is not None and report.abandon_reason.is_shortage for report in reports)
    assert status.status == "failed"


async def test_a_drain_lets_the_running_round_end_and_begins_no_other(kit: Kit, drivers: list[Driver]) -> None:
    await kit.stop_coordinator()
    await kit.start_coordinator()
    gate = asyncio.Event()
    kit.connect(*SITES, behaviour=held(gate))
    job_id = await kit.submit(rounds=2)
    await kit.until(is_invited, job_id)
    draining = asyncio.create_task(drivers[-1].drain(20.0))
    await settle()
    assert not draining.done()
    gate.set()
    await asyncio.wait_for(draining, 10)
    status = (await kit.status(job_id)).jobs[0]
    assert (status.status, status.rounds_committed, status.current.round_id) == ("running", 1, 0)
    await kit.stop_coordinator()
    await kit.start_coordinator()
    reports, status = await kit.watch(job_id)
    assert [(report.round_id, report.attempt) for report in reports] == [(1, 1), (2, 1)]
    assert status.status == "completed"


async def test_a_round_that_outlives_the_drain_is_abandoned_and_run_again(kit: Kit, drivers: list[Driver]) -> None:
    await kit.stop_coordinator()
    await kit.start_coordinator()
    gate = asyncio.Event()
    kit.connect(*SITES, behaviour=held(gate))
    job_id = await kit.submit(rounds=1, max_attempts=1)
    await kit.until(is_invited, job_id)
    await asyncio.wait_for(drivers[-1].drain(0.2), 10)
    # The services were told at once.
    assert kit.sessions.abandoned
    await kit.stop_coordinator()
    gate.set()
    await kit.start_coordinator()
    first, second = (await kit.watch(job_id))[0]
    assert (first.abandon_reason, first.detail) == (AbandonReason.SERVICE_RESTARTED, "the coordinator stops")
    assert (second.attempt, second.state) == (2, RoundState.COMMITTED)


async def test_a_drain_does_not_wait_for_sites_that_never_come(kit: Kit, drivers: list[Driver]) -> None:
    await kit.stop_coordinator()
    await kit.start_coordinator()
    job_id = await kit.submit(rounds=1)
    await kit.until(lambda status: status.jobs[0].current.round_id == 1, job_id)
    await asyncio.wait_for(drivers[-1].drain(60.0), 10)
    assert (await kit.status(job_id)).jobs[0].status == "running"


async def test_sites_that_an_aggregator_turned_away_after_its_restart_are_an_interruption(kit: Kit) -> None:
    async def leaves_at_first(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if session.plan.attempt > 1:
            await obedient(site, session, index)
            return
        session.share(index)
        await site.leave(session.plan, round_pb2.DROPOUT_REASON_DISCONNECTED)

    kit.aggregator.forgot = True
    kit.connect(*SITES, behaviour=leaves_at_first)
    (first, second), status = await kit.run_job(rounds=1, max_attempts=1, aggregation="secagg")
    assert first.abandon_reason is AbandonReason.SERVICE_RESTARTED
    assert second.state is RoundState.COMMITTED
    assert status.status == "completed"
