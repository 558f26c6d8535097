"""Presence and evaluation: grace, replaced streams, bounded mailboxes, answers that are refused."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest
from settling import settle

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.errors import LocalProtocolError, NotFound, Overloaded, PermissionRefused, RemoteProtocolError
from fl_core.rounds.job import JobSpec
from fl_core.rounds.plan import ClientId, JobId
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.evaluation import EvaluationDesk, EvaluationResult
from services.coordinator.presence import MAILBOX_EVENTS, ConnectedSite, Presence
from services.coordinator.records import ModelRecord
from services.coordinator.traffic import Traffic

ANNA = ConnectedSite(ClientId("anna"), b"a" * 32)
BERT = ConnectedSite(ClientId("bert"), b"b" * 32)
MODEL = ModelRecord(JobId("job-1"), 1, bytes(32), "m", 4, 0.0)
MANIFEST = TensorManifest((TensorSpec("w", "float32", (1,)),))
Stream = AsyncGenerator[pb.WatchRoundsResponse, None]


def event(job_id: str) -> pb.WatchRoundsResponse:
    return pb.WatchRoundsResponse(job_ended=pb.JobEnded(job_id=job_id, status="completed"))


async def opened(presence: Presence, site: ConnectedSite) -> Stream:
    """A stream past its first heartbeat."""
    stream = presence.stream(site)
    assert (await anext(stream)).HasField("heartbeat")
    return stream


async def test_a_connected_site_is_seen_and_gets_events_in_order() -> None:
    presence = Presence(1.0, 60.0)
    stream = await opened(presence, ANNA)
    assert presence.connected() == (ANNA,)
    for name in ("one", "two"):
        assert presence.send(ANNA.client_id, event(name))
    assert [(await anext(stream)).job_ended.job_id for _ in range(2)] == ["one", "two"]
    await stream.aclose()


async def test_an_event_for_a_site_that_is_not_here_is_not_left() -> None:
    assert not Presence(1.0, 60.0).send(ClientId("nobody"), event("x"))


async def test_a_silent_stream_carries_heartbeats() -> None:
    stream = await opened(Presence(1.0, 0.01), ANNA)
    assert (await anext(stream)).HasField("heartbeat")
    await stream.aclose()


async def test_a_site_that_comes_back_within_the_grace_is_not_lost_and_finds_its_events() -> None:
    presence, lost = Presence(2.0, 60.0), []
    with presence.losses(lost.append):
        stream = await opened(presence, ANNA)
        await stream.aclose()
        assert presence.connected() == ()
        assert presence.is_present(ANNA.client_id)
        presence.send(ANNA.client_id, event("meanwhile"))
        stream = await opened(presence, ANNA)
        assert (await anext(stream)).job_ended.job_id == "meanwhile"
        await settle(2.2)
    assert lost == []
    await stream.aclose()


async def test_a_site_that_stays_away_is_lost_once() -> None:
    presence, lost = Presence(0.01, 60.0), []
    with presence.losses(lost.append):
        await (await opened(presence, ANNA)).aclose()
        await settle(0.1)
    assert lost == ["anna"]
    assert not presence.is_present(ANNA.client_id)


async def test_an_event_on_which_the_stream_broke_is_sent_again() -> None:
    presence = Presence(1.0, 60.0)
    stream = await opened(presence, ANNA)
    presence.send(ANNA.client_id, event("invitation"))
    assert (await anext(stream)).job_ended.job_id == "invitation"
    await stream.aclose()
    stream = await opened(presence, ANNA)
    assert (await anext(stream)).job_ended.job_id == "invitation"
    await stream.aclose()


async def test_a_newer_stream_takes_over_and_the_older_one_ends_with_an_error() -> None:
    presence, lost = Presence(0.01, 60.0), []
    with presence.losses(lost.append):
        older = await opened(presence, ANNA)
        waiting = asyncio.create_task(anext(older))
        await asyncio.sleep(0)
        newer = await opened(presence, ANNA)
        with pytest.raises(LocalProtocolError, match="took over"):
            await waiting
        await settle(0.1)
        presence.send(ANNA.client_id, event("x"))
        assert (await anext(newer)).job_ended.job_id == "x"
    assert lost == []
    await newer.aclose()


async def test_a_site_that_does_not_read_is_cut_off_and_the_others_are_not_disturbed() -> None:
    presence = Presence(1.0, 60.0)
    async with aclosing(await opened(presence, ANNA)) as slow, aclosing(await opened(presence, BERT)) as quick:
        for number in range(MAILBOX_EVENTS + 1):
            presence.broadcast(event(str(number)))
            assert (await anext(quick)).job_ended.job_id == str(number)
        with pytest.raises(Overloaded):
            await anext(slow)


async def evaluating(timeout_s: float = 5.0) -> tuple[Presence, EvaluationDesk, "asyncio.Task[EvaluationResult]", str]:
    presence = Presence(0.01, 60.0)
    desk = EvaluationDesk(presence, Traffic())
    anna, bert = await opened(presence, ANNA), await opened(presence, BERT)
    task = asyncio.create_task(desk.evaluate(JobSpec("digits", 1), MODEL, MANIFEST, timeout_s))
    task_id = (await anext(anna)).evaluation.task_id
    task.add_done_callback(lambda _: (anna, bert))
    presence.kept = (anna, bert)  # type: ignore[attr-defined]
    return presence, desk, task, task_id


def answer(task_id: str, loss: float = 1.0, samples: int = 10, **fields: object) -> pb.ReportEvaluationRequest:
    return pb.ReportEvaluationRequest(task_id=task_id, loss=loss, num_samples=samples, **fields)  # type: ignore[arg-type]


async def test_means_are_weighted_by_samples() -> None:
    _, desk, task, task_id = await evaluating()
    desk.report(ANNA.client_id, answer(task_id, 1.0, 10, metrics={"accuracy": 0.5, "own": 3.0}))
    desk.report(BERT.client_id, answer(task_id, 4.0, 30, metrics={"accuracy": 0.9}))
    result = await task
    assert result.means == pytest.approx({"loss": 3.25, "accuracy": 0.8, "own": 3.0})
    assert (result.num_samples, result.missing) == (40, ())


async def test_an_answer_may_come_twice_but_not_differ() -> None:
    _, desk, task, task_id = await evaluating(0.1)
    desk.report(ANNA.client_id, answer(task_id))
    desk.report(ANNA.client_id, answer(task_id))
    with pytest.raises(RemoteProtocolError):
        desk.report(ANNA.client_id, answer(task_id, loss=2.0))
    result = await task
    assert [site.loss for site in result.sites] == [1.0]
    assert result.missing == ("bert",)


async def test_answers_of_strangers_and_late_answers_are_refused() -> None:
    _, desk, task, task_id = await evaluating(0.05)
    with pytest.raises(PermissionRefused):
        desk.report(ClientId("zora"), answer(task_id))
    await task
    with pytest.raises(NotFound):
        desk.report(ANNA.client_id, answer(task_id))


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"loss": float("nan")},
        {"metrics": {"accuracy": float("inf")}},
        {"metrics": {f"m{number}": 1.0 for number in range(257)}},
        {"metrics": {"m" * 201: 1.0}},
    ],
)
async def test_impossible_answers_are_refused_and_the_site_may_answer_again(wrong: dict[str, object]) -> None:
    _, desk, task, task_id = await evaluating(0.1)
    with pytest.raises(RemoteProtocolError):
        desk.report(ANNA.client_id, answer(task_id, **wrong))  # type: ignore[arg-type]
    desk.report(ANNA.client_id, answer(task_id))
    assert [site.client_id for site in (await task).sites] == ["anna"]


async def test_nobody_waits_for_a_site_that_failed_or_was_lost() -> None:
    presence, desk, task, task_id = await evaluating(30.0)
    desk.report(ANNA.client_id, pb.ReportEvaluationRequest(task_id=task_id, failure="no data"))
    await presence.kept[1].aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(30):
        result = await task
    assert result.sites == ()
    assert result.missing == ("anna", "bert")
    assert result.means == {}


async def test_a_new_process_of_a_site_is_a_loss_of_the_old_one_even_within_the_grace() -> None:
    presence, lost = Presence(60.0, 60.0), []
    with presence.losses(lost.append):
        stream = await opened(presence, replace(ANNA, instance=b"first"))
        await stream.aclose()
        again = await opened(presence, replace(ANNA, instance=b"first"))
        await again.aclose()
        assert lost == []
        restarted = await opened(presence, replace(ANNA, instance=b"second"))
        assert lost == [ANNA.client_id]
        assert presence.is_present(ANNA.client_id)
        await restarted.aclose()


async def test_a_new_process_that_finds_its_invitation_is_no_loss() -> None:
    presence, lost = Presence(60.0, 60.0), []
    with presence.losses(lost.append):
        stream = await opened(presence, replace(ANNA, instance=b"first"))
        await stream.aclose()
        presence.send(ANNA.client_id, event("one"))
        restarted = await opened(presence, replace(ANNA, instance=b"second"))
        assert (await anext(restarted)).job_ended.job_id == "one"
        assert lost == []
        await restarted.aclose()
