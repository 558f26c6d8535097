"""Whole rounds of the coordinator over mTLS: what is committed, what is abandoned and why."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from coordinator_kit import MODEL, Kit, ScriptedSession, ScriptedSite, job_spec, obedient, read_model, running_kit

from fl_core.codec.packing import pack
from fl_core.errors import BadAggregate, LocalProtocolError, NotFound, StreamError, TacitError
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState
from fl_core.rounds.report import AggregateInfo
from fl_core.transport.errors import rpc_errors
from fl_core.wire.v1 import coordinator_pb2, keyserver_pb2, round_pb2

SITES = ("anna", "bert", "carl")


@pytest.fixture
async def kit(federation: Any, free_port: Callable[[], int]) -> AsyncIterator[Kit]:
    async with running_kit(federation, free_port) as running:
        yield running


@pytest.mark.parametrize("aggregation", ["plain", "secagg"])
async def test_a_job_trains_its_rounds_and_the_versions_form_one_chain(kit: Kit, aggregation: str) -> None:
    kit.connect(*SITES)
    reports, status = await kit.run_job(rounds=3, aggregation=aggregation)
    assert status.status == "completed"
    assert (status.rounds_committed, status.model_version) == (3, 4)
    assert [(report.round_id, report.model_version, report.state) for report in reports] == [
        (1, 2, RoundState.COMMITTED),
        (2, 3, RoundState.COMMITTED),
        (3, 4, RoundState.COMMITTED),
    ]


async def test_the_mean_update_of_the_sites_moves_the_model(kit: Kit) -> None:
    kit.connect(*SITES)
    _, status = await kit.run_job()
    header, tensors = await read_model(kit.operator, coordinator_pb2.GetParametersRequest(job_id=status.job_id))
    assert header.model_version == 2
    assert header.model_digest == status.model_digest
    for name, before in MODEL.items():
        np.testing.assert_allclose(tensors[name], np.asarray(before) + 0.5, atol=1e-3)


async def test_the_report_has_the_digest_of_the_packed_sum_and_the_weight(kit: Kit) -> None:
    kit.connect(*SITES)
    (report,), _ = await kit.run_job(aggregation="secagg")
    (session,) = kit.sessions._sessions.values()
    total = sum(vector.astype(np.uint32) for vector in session.vectors.values())
    assert report.aggregate_sha256 == sha256(pack(total, 24).tobytes()).digest()
    assert report.total_weight == 30
    assert report.survivors == report.invited == SITES


async def test_the_report_counts_bytes_of_all_streams_of_a_site(kit: Kit) -> None:
    kit.connect(*SITES)
    (report,), _ = await kit.run_job(aggregation="secagg")
    # Upload 1001, key exchange 100, and GetParameters of the coordinator itself; bert is at place 1.
    assert 1101 < report.bytes_up["bert"] < 1300
    assert report.bytes_down["bert"] > 200 + 60
    assert report.bytes_up["anna"] >= 1000 + 100 + 50
    assert set(report.phase_seconds) == {"recruiting", "exchanging", "uploading", "unmasking", "applying"}
    assert report.round_seconds == pytest.approx(sum(report.phase_seconds.values()))


async def test_momentum_goes_on_from_the_stored_state_of_the_optimizer(kit: Kit) -> None:
    kit.connect(*SITES)
    _, status = await kit.run_job(rounds=2, optimizer={"name": "fedavg", "momentum": 0.5})
    _, tensors = await read_model(kit.operator, coordinator_pb2.GetParametersRequest(job_id=status.job_id))
    np.testing.assert_allclose(tensors["bias"], 0.5 + (0.25 + 0.5), atol=1e-3)


async def test_the_round_is_evaluated_and_the_means_stand_in_its_report(kit: Kit) -> None:
    kit.connect(*SITES)
    (report,), _ = await kit.run_job(evaluate_every=1)
    assert report.metrics == {"loss": 0.5, "accuracy": 0.75}
    assert [site.client_id for site in report.evaluations] == list(SITES)


async def test_a_site_that_dies_is_dropped_with_its_reason_and_the_round_goes_on(kit: Kit) -> None:
    async def dies(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        session.share(index)
        raise asyncio.CancelledError

    kit.connect("anna", "bert", "carl")
    kit.connect("dora", behaviour=dies)
    (report,), status = await kit.run_job(aggregation="secagg", cohort={"min": 4, "max": 4})
    assert status.status == "completed"
    assert report.survivors == SITES
    (dropout,) = report.dropouts
    assert (dropout.client_id, dropout.reason) == ("dora", DropoutReason.DISCONNECTED)
    assert kit.keyserver.marked == [3]


async def test_a_site_that_leaves_is_dropped_with_the_reason_that_it_gives(kit: Kit) -> None:
    async def leaves(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        await site.leave(session.plan, round_pb2.DROPOUT_REASON_TRAINING_FAILED)
        await site.leave(session.plan, round_pb2.DROPOUT_REASON_TRAINING_FAILED)

    kit.connect(*SITES)
    kit.connect("dora", behaviour=leaves)
    (report,), _ = await kit.run_job(cohort={"min": 4, "max": 4})
    assert [(drop.client_id, drop.reason, drop.phase) for drop in report.dropouts] == [
        ("dora", DropoutReason.TRAINING_FAILED, RoundState.UPLOADING)
    ]
    assert report.survivors == SITES


async def test_a_refused_upload_is_dropped_and_nobody_waits_for_it(kit: Kit) -> None:
    async def uploads_nonsense(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        session.refuse(index, round_pb2.DROPOUT_REASON_INVALID_UPDATE)

    kit.connect(*SITES)
    kit.connect("dora", behaviour=uploads_nonsense)
    (report,), _ = await kit.run_job(cohort={"min": 4, "max": 4})
    assert [drop.reason for drop in report.dropouts] == [DropoutReason.INVALID_UPDATE]
    assert report.round_seconds < 4


async def test_too_few_uploads_abandon_the_attempt_and_the_next_one_commits(kit: Kit) -> None:
    attempts = 0

    async def fails_first(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if session.plan.attempt == 1:
            await site.leave(session.plan, round_pb2.DROPOUT_REASON_TRAINING_FAILED)
            return
        nonlocal attempts
        attempts = session.plan.attempt
        await obedient(site, session, index)

    kit.connect(*SITES, behaviour=fails_first)
    (first, second), status = await kit.run_job()
    assert (first.state, first.abandon_reason) == (RoundState.ABANDONED, AbandonReason.TOO_FEW_UPLOADS)
    assert (second.round_id, second.attempt, second.state) == (1, 2, RoundState.COMMITTED)
    assert attempts == 2
    assert status.status == "completed"
    ended = [event.attempt_ended for event in kit.sites["anna"].events if event.HasField("attempt_ended")]
    assert [(end.attempt, end.state) for end in ended] == [
        (1, round_pb2.ROUND_STATE_ABANDONED),
        (2, round_pb2.ROUND_STATE_COMMITTED),
    ]
    assert len(kit.sessions.abandoned) == 1


async def test_too_few_sites_fail_the_job_after_its_absences_and_nothing_is_committed(kit: Kit) -> None:
    kit.connect("anna", "bert")
    phases = {"recruiting": {"min_seconds": 0.0, "max_seconds": 0.3}}
    reports, status = await kit.run_job(max_attempts=1, max_absences=2, phases=phases)
    assert [report.abandon_reason for report in reports] == [AbandonReason.TOO_FEW_SITES] * 2
    assert status.status == "failed"
    assert "too_few_sites" in status.detail
    assert (status.rounds_committed, status.model_version) == (0, 1)


async def test_a_failed_unmasking_abandons_with_the_key_servers_reason(kit: Kit) -> None:
    kit.keyserver.unmask_answer = lambda request: keyserver_pb2.UnmaskResponse(
        failure=round_pb2.ABANDON_REASON_TOO_FEW_REVEALS,
        detail="2 of 3",
        dropouts=[keyserver_pb2.IndexedDropout(index=1, reason=round_pb2.DROPOUT_REASON_UNMASK_TIMEOUT)],
    )
    kit.connect(*SITES)
    (report,), status = await kit.run_job(aggregation="secagg", max_absences=1)
    assert report.abandon_reason is AbandonReason.TOO_FEW_REVEALS
    assert [(drop.client_id, drop.reason, drop.phase) for drop in report.dropouts] == [
        ("bert", DropoutReason.UNMASK_TIMEOUT, RoundState.UNMASKING)
    ]
    assert status.model_version == 1


def wrong_digest(info: AggregateInfo, data: bytes) -> tuple[AggregateInfo, bytes]:
    return replace(info, sha256=bytes(32)), data


def too_few_survivors(info: AggregateInfo, data: bytes) -> tuple[AggregateInfo, bytes]:
    return replace(info, survivors=info.survivors[:1]), data


def strange_survivors(info: AggregateInfo, data: bytes) -> tuple[AggregateInfo, bytes]:
    return replace(info, survivors=(0, 1, 7)), data


def wrong_weight(info: AggregateInfo, data: bytes) -> tuple[AggregateInfo, bytes]:
    return replace(info, total_weight=info.total_weight + 1), data


def miscounted_sum(info: AggregateInfo, data: bytes) -> tuple[AggregateInfo, bytes]:
    spoiled = data[:3] + b"\x09" + data[4:]
    return replace(info, sha256=sha256(spoiled).digest()), spoiled


@pytest.mark.parametrize("aggregation", ["plain", "secagg"])
@pytest.mark.parametrize("tamper", [wrong_digest, too_few_survivors, strange_survivors, wrong_weight, miscounted_sum])
async def test_a_sum_that_fails_a_check_is_refused_and_never_becomes_a_model(
    kit: Kit, aggregation: str, tamper: Callable[[AggregateInfo, bytes], tuple[AggregateInfo, bytes]]
) -> None:
    kit.aggregator.tamper = tamper
    kit.connect(*SITES)
    (report,), status = await kit.run_job(aggregation=aggregation, max_attempts=1)
    assert report.abandon_reason is AbandonReason.BAD_AGGREGATE
    assert (status.status, status.model_version) == ("failed", 1)


async def test_a_sum_over_others_than_the_frozen_survivors_is_refused(kit: Kit) -> None:
    kit.aggregator.frozen_as = lambda survivors: survivors[:3]
    kit.connect(*SITES, "dora")
    (report,), _ = await kit.run_job(aggregation="secagg", cohort={"min": 4, "max": 4}, max_attempts=1)
    assert report.abandon_reason is AbandonReason.BAD_AGGREGATE
    (error,) = kit.aggregator.report_errors
    assert isinstance(error, BadAggregate)


async def test_frozen_survivors_who_are_not_eligible_are_refused(kit: Kit) -> None:
    kit.aggregator.frozen_as = lambda survivors: (0, 1, 3)

    async def only_advertises(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        await site.leave(session.plan, round_pb2.DROPOUT_REASON_POLICY_REFUSED)

    kit.connect(*SITES)
    kit.connect("dora", behaviour=only_advertises)
    (report,), _ = await kit.run_job(aggregation="secagg", cohort={"min": 4, "max": 4}, max_attempts=1)
    assert report.abandon_reason is AbandonReason.BAD_AGGREGATE


async def test_a_lost_service_abandons_the_attempt_and_the_job_goes_on(kit: Kit) -> None:
    async def restarts_the_services_once(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if session.plan.attempt == 1:
            kit.sessions.restart()
            return
        await obedient(site, session, index)

    kit.connect("anna", behaviour=restarts_the_services_once)
    kit.connect("bert", "carl")
    (first, second), status = await kit.run_job(aggregation="secagg")
    assert first.abandon_reason is AbandonReason.SERVICE_RESTARTED
    assert second.state is RoundState.COMMITTED
    assert status.status == "completed"


async def test_a_restart_in_the_middle_of_a_round_abandons_the_attempt_and_the_job_goes_on(kit: Kit) -> None:
    async def waits_in_the_first_attempt(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if session.plan.attempt > 1 or session.plan.round_id == 1:
            await obedient(site, session, index)

    kit.connect(*SITES, behaviour=waits_in_the_first_attempt)
    job_id = await kit.submit(rounds=2)
    await kit.until(lambda status: status.jobs[0].current.round_id == 2 and status.jobs[0].current.invited, job_id)
    await kit.stop_coordinator()
    await kit.start_coordinator()
    reports, status = await kit.watch(job_id)
    assert [(report.round_id, report.attempt, report.abandon_reason) for report in reports] == [
        (1, 1, None),
        (2, 1, AbandonReason.SERVICE_RESTARTED),
        (2, 2, None),
    ]
    assert (status.status, status.rounds_committed, status.model_version) == ("completed", 2, 3)


async def test_a_cancelled_job_ends_and_what_it_committed_stays(kit: Kit) -> None:
    async def trains_one_round_only(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        if session.plan.round_id == 1:
            await obedient(site, session, index)

    kit.connect(*SITES, behaviour=trains_one_round_only)
    job_id = await kit.submit(rounds=2)
    await kit.until(lambda status: status.jobs[0].current.round_id == 2 and status.jobs[0].current.invited, job_id)
    await kit.operator.CancelJob(coordinator_pb2.CancelJobRequest(job_id=job_id), timeout=30)
    reports, status = await kit.watch(job_id)
    assert (status.status, status.model_version) == ("cancelled", 2)
    assert [report.abandon_reason for report in reports] == [None, AbandonReason.CANCELLED]
    await kit.operator.CancelJob(coordinator_pb2.CancelJobRequest(job_id=job_id), timeout=30)


async def test_a_job_that_waits_can_be_cancelled_before_it_begins(kit: Kit) -> None:
    first, second = await kit.submit(), await kit.submit()
    await kit.until(lambda status: status.jobs[0].status == "running", first)
    await kit.operator.CancelJob(coordinator_pb2.CancelJobRequest(job_id=second), timeout=20)
    await kit.operator.CancelJob(coordinator_pb2.CancelJobRequest(job_id=first), timeout=20)
    states = {job.job_id: job.status for job in (await kit.status()).jobs}
    assert states == {first: "cancelled", second: "cancelled"}


async def test_an_ended_job_cannot_be_cancelled(kit: Kit) -> None:
    kit.connect(*SITES)
    _, status = await kit.run_job()
    with pytest.raises(LocalProtocolError), rpc_errors():
        await kit.operator.CancelJob(coordinator_pb2.CancelJobRequest(job_id=status.job_id), timeout=20)


async def test_jobs_run_one_after_the_other(kit: Kit) -> None:
    first, second = await kit.submit(), await kit.submit()
    kit.connect(*SITES)
    (one,), _ = await kit.watch(first)
    (two,), _ = await kit.watch(second)
    assert one.state is two.state is RoundState.COMMITTED


async def test_the_cohort_has_at_most_the_sites_that_the_job_allows(kit: Kit) -> None:
    kit.connect(*SITES, "dora", "emil")
    await kit.until(lambda status: len(status.connected_sites) == 5)
    (report,), _ = await kit.run_job()
    assert len(report.invited) == 3
    assert set(report.invited) < {*SITES, "dora", "emil"}


async def test_a_truncated_report_of_a_sum_can_be_sent_again(kit: Kit) -> None:
    from coordinator_kit import report_aggregate

    seen: list[TacitError] = []
    honest = kit.aggregator.report

    async def truncates_first(session: ScriptedSession) -> None:
        total = sum(vector.astype(np.uint32) for vector in session.vectors.values())
        packed = pack(total, 24).tobytes()
        info = AggregateInfo(session.plan.session_id, (0, 1, 2), 30, sha256(packed).digest())
        try:
            await report_aggregate(kit.aggregator.coordinator, session.plan, info, packed, whole=False)
        except TacitError as error:
            seen.append(error)
        await honest(session)
        await honest(session)

    kit.aggregator.report = truncates_first  # type: ignore[method-assign]
    kit.connect(*SITES)
    (report,), _ = await kit.run_job()
    assert isinstance(seen[0], StreamError)
    assert report.state is RoundState.COMMITTED


async def test_a_job_that_nobody_submitted_is_not_found(kit: Kit) -> None:
    calls = (
        lambda: kit.operator.CancelJob(coordinator_pb2.CancelJobRequest(job_id="nobody"), timeout=20),
        lambda: kit.status("nobody"),
        lambda: kit.operator.EvaluateModel(coordinator_pb2.EvaluateModelRequest(job_id="nobody"), timeout=20),
        lambda: read_model(kit.operator, coordinator_pb2.GetParametersRequest(job_id="nobody")),
        lambda: kit.watch("nobody"),
    )
    for call in calls:
        with pytest.raises(NotFound), rpc_errors():
            await call()


def test_the_job_of_these_tests_is_valid() -> None:
    from fl_core.rounds.job import job_from_mapping
    from fl_core.rounds.planner import check_job

    check_job(job_from_mapping(job_spec()))
