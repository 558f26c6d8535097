"""The RPCs of the coordinator: what is refused, and what stays as it was."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import psutil
import pytest
from coordinator_kit import MODEL, Kit, ScriptedSession, ScriptedSite, job_spec, read_model, running_kit, submit
from safetensors.numpy import load_file

from fl_core.codec.tensors import manifest_of
from fl_core.errors import (
    CodecError,
    NotEnough,
    PermissionRefused,
    PlanError,
    RemoteProtocolError,
    StreamError,
    TacitError,
    UnknownSession,
)
from fl_core.rounds.job import job_from_mapping
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.transport.peer import send_stream
from fl_core.wire.chunks import model_digest
from fl_core.wire.convert import manifest_to_proto
from fl_core.wire.v1 import coordinator_pb2, round_pb2, tensors_pb2

SITES = ("anna", "bert", "carl")


@pytest.fixture
async def kit(federation: Any, free_port: Callable[[], int]) -> AsyncIterator[Kit]:
    async with running_kit(federation, free_port) as running:
        yield running


async def nothing_is_stored(kit: Kit) -> bool:
    blobs = kit.federation.folder / "state-coord-1" / "blobs"
    return not (await kit.status()).jobs and not [path for path in blobs.rglob("*") if path.is_file()]


async def test_a_submitted_model_comes_back_as_it_was(kit: Kit) -> None:
    response = await submit(kit.operator, job_spec())
    header, tensors = await read_model(kit.operator, coordinator_pb2.GetParametersRequest(job_id=response.job_id))
    assert header.model_version == 1
    assert response.model_digest == header.model_digest == model_digest(MODEL, manifest_of(MODEL))
    for name, array in MODEL.items():
        np.testing.assert_array_equal(tensors[name], array)


async def test_a_stored_model_is_a_safetensors_file_for_everybody(kit: Kit) -> None:
    mixed = {
        "z": np.array([1.5, -2.0], np.float64),
        "flags": np.array([[True, False]]),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "a": np.arange(5, dtype=np.int8),
    }
    await submit(kit.operator, job_spec(), mixed)
    (path,) = (kit.federation.folder / "state-coord-1" / "blobs").rglob("*.safetensors")
    loaded = load_file(path)
    assert set(loaded) == set(mixed)
    for name, array in mixed.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


async def test_a_site_that_has_the_model_gets_the_header_alone(kit: Kit) -> None:
    response = await submit(kit.operator, job_spec())
    site = kit.stub(Role.SITE, "anna")
    request = coordinator_pb2.GetParametersRequest(job_id=response.job_id, have_digest=response.model_digest)
    with rpc_errors():
        parts = [part async for part in site.GetParameters(request, timeout=20)]
    assert [part.WhichOneof("part") for part in parts] == ["header"]
    assert parts[0].header.unchanged


@pytest.mark.parametrize("drop_parts", [1, 2])
async def test_a_truncated_submission_is_refused_and_leaves_nothing(kit: Kit, drop_parts: int) -> None:
    with pytest.raises(StreamError, match="truncated"):
        await submit(kit.operator, job_spec(), drop_parts=drop_parts)
    assert await nothing_is_stored(kit)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{", "JSON"),
        ("[]", "mapping"),
        (json.dumps({"name": "x"}), "rounds"),
        (json.dumps({**job_spec(), "ronds": 3}), "did you mean"),
        (json.dumps(job_spec(rounds=0)), "rounds"),
        (json.dumps(job_spec(cohort={"min": 5, "max": 3})), "cohort"),
        (json.dumps(job_spec(cohort={"min": 3, "max": 100})), "ring"),
        (json.dumps(job_spec(max_weight=1 << 48)), "max_weight"),
        (json.dumps(job_spec(min_survivors=3, max_dropout=0.5)), "min_survivors"),
    ],
)
async def test_a_job_that_cannot_hold_is_refused_with_the_number_to_change(kit: Kit, spec: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        await submit(kit.operator, spec)
    assert await nothing_is_stored(kit)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_a_model_with_a_value_that_is_not_finite_is_refused_and_its_tensor_named(kit: Kit, value: float) -> None:
    spoiled = {**MODEL, "bias": np.array([0, value, 0], np.float32)}
    with pytest.raises(CodecError, match="'bias'"):
        await submit(kit.operator, job_spec(), spoiled)
    assert await nothing_is_stored(kit)


async def test_a_model_that_does_not_fit_its_manifest_is_refused(kit: Kit) -> None:
    longer = manifest_to_proto(manifest_of({**MODEL, "extra": np.zeros(9, np.float32)}))
    with pytest.raises(StreamError):
        await submit(kit.operator, job_spec(), manifest=longer)
    with pytest.raises(CodecError):
        await submit(kit.operator, job_spec(), manifest=tensors_pb2.TensorManifest())
    assert await nothing_is_stored(kit)


async def test_a_model_larger_than_the_settings_allow_is_refused_at_its_header(
    federation: Any, free_port: Callable[[], int]
) -> None:
    async with running_kit(federation, free_port, max_model_bytes=50) as kit:
        with pytest.raises(StreamError, match="too large"):
            await submit(kit.operator, job_spec())


async def nothing() -> AsyncIterator[Any]:
    for message in ():
        yield message


async def test_each_role_may_call_its_own_rpcs_and_no_others(kit: Kit) -> None:
    site, aggregator = kit.stub(Role.SITE, "anna"), kit.aggregator.coordinator
    refused = [
        lambda: submit(site, job_spec()),
        lambda: site.CancelJob(coordinator_pb2.CancelJobRequest(job_id="x"), timeout=20),
        lambda: site.EvaluateModel(coordinator_pb2.EvaluateModelRequest(job_id="x"), timeout=20),
        lambda: send_stream(site.ReportAggregate, nothing(), timeout_s=20),
        lambda: kit.operator.LeaveRound(coordinator_pb2.LeaveRoundRequest(session_id=bytes(16)), timeout=20),
        lambda: kit.operator.ReportEvaluation(coordinator_pb2.ReportEvaluationRequest(), timeout=20),
        lambda: read_model(aggregator, coordinator_pb2.GetParametersRequest(job_id="x")),
        lambda: anext(aiter(kit.operator.WatchRounds(coordinator_pb2.WatchRoundsRequest(), timeout=20))),
        lambda: anext(aiter(site.WatchJob(coordinator_pb2.WatchJobRequest(job_id="x"), timeout=20))),
    ]
    for call in refused:
        with pytest.raises(PermissionRefused), rpc_errors():
            await call()


async def test_a_sum_that_nobody_waits_for_is_refused(kit: Kit) -> None:
    header = coordinator_pb2.AggregateHeader(
        info=round_pb2.AggregateInfo(session_id=bytes(16), survivors=[0], total_weight=1, sha256=bytes(32)),
        stream=tensors_pb2.StreamHeader(total_bytes=8, chunk_bytes=8),
    )

    async def parts() -> AsyncIterator[Any]:
        yield coordinator_pb2.ReportAggregateRequest(header=header)

    with pytest.raises(UnknownSession):
        await send_stream(kit.aggregator.coordinator.ReportAggregate, parts(), timeout_s=20)


async def test_a_site_cannot_leave_an_attempt_that_it_is_not_part_of(kit: Kit) -> None:
    seen: list[TacitError] = []

    async def lets_a_stranger_leave(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        stranger = kit.stub(Role.SITE, "zora")
        request = coordinator_pb2.LeaveRoundRequest(
            session_id=session.plan.session_id, reason=round_pb2.DROPOUT_REASON_POLICY_REFUSED
        )
        try:
            with rpc_errors():
                await stranger.LeaveRound(request, timeout=20)
        except TacitError as error:
            seen.append(error)
        session.upload(index)

    kit.connect("anna", behaviour=lets_a_stranger_leave)
    kit.connect("bert", "carl")
    (report,), _ = await kit.run_job()
    assert len(seen) == 1
    assert report.dropouts == ()


async def test_leaving_an_unknown_session_or_without_a_reason_is_refused(kit: Kit) -> None:
    site = kit.stub(Role.SITE, "anna")
    for reason, error in ((0, RemoteProtocolError), (2, UnknownSession)):
        with pytest.raises(error), rpc_errors():
            await site.LeaveRound(coordinator_pb2.LeaveRoundRequest(session_id=bytes(16), reason=reason), timeout=20)


async def test_an_operator_can_have_a_model_evaluated_by_the_sites_that_are_there(kit: Kit) -> None:
    kit.connect(*SITES)
    await kit.until(lambda status: len(status.connected_sites) == 3)
    kit.sites["carl"].evaluate = False
    job_id = await kit.submit(cohort={"min": 4, "max": 4})
    request = coordinator_pb2.EvaluateModelRequest(job_id=job_id, timeout_seconds=0.5)
    answer = await kit.operator.EvaluateModel(request, timeout=30)
    assert (answer.loss, answer.num_samples, dict(answer.metrics)) == (0.5, 20, {"accuracy": 0.75})
    assert [site.client_id for site in answer.sites] == ["anna", "bert"]
    assert list(answer.missing) == ["carl"]


async def test_an_evaluation_that_no_site_answers_is_an_error(kit: Kit) -> None:
    job_id = await kit.submit()
    with pytest.raises(NotEnough), rpc_errors():
        await kit.operator.EvaluateModel(coordinator_pb2.EvaluateModelRequest(job_id=job_id), timeout=20)


async def test_the_status_tells_who_is_connected_and_how_far_a_job_is(kit: Kit) -> None:
    kit.connect(*SITES[:2])
    job_id = await kit.submit(rounds=7)
    status = await kit.until(lambda status: len(status.connected_sites) == 2 and status.jobs[0].status == "running")
    (job,) = status.jobs
    assert (status.service_id, status.role) == ("coord-1", "coordinator")
    assert (job.job_id, job.name, job.rounds_planned, job.model_version) == (job_id, "Digits", 7, 1)
    status = await kit.until(lambda status: status.jobs[0].HasField("current"), job_id)
    assert status.jobs[0].current.state == round_pb2.ROUND_STATE_RECRUITING


async def test_a_site_is_told_when_a_job_has_ended(kit: Kit) -> None:
    kit.connect(*SITES)
    job_id = await kit.submit()
    await kit.watch(job_id)
    async with asyncio.timeout(30):
        while not any(event.HasField("job_ended") for event in kit.sites["anna"].events):
            await asyncio.sleep(0.02)
    (ended,) = [event.job_ended for event in kit.sites["anna"].events if event.HasField("job_ended")]
    assert (ended.job_id, ended.status) == (job_id, "completed")


async def test_a_second_stream_of_a_site_takes_over_from_the_first(kit: Kit) -> None:
    old, new = kit.stub(Role.SITE, "anna"), kit.stub(Role.SITE, "anna")
    first = old.WatchRounds(coordinator_pb2.WatchRoundsRequest())
    await first.read()
    second = new.WatchRounds(coordinator_pb2.WatchRoundsRequest())
    await second.read()
    with pytest.raises(TacitError, match="took over"), rpc_errors():
        await first.read()
    assert list((await kit.status()).connected_sites) == ["anna"]
    second.cancel()


async def test_a_watcher_who_comes_late_gets_the_past_reports_first(kit: Kit) -> None:
    kit.connect(*SITES)
    job_id = await kit.submit(rounds=2)
    live, _ = await kit.watch(job_id)
    late, status = await kit.watch(job_id)
    assert late == live
    assert status.status == "completed"


@pytest.mark.slow
async def test_a_large_model_goes_down_to_a_site_with_flat_memory(kit: Kit) -> None:
    size = 400_000_000
    model = {f"layer{index}": np.full(size // 40, index, np.float32) for index in range(10)}
    job_id = await kit.submit(model)
    process = psutil.Process()
    before, peak, received = process.memory_info().rss, 0, 0
    call = kit.stub(Role.SITE, "anna").GetParameters(coordinator_pb2.GetParametersRequest(job_id=job_id), timeout=120)
    # Site and service share this process, so the site throws away what it reads.
    async for part in call:
        received += len(part.chunk.data)
        if part.chunk.index % 64 == 0:
            peak = max(peak, process.memory_info().rss - before)
    assert received == size
    assert peak < 0.5 * size


def test_the_spec_of_these_tests_says_what_it_says() -> None:
    assert job_from_mapping(job_spec()).cohort.max == 3
