"""Sites take part in rounds over real gRPC and mTLS, whatever the services do."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scripted_services import MODEL, Cluster, Ticking, expected_upload_bytes
from settling import settle

from client_sdk import Array, Site, SiteObserver, SitePolicy, TrainingContext, TrainResult
from client_sdk.journal import JOURNAL_NAME, SiteJournal
from client_sdk.spool import SPOOL_NAME
from fl_core.codec.tensors import manifest_of
from fl_core.crypto.mask_prg import reduce_ring
from fl_core.errors import ConfigError, IdentityError, RemoteProtocolError, SessionFrozen, StreamError, TacitError
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.messages import KeyDirectory
from fl_core.transport.identity import Role
from fl_core.wire import convert
from fl_core.wire.chunks import model_digest
from fl_core.wire.v1 import coordinator_pb2, coordinator_pb2_grpc, round_pb2

TakePart = Callable[..., "asyncio.Task[None]"]
SITES = ("alpha", "beta", "gamma")


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def left(cluster: Cluster) -> tuple[str, str, str]:
    return await asyncio.wait_for(cluster.coordinator.left.get(), 60)


class Events(SiteObserver):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.chunks: list[tuple[int, int]] = []
        self.errors: list[TacitError] = []

    def connected(self, coordinator: str) -> None:
        self.heard.append("connected")

    def invited(self, plan: RoundPlan) -> None:
        self.heard.append("invited")

    def keys_shared(self, plan: RoundPlan) -> None:
        self.heard.append("keys_shared")

    def trained(self, plan: RoundPlan, num_samples: int, metrics: Any) -> None:
        self.heard.append("trained")

    def upload_chunk_sent(self, plan: RoundPlan, index: int, count: int) -> None:
        self.chunks.append((index, count))

    def uploaded(self, plan: RoundPlan) -> None:
        self.heard.append("uploaded")

    def revealed(self, plan: RoundPlan) -> None:
        self.heard.append("revealed")

    def left(self, plan: RoundPlan, error: TacitError) -> None:
        self.errors.append(error)

    def attempt_ended(self, job_id: str, round_id: int, attempt: int, reason: str | None) -> None:
        self.heard.append(f"ended {reason}")


def all_join(cluster: Cluster, take_part: TakePart, trainers: dict[str, Ticking], **changes: Any) -> None:
    for name, trainer in trainers.items():
        take_part(cluster.config(name, **changes), trainer)


async def finish(cluster: Cluster, plan: RoundPlan, survivors: tuple[int, ...]) -> Array:
    """Unmask the sum of the survivors."""
    masked = await cluster.aggregator.wait_for(plan, len(survivors))
    total = np.zeros(plan.length, np.uint32)
    for index in survivors:
        total += masked[index]
    total -= await cluster.keyserver.unmask(survivors, cluster.aggregator.uploads[plan.session_id])
    reduce_ring(total, plan.codec.ring_bits)
    return total


async def test_a_secure_round_gives_the_exact_sum_of_the_updates(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.coordinator.invite(plan)
    all_join(cluster, take_part, {name: Ticking(0.01 * i, 10 * i) for i, name in enumerate(SITES, start=1)})
    total = await finish(cluster, plan, (0, 1, 2))
    assert np.array_equal(total, cluster.plain_sum(plan, (0, 1, 2)))
    assert (total[0], total[1]) == (60, 3)


async def test_an_upload_looks_random_and_is_as_long_as_planned(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.coordinator.invite(plan)
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    masked = await cluster.aggregator.wait_for(plan, 3)
    assert {header.stream.total_bytes for header in cluster.aggregator.headers} == {expected_upload_bytes(plan)}
    # 1230 uniform coordinates of 20 bits: equal ones are rare, while the plain levels are 2 different numbers.
    assert all(len(np.unique(vector)) > 1200 for vector in masked.values())


async def test_a_plain_round_uploads_the_update_itself(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plain_plan("alpha")
    cluster.coordinator.invite(plan)
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    take_part(cluster.config("alpha", policy=policy), Ticking())
    uploads = await cluster.aggregator.wait_for(plan, 1)
    assert np.array_equal(uploads[0], cluster.plain_sum(plan, (0,)))


async def test_the_observer_hears_every_step_in_order(cluster: Cluster, take_part: TakePart) -> None:
    plan, events = cluster.plan(*SITES), Events()
    cluster.open(plan)
    cluster.coordinator.invite(plan)
    take_part(cluster.config("alpha"), Ticking(), events)
    all_join(cluster, take_part, {name: Ticking() for name in SITES[1:]})
    await finish(cluster, plan, (0, 1, 2))
    await soon(lambda: "revealed" in events.heard)
    cluster.coordinator.end_attempt(plan, round_pb2.ROUND_STATE_COMMITTED)
    await soon(lambda: "ended None" in events.heard)
    assert events.heard[:2] == ["connected", "invited"]
    assert set(events.heard[2:4]) == {"keys_shared", "trained"}
    assert events.heard[4:] == ["uploaded", "revealed", "ended None"]
    assert events.chunks == [(index, 4) for index in range(4)]


async def test_a_reason_that_is_newer_than_the_site_is_told_by_its_number(
    cluster: Cluster, take_part: TakePart
) -> None:
    events = Events()
    task = take_part(cluster.config("alpha"), Ticking(), events)
    plan = cluster.plan("alpha", "beta", "gamma")
    cluster.coordinator.end_attempt(plan, round_pb2.ROUND_STATE_ABANDONED, round_pb2.ABANDON_REASON_DEADLINE)
    cluster.coordinator.end_attempt(plan, round_pb2.ROUND_STATE_ABANDONED, 99)
    await soon(lambda: "ended reason 99" in events.heard)
    assert events.heard == ["connected", "ended deadline", "ended reason 99"]
    assert not task.done()


async def test_an_observer_that_raises_does_not_disturb_the_round(cluster: Cluster, take_part: TakePart) -> None:
    class Broken(SiteObserver):
        def trained(self, plan: RoundPlan, num_samples: int, metrics: Any) -> None:
            raise RuntimeError("a mistake of the owner")

    plan = cluster.plain_plan("alpha")
    cluster.coordinator.invite(plan)
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    take_part(cluster.config("alpha", policy=policy), Ticking(), Broken())
    assert len(await cluster.aggregator.wait_for(plan, 1)) == 1


@pytest.mark.parametrize("step", ["advertisement", "shares", "reveal"])
async def test_a_stream_that_breaks_is_opened_again_and_the_sum_stays_exact(
    cluster: Cluster, take_part: TakePart, step: str
) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.keyserver.breaks_after = [step]
    cluster.coordinator.invite(plan)
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    total = await finish(cluster, plan, (0, 1, 2))
    assert np.array_equal(total, cluster.plain_sum(plan, (0, 1, 2)))
    assert cluster.keyserver.breaks_after == []
    # What was revealed twice was the very same message.
    assert len(set(cluster.keyserver.reveals)) == 3


async def test_an_upload_that_breaks_is_sent_again(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.aggregator.breaks = 2
    cluster.coordinator.invite(plan)
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    total = await finish(cluster, plan, (0, 1, 2))
    assert np.array_equal(total, cluster.plain_sum(plan, (0, 1, 2)))
    assert cluster.aggregator.asked == 2


async def test_an_upload_whose_answer_is_lost_is_not_sent_twice(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.aggregator.loses_answers = 1
    cluster.coordinator.invite(plan)
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    await finish(cluster, plan, (0, 1, 2))
    assert (cluster.aggregator.asked, len(cluster.aggregator.headers)) == (1, 3)


async def test_a_refused_upload_makes_the_site_leave(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.aggregator.refusal = StreamError("chunks of the wrong size")
    cluster.coordinator.invite(plan)
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    assert {(await left(cluster))[:2] for _ in SITES} == {(name, "upload_refused") for name in SITES}


async def test_an_upload_after_the_end_says_which_phase_was_missed(cluster: Cluster, take_part: TakePart) -> None:
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    cluster.aggregator.refusal = SessionFrozen("the uploads are closed")
    take_part(cluster.config("alpha", policy=policy), Ticking())
    cluster.coordinator.invite(cluster.plain_plan("alpha"))
    assert (await left(cluster))[1] == "upload_timeout"


async def test_a_site_whose_refusal_got_lost_asks_for_it_and_sends_nothing_again(
    cluster: Cluster, take_part: TakePart
) -> None:
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    cluster.aggregator.refusal = SessionFrozen("the uploads are closed")
    cluster.aggregator.loses_refusals = True
    take_part(cluster.config("alpha", policy=policy), Ticking())
    cluster.coordinator.invite(cluster.plain_plan("alpha"))
    assert (await left(cluster))[1] == "upload_timeout"
    assert len(cluster.aggregator.headers) == 1


async def test_the_next_attempt_reuses_the_trained_update(cluster: Cluster, take_part: TakePart) -> None:
    first = cluster.plan(*SITES)
    second = replace(first, attempt=2)
    cluster.open(first)
    trainers = {name: Ticking() for name in SITES}
    cluster.coordinator.invite(first)
    all_join(cluster, take_part, trainers)
    await cluster.aggregator.wait_for(first, 3)
    cluster.open(second)
    cluster.coordinator.end_attempt(first, round_pb2.ROUND_STATE_ABANDONED)
    cluster.coordinator.invite(second)
    total = await finish(cluster, second, (0, 1, 2))
    assert np.array_equal(total, cluster.plain_sum(second, (0, 1, 2)))
    assert [len(trainer.contexts) for trainer in trainers.values()] == [1, 1, 1]
    assert cluster.coordinator.downloads == 3


async def test_training_that_outlives_its_attempt_serves_the_next_one(cluster: Cluster, take_part: TakePart) -> None:
    class Slow(Ticking):
        go = threading.Event()

        def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
            result = super().train(parameters, context)
            self.go.wait(20)
            return result

    first = cluster.plain_plan("alpha")
    second = replace(first, attempt=2)
    trainer = Slow()
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    take_part(cluster.config("alpha", policy=policy), trainer)
    cluster.coordinator.invite(first)
    await soon(lambda: len(trainer.contexts) == 1)
    cluster.coordinator.end_attempt(first, round_pb2.ROUND_STATE_ABANDONED)
    cluster.coordinator.invite(second)
    await settle()
    trainer.go.set()
    await cluster.aggregator.wait_for(second, 1)
    assert len(trainer.contexts) == 1


async def test_a_site_comes_back_after_the_coordinator_was_away(cluster: Cluster, take_part: TakePart) -> None:
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    take_part(cluster.config("alpha", policy=policy), Ticking())
    await soon(lambda: "alpha" in cluster.coordinator.watching)
    await cluster.servers[Role.COORDINATOR].stop(0)
    await settle(0.3)
    port = int(cluster.endpoints[Role.COORDINATOR].address.rpartition(":")[2])
    add = coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server
    await cluster.listen(Role.COORDINATOR, add, cluster.coordinator, port)
    plan = cluster.plain_plan("alpha")
    await soon(lambda: "alpha" in cluster.coordinator.watching)
    cluster.coordinator.invite(plan)
    assert len(await cluster.aggregator.wait_for(plan, 1)) == 1


async def test_an_attempt_goes_on_when_only_the_watch_breaks(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.coordinator.invite(plan)
    trainers = {name: Ticking() for name in SITES}
    all_join(cluster, take_part, trainers)
    await cluster.aggregator.wait_for(plan, 3)
    for name in SITES:
        cluster.coordinator.events[name].put_nowait(None)
    # The coordinator invites again after a reconnection; it is the same attempt.
    cluster.coordinator.invite(plan)
    total = await finish(cluster, plan, (0, 1, 2))
    assert np.array_equal(total, cluster.plain_sum(plan, (0, 1, 2)))
    assert [len(trainer.contexts) for trainer in trainers.values()] == [1, 1, 1]


async def test_an_attempt_from_before_a_restart_is_refused(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plain_plan("alpha")
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    cluster.coordinator.invite(plan)
    first = take_part(cluster.config("alpha", policy=policy), Ticking())
    await cluster.aggregator.wait_for(plan, 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    # The broken stream of the first run would take the invitation of the second.
    await soon(lambda: "alpha" not in cluster.coordinator.watching)
    trainer = Ticking()
    take_part(cluster.config("alpha", policy=policy), trainer)
    cluster.coordinator.invite(plan)
    client_id, reason, detail = await left(cluster)
    assert (client_id, reason) == ("alpha", "protocol_violation")
    assert "not new" in detail
    assert trainer.contexts == []


async def run_and_restart(cluster: Cluster, take_part: TakePart, **changes: Any) -> tuple[Array, Array, Ticking]:
    """One upload of a site, one of the next attempt after it was restarted, and its trainer of then."""
    first, second = cluster.plain_plan("alpha"), replace(cluster.plain_plan("alpha"), attempt=2)
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    config = cluster.config("alpha", policy=policy, **changes)
    cluster.coordinator.invite(first)
    running = take_part(config, Ticking(0.03))
    before = (await cluster.aggregator.wait_for(first, 1))[0]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await soon(lambda: "alpha" not in cluster.coordinator.watching)
    trainer = Ticking(0.07)
    take_part(config, trainer)
    cluster.coordinator.invite(second)
    return before, (await cluster.aggregator.wait_for(second, 1))[0], trainer


async def test_a_restarted_site_uploads_what_it_had_trained(cluster: Cluster, take_part: TakePart) -> None:
    before, after, trainer = await run_and_restart(cluster, take_part, keep_training_after_s=0)
    assert trainer.contexts == []
    # Rounded again, so one level apart at most.
    assert np.abs(before.astype(np.int64) - after.astype(np.int64)).max() <= 1
    assert cluster.coordinator.requests[-1].trained_round_id == 1


async def test_a_restarted_site_trains_again_when_that_is_quick(cluster: Cluster, take_part: TakePart) -> None:
    _, _, trainer = await run_and_restart(cluster, take_part, keep_training_after_s=60)
    assert len(trainer.contexts) == 1


async def test_a_committed_round_leaves_no_update_on_the_disk(cluster: Cluster, take_part: TakePart) -> None:
    plan, config = (
        cluster.plain_plan("alpha"),
        cluster.config(
            "alpha", policy=SitePolicy(require_secure_aggregation=False, min_cohort=1), keep_training_after_s=0
        ),
    )
    cluster.coordinator.invite(plan)
    take_part(config, Ticking())
    await cluster.aggregator.wait_for(plan, 1)
    await soon((config.state_dir / SPOOL_NAME).exists)
    cluster.coordinator.end_attempt(plan, round_pb2.ROUND_STATE_COMMITTED)
    await soon(lambda: not (config.state_dir / SPOOL_NAME).exists())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: p.pop("layer.bias"), "'layer.bias' is missing"),
        (lambda p: p.update(extra=np.zeros(3, np.float32)), "'extra' is not in the manifest"),
        (
            lambda p: p.update({"layer.bias": np.zeros(31, np.float32)}),
            "'layer.bias' has the wrong shape",
        ),
        (lambda p: p.update({"layer.bias": np.zeros(30)}), "'layer.bias' has the wrong dtype"),
        (lambda p: p["layer.weight"].__setitem__((3, 4), np.nan), "'layer.weight' holds a NaN"),
        (
            lambda p: p["layer.weight"].__setitem__((3, 4), np.inf),
            "'layer.weight' holds a NaN or inf",
        ),
    ],
)
async def test_a_wrong_result_makes_the_site_leave_and_names_the_tensor(
    cluster: Cluster, take_part: TakePart, spoil: Callable[[Any], Any], says: str
) -> None:
    class Wrong(Ticking):
        def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
            spoil(parameters)
            return TrainResult(parameters, 5)

    await _leaves(cluster, take_part, Wrong(), "invalid_update", says)


@pytest.mark.parametrize(
    ("num_samples", "says"),
    [(0, "num_samples is out of range"), (-3, "num_samples"), (101, "1 to 100 samples")],
)
async def test_a_wrong_sample_count_makes_the_site_leave(
    cluster: Cluster, take_part: TakePart, num_samples: int, says: str
) -> None:
    await _leaves(cluster, take_part, Ticking(num_samples=num_samples), "invalid_update", says)


async def test_a_trainer_that_raises_makes_the_site_leave_without_telling_its_text(
    cluster: Cluster, take_part: TakePart
) -> None:
    class Raising(Ticking):
        def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
            raise ValueError("patient 4711")

    detail = await _leaves(cluster, take_part, Raising(), "training_failed", "ValueError")
    assert "4711" not in detail


async def _leaves(cluster: Cluster, take_part: TakePart, trainer: Ticking, reason: str, says: str) -> str:
    """The site leaves for that reason, and takes part in the next attempt."""
    plan = cluster.plain_plan("alpha")
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    task = take_part(cluster.config("alpha", policy=policy), trainer)
    cluster.coordinator.invite(plan)
    client_id, told, detail = await left(cluster)
    assert (client_id, told) == ("alpha", reason)
    assert says in detail
    cluster.coordinator.invite(replace(plan, attempt=2))
    assert (await left(cluster))[1] == reason
    assert not task.done()
    assert not cluster.aggregator.uploads
    return detail


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"min_cohort": 4}, "cohort is too small"),
        ({"aggregator_id": "another"}, "pinned another aggregator"),
        ({"keyserver_id": "another"}, "pinned another keyserver"),
    ],
)
async def test_a_plan_below_the_policy_is_declined(
    cluster: Cluster, take_part: TakePart, changes: dict[str, Any], says: str
) -> None:
    plan, trainer = cluster.plan(*SITES), Ticking()
    take_part(cluster.config("alpha", policy=SitePolicy(**{"min_cohort": 1, **changes})), trainer)
    cluster.coordinator.invite(plan, "alpha")
    _, reason, detail = await left(cluster)
    assert reason == "policy_refused"
    assert says in detail
    assert trainer.contexts == []


async def test_a_plain_plan_is_declined_where_secure_aggregation_is_required(
    cluster: Cluster, take_part: TakePart
) -> None:
    take_part(cluster.config("alpha"), Ticking())
    cluster.coordinator.invite(cluster.plain_plan("alpha"))
    _, reason, detail = await left(cluster)
    assert reason == "policy_refused"
    assert "secure aggregation only" in detail


async def test_a_service_with_another_certificate_than_planned_gets_nothing(
    cluster: Cluster, take_part: TakePart
) -> None:
    plan = cluster.plan(*SITES)
    forged = replace(plan, aggregator=replace(plan.aggregator, certificate_sha256=b"x" * 32))
    take_part(cluster.config("alpha"), Ticking())
    cluster.coordinator.invite(forged, "alpha")
    _, reason, detail = await left(cluster)
    assert reason == "policy_refused"
    assert "another certificate than the plan says" in detail
    assert cluster.keyserver.streams == 0


async def test_a_key_server_at_the_aggregators_address_is_refused(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    assert plan.keyserver is not None
    forged = replace(plan, aggregator=replace(plan.aggregator, address=plan.keyserver.address))
    take_part(cluster.config("alpha"), Ticking())
    cluster.coordinator.invite(forged, "alpha")
    _, reason, detail = await left(cluster)
    assert reason == "policy_refused"
    assert "wrong role" in detail


async def test_a_key_server_that_replaces_a_key_is_found_out(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)

    def swap(directory: KeyDirectory) -> KeyDirectory:
        first, second, third = directory.advertisements
        forged = replace(second, mask_public_key=bytes([second.mask_public_key[0] ^ 1]) + second.mask_public_key[1:])
        return KeyDirectory((first, forged, third))

    cluster.keyserver.tamper = swap
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    cluster.coordinator.invite(plan)
    reasons = {(await left(cluster))[:2] for _ in SITES}
    assert reasons == {("alpha", "bad_signature"), ("beta", "protocol_violation"), ("gamma", "bad_signature")}
    assert not cluster.aggregator.uploads


async def test_a_survivor_list_that_is_no_subset_reveals_nothing(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.keyserver.tamper_survivors = lambda survivors: replace(survivors, survivors=(*survivors.survivors, 7))
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    cluster.coordinator.invite(plan)
    await cluster.aggregator.wait_for(plan, 3)
    unmasking = asyncio.create_task(cluster.keyserver.unmask((0, 1, 2), cluster.aggregator.uploads[plan.session_id]))
    assert {(await left(cluster))[1] for _ in SITES} == {"protocol_violation"}
    unmasking.cancel()
    assert cluster.keyserver.reveals == []


async def test_a_session_that_the_journal_knows_as_unmasked_gets_no_shares(
    cluster: Cluster, take_part: TakePart
) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    with SiteJournal(cluster.folder / "state-beta") as journal:
        journal.record_unmasked(plan.session_id)
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    cluster.coordinator.invite(plan)
    await cluster.aggregator.wait_for(plan, 3)
    unmasking = asyncio.create_task(cluster.keyserver.unmask((0, 1, 2), cluster.aggregator.uploads[plan.session_id]))
    client_id, reason, detail = await left(cluster)
    assert (client_id, reason) == ("beta", "protocol_violation")
    assert "revealed before" in detail
    await soon(lambda: len(cluster.keyserver.reveals) == 2)
    unmasking.cancel()


async def test_every_reveal_stands_in_the_journal(cluster: Cluster, take_part: TakePart) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    all_join(cluster, take_part, {name: Ticking() for name in SITES})
    cluster.coordinator.invite(plan)
    await finish(cluster, plan, (0, 1, 2))
    journals = [(cluster.folder / f"state-{name}" / JOURNAL_NAME).read_text() for name in SITES]
    assert all(plan.session_id.hex() in journal for journal in journals)


async def test_the_wrong_model_version_is_refused(cluster: Cluster, take_part: TakePart) -> None:
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    cluster.coordinator.answers_version = 5
    events = Events()
    take_part(cluster.config("alpha", policy=policy), Ticking(), events)
    cluster.coordinator.invite(cluster.plain_plan("alpha"))
    assert "wrong model version" in (await left(cluster))[2]
    assert isinstance(events.errors[0], RemoteProtocolError)


async def test_a_model_with_another_digest_is_refused(cluster: Cluster, take_part: TakePart) -> None:
    policy = SitePolicy(require_secure_aggregation=False, min_cohort=1)
    cluster.coordinator.models[0] = {name: tensor + 1 for name, tensor in MODEL.items()}
    take_part(cluster.config("alpha", policy=policy), Ticking())
    cluster.coordinator.invite(cluster.plain_plan("alpha"))
    assert "not the one that was announced" in (await left(cluster))[2]


async def test_a_truncated_download_is_never_trained_on(cluster: Cluster, take_part: TakePart) -> None:
    policy, trainer = SitePolicy(require_secure_aggregation=False, min_cohort=1), Ticking()
    cluster.coordinator.truncates = True
    take_part(cluster.config("alpha", policy=policy), trainer)
    cluster.coordinator.invite(cluster.plain_plan("alpha"))
    assert "truncated" in (await left(cluster))[2]
    assert trainer.contexts == []


async def test_a_model_is_evaluated_and_the_result_reported(cluster: Cluster, take_part: TakePart) -> None:
    take_part(cluster.config("alpha"), Ticking())
    cluster.coordinator.events["alpha"].put_nowait({"evaluation": _task("t1")})
    client_id, report = await asyncio.wait_for(cluster.coordinator.evaluations.get(), 20)
    assert (client_id, report.task_id, report.loss, report.num_samples) == ("alpha", "t1", 1.0, 7)
    assert dict(report.metrics) == {"accuracy": 0.25}


async def test_an_evaluation_that_fails_is_reported_without_the_trainers_text(
    cluster: Cluster, take_part: TakePart
) -> None:
    class Raising(Ticking):
        def evaluate(self, parameters: Any, context: TrainingContext) -> Any:
            raise KeyError("patient 4711")

    task = take_part(cluster.config("alpha"), Raising())
    cluster.coordinator.events["alpha"].put_nowait({"evaluation": _task("t1")})
    _, report = await asyncio.wait_for(cluster.coordinator.evaluations.get(), 20)
    assert "KeyError" in report.failure
    assert "4711" not in report.failure
    assert not task.done()


async def test_a_coordinator_of_another_federation_ends_the_run_with_one_error(
    cluster: Cluster, make_federation: Any, take_part: TakePart
) -> None:
    other = make_federation("other").issue(Role.SITE, "alpha")
    config = cluster.config("alpha", certificate=other.certificate, key=other.key, ca=other.ca, crl=other.crl)
    with pytest.raises(IdentityError, match="not of this federation"):
        await asyncio.wait_for(take_part(config, Ticking()), 20)


async def test_a_coordinator_that_is_not_there_yet_is_waited_for(cluster: Cluster, take_part: TakePart) -> None:
    await cluster.servers[Role.COORDINATOR].stop(0)
    task = take_part(cluster.config("alpha"), Ticking())
    await settle(0.5)
    assert not task.done()


def _task(task_id: str) -> Any:
    manifest = manifest_of(MODEL)
    return coordinator_pb2.EvaluationTask(
        task_id=task_id,
        job_id="job",
        model_version=0,
        model_digest=model_digest(MODEL, manifest),
        manifest=convert.manifest_to_proto(manifest),
        timeout_seconds=10.0,
    )


async def test_a_stopped_site_ends_in_the_middle_of_an_attempt(cluster: Cluster) -> None:
    plan = cluster.plan(*SITES)
    cluster.open(plan)
    cluster.coordinator.invite(plan, "alpha")
    events = Events()
    site = Site(cluster.config("alpha"), events)
    task = asyncio.create_task(site.participate(Ticking()))
    await soon(lambda: "trained" in events.heard)
    site.stop()
    await asyncio.wait_for(task, 5)
    await soon(lambda: "alpha" not in cluster.coordinator.watching)


async def test_a_revoked_site_ends_with_an_error_that_says_so(cluster: Cluster, take_part: TakePart) -> None:
    cluster.federation.revoke(cluster.federation.credentials(Role.SITE, "alpha"))
    with pytest.raises(ConfigError, match="was revoked"):
        await asyncio.wait_for(take_part(cluster.config("alpha"), Ticking()), 20)


async def test_a_certificate_of_another_site_is_one_error(cluster: Cluster, take_part: TakePart) -> None:
    with pytest.raises(ConfigError, match="is of another site: expected beta, got alpha"):
        await asyncio.wait_for(take_part(replace(cluster.config("alpha"), client_id="beta"), Ticking()), 20)


async def test_an_operator_cannot_take_part(cluster: Cluster, take_part: TakePart) -> None:
    files = cluster.federation.issue(Role.OPERATOR, "olga")
    config = cluster.config("alpha", certificate=files.certificate, key=files.key)
    with pytest.raises(ConfigError, match="wrong role"):
        await asyncio.wait_for(take_part(config, Ticking()), 20)


def test_run_ends_on_sigterm_and_logs_to_stderr(tmp_path: Path, federation: Any) -> None:
    files = federation.issue(Role.SITE, "alpha")
    config = {
        "coordinator": "127.0.0.1:1",
        **{name: str(getattr(files, name)) for name in ("certificate", "key", "ca", "crl")},
        "state_dir": "state",
        "log": {"format": "json"},
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(config))
    code = "import sys; from client_sdk import Site, SiteConfig; Site(SiteConfig.from_file(sys.argv[1])).run(None)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "site.yaml")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert first["event"] == "coordinator_lost"
    assert (process.returncode, out) == (0, b"")
