"""Transcripts of whole jobs, as the coordinator stores and the command line checks them; and who is quarantined."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from coordinator_kit import Kit, ScriptedSession, ScriptedSite, obedient, running_kit
from typer.testing import CliRunner

from cli.main import app
from fl_core.errors import NotFound, PermissionRefused
from fl_core.rounds.machine import AbandonReason, DropoutReason
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire.v1 import coordinator_pb2, keyserver_pb2, round_pb2
from services.runtime.metrics import REGISTRY


@pytest.fixture
async def kit(federation: Any, free_port: Callable[[], int]) -> AsyncIterator[Kit]:
    async with running_kit(federation, free_port) as running:
        yield running


SITES = ("anna", "bert", "carl")


async def fetch(stub: Any, job_id: str, round_id: int = 1, attempt: int = 0) -> bytes:
    request = coordinator_pb2.GetTranscriptRequest(job_id=job_id, round_id=round_id, attempt=attempt)
    with rpc_errors():
        return bytes((await stub.GetTranscript(request, timeout=20)).transcript)


def verify(kit: Kit, *files: Path) -> Any:
    ca = kit.federation.issue(Role.OPERATOR, "olga").ca
    return CliRunner().invoke(app, ["transcript", "verify", *map(str, files), "--ca", str(ca), "--json"])


@pytest.mark.parametrize("aggregation", ["secagg", "plain"])
async def test_every_round_leaves_a_transcript_that_holds_and_follows_the_one_before(
    kit: Kit, tmp_path: Path, aggregation: str
) -> None:
    kit.connect(*SITES)
    reports, status = await kit.run_job(rounds=2, aggregation=aggregation)
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for number, file in enumerate(files, start=1):
        file.write_bytes(await fetch(kit.operator, status.job_id, number))
    result = verify(kit, *files)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)["transcripts"]
    assert [one["outcome"] for one in facts] == ["committed", "committed"]
    assert [one["survivors"] for one in facts] == [list(SITES), list(SITES)]
    assert [one["aggregate_sha256"] for one in facts] == [report.aggregate_sha256.hex() for report in reports]
    assert facts[1]["previous"] == facts[0]["head"]
    assert verify(kit, files[1], files[0]).exit_code != 0


async def test_a_changed_file_a_strange_ca_and_a_missing_part_are_found_out(
    kit: Kit, tmp_path: Path, make_federation: Any
) -> None:
    kit.connect(*SITES)
    _, status = await kit.run_job(aggregation="secagg")
    content = await fetch(kit.operator, status.job_id)
    file = tmp_path / "transcript.json"
    file.write_bytes(content.replace(b'"total_weight": 30', b'"total_weight": 31'))
    assert file.read_bytes() != content
    assert verify(kit, file).exit_code != 0
    file.write_bytes(content)
    other = make_federation("another").authority.ca_path
    assert CliRunner().invoke(app, ["transcript", "verify", str(file), "--ca", str(other)]).exit_code != 0
    kit.keyserver.sign = lambda kind, body: None
    _, status = await kit.run_job(aggregation="secagg")
    file.write_bytes(await fetch(kit.operator, status.job_id))
    result = verify(kit, file)
    assert result.exit_code != 0
    assert "without all of its parts" in str(result.exception)


async def test_a_part_that_is_not_of_the_service_of_the_plan_ends_the_attempt(kit: Kit) -> None:
    kit.connect(*SITES)
    kit.keyserver.sign = lambda kind, body: kit.sign(Role.AGGREGATOR, "agg-1", kind, body)
    (report,), status = await kit.run_job(aggregation="secagg", max_attempts=1)
    assert status.status == "failed"
    assert report.abandon_reason is AbandonReason.SERVICE_LOST
    assert "not of the service that the plan names" in report.detail


async def test_transcripts_are_for_operators_and_only_of_attempts_that_were_made(kit: Kit) -> None:
    kit.connect(*SITES)
    _, status = await kit.run_job()
    with pytest.raises(NotFound, match="no transcript of this session"):
        await fetch(kit.operator, status.job_id, 2)
    with pytest.raises(NotFound):
        await fetch(kit.operator, "no-job")
    with pytest.raises(PermissionRefused):
        await fetch(kit.stub(Role.SITE, "anna"), status.job_id)


def blaming(index: int, reason: "round_pb2.DropoutReason.ValueType", *, in_attempt: int = 1) -> Any:
    """A key server that blames one site and releases nothing, in one attempt."""
    asked = 0

    def answer(request: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked != in_attempt:
            return keyserver_pb2.UnmaskResponse(signed=request.survivors, revealed=request.survivors)
        return keyserver_pb2.UnmaskResponse(
            failure=round_pb2.ABANDON_REASON_BAD_SHARES,
            detail=f"the shares of site {index} do not rebuild its mask key",
            dropouts=[keyserver_pb2.IndexedDropout(index=index, reason=reason)],
        )

    return answer


async def test_a_blamed_site_is_named_and_not_invited_again(kit: Kit, tmp_path: Path) -> None:
    kit.connect("anna", "bert", "carl", "dora")
    kit.keyserver.unmask_answer = blaming(1, round_pb2.DROPOUT_REASON_FALSE_DEALING)
    (first, second, third), status = await kit.run_job(
        rounds=2, aggregation="secagg", cohort={"min": 3, "max": 4}, threshold=3, max_dropout=0.2, max_corrupt=0.2
    )
    assert (first.abandon_reason, status.status) == (AbandonReason.BAD_SHARES, "completed")
    assert [(drop.client_id, drop.reason) for drop in first.dropouts] == [("bert", DropoutReason.FALSE_DEALING)]
    assert second.invited == third.invited == ("anna", "carl", "dora")
    file = tmp_path / "abandoned.json"
    file.write_bytes(await fetch(kit.operator, status.job_id, 1, 1))
    result = verify(kit, file)
    assert json.loads(result.stdout)["transcripts"][0]["outcome"] == "bad_shares"


async def test_reasons_of_dropouts_and_of_abandoned_attempts_are_counted(kit: Kit) -> None:
    labels = {"reason": "false_dealing", "phase": "unmasking"}
    before = [
        REGISTRY.get_sample_value("tacit_sites_dropped_total", labels) or 0,
        REGISTRY.get_sample_value("tacit_attempts_ended_total", {"outcome": "bad_shares"}) or 0,
    ]
    kit.connect("anna", "bert", "carl", "dora")
    kit.keyserver.unmask_answer = blaming(1, round_pb2.DROPOUT_REASON_FALSE_DEALING)
    await kit.run_job(aggregation="secagg", cohort={"min": 3, "max": 4}, threshold=3, max_dropout=0.2, max_corrupt=0.2)
    after = [
        REGISTRY.get_sample_value("tacit_sites_dropped_total", labels),
        REGISTRY.get_sample_value("tacit_attempts_ended_total", {"outcome": "bad_shares"}),
    ]
    assert after == [count + 1 for count in before]


async def test_quarantine_ends_after_the_rounds_that_the_job_says(kit: Kit) -> None:
    kit.connect("anna", "bert", "carl", "dora")
    kit.keyserver.unmask_answer = blaming(1, round_pb2.DROPOUT_REASON_FALSE_REVEAL)
    reports, _ = await kit.run_job(
        rounds=3,
        aggregation="secagg",
        cohort={"min": 3, "max": 4},
        threshold=3,
        max_dropout=0.2,
        max_corrupt=0.2,
        quarantine_rounds=1,
    )
    assert [(report.round_id, len(report.invited)) for report in reports] == [(1, 4), (1, 3), (2, 3), (3, 4)]


async def test_a_quarantine_gives_way_counted_when_the_cohort_would_be_too_small(kit: Kit) -> None:
    before = REGISTRY.get_sample_value("tacit_quarantines_suspended_total") or 0
    kit.connect("anna", "bert", "carl")
    kit.keyserver.unmask_answer = blaming(1, round_pb2.DROPOUT_REASON_FALSE_REVEAL)
    reports, status = await kit.run_job(aggregation="secagg", threshold=3, max_dropout=0.0, max_corrupt=0.2)
    assert [report.invited for report in reports] == [("anna", "bert", "carl")] * 2
    assert status.status == "completed"
    assert REGISTRY.get_sample_value("tacit_quarantines_suspended_total") == before + 1


async def test_a_liar_that_hangs_up_in_time_is_quarantined_all_the_same(kit: Kit) -> None:
    async def hangs_up(site: ScriptedSite, session: ScriptedSession, index: int) -> None:
        await obedient(site, session, index)
        if session.plan.attempt == 1:
            await site.leave(session.plan, round_pb2.DROPOUT_REASON_DISCONNECTED)

    kit.connect("anna", "carl", "dora")
    kit.connect("bert", behaviour=hangs_up)
    kit.keyserver.unmask_answer = blaming(1, round_pb2.DROPOUT_REASON_FALSE_REVEAL)
    (first, second), _ = await kit.run_job(
        aggregation="secagg", cohort={"min": 3, "max": 4}, threshold=3, max_dropout=0.2, max_corrupt=0.2
    )
    assert [drop.reason for drop in first.dropouts] == [DropoutReason.FALSE_REVEAL]
    assert second.invited == ("anna", "carl", "dora")


async def test_the_aggregator_is_told_who_finished_the_exchange(kit: Kit) -> None:
    kit.connect(*SITES)
    await kit.run_job(aggregation="secagg")
    (session,) = kit.sessions._sessions.values()
    assert session.admitted == (0, 1, 2)
