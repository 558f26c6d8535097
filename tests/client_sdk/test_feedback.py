"""Error feedback: kept when a round commits, unchanged when it fails, faded for a site that was away, sealed."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client_sdk.feedback import FOLDER_NAME, Feedback
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.errors import CodecError
from fl_core.rounds.job import job_from_mapping
from fl_core.rounds.plan import ClientId, JobId, RosterEntry, RoundPlan, ServiceEndpoint
from fl_core.rounds.planner import build_plan, codec_of

SIZE, WEIGHT, KEY = 1000, 100, bytes(32)
UPDATE = np.random.default_rng(3).normal(0, 0.1, SIZE).astype(np.float32)


def plan_of(round_id: int, attempt: int = 1, size: int = SIZE, codec: object = "sparse-10pct-int8") -> RoundPlan:
    return build_plan(
        job_from_mapping({"name": "j", "rounds": 9, "codec": codec, "max_weight": WEIGHT}),
        job_id=JobId("a job/with: signs"),
        round_id=round_id,
        attempt=attempt,
        model_version=round_id,
        model_digest=bytes([round_id]) * 32,
        manifest=TensorManifest((TensorSpec("w", "float32", (size,)),)),
        roster=tuple(RosterEntry(ClientId(f"s{i}"), bytes([i]) * 32) for i in range(4)),
        aggregator=ServiceEndpoint("agg", "host:1", b"a" * 32),
        keyserver=ServiceEndpoint("keys", "host:2", b"k" * 32),
    )


def mean_of(plan: RoundPlan, upload: np.ndarray) -> np.ndarray:
    """What of the update travelled."""
    codec = codec_of(plan)
    decoder = codec.open_sum(upload[: codec.header_length], 1)
    return decoder.restore(decoder.decode(upload[codec.header_length :]))


def take_part(
    feedback: Feedback, plan: RoundPlan, update: np.ndarray = UPDATE, committed: bool | None = True
) -> np.ndarray:
    upload = feedback.encode(plan, update, WEIGHT, os.urandom)
    feedback.delivered(plan)
    if committed is not None:
        feedback.settle(plan.job_id, plan.round_id, plan.attempt, committed)
    return mean_of(plan, upload)


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(tmp_path, KEY)


def test_what_did_not_travel_travels_later(feedback: Feedback) -> None:
    sent = np.zeros(SIZE)
    for round_id in range(1, 120):
        update = UPDATE if round_id == 1 else np.zeros(SIZE, np.float32)
        sent += take_part(feedback, plan_of(round_id, codec={"preset": "sparse-10pct-int8", "feedback": 1.0}), update)
    np.testing.assert_allclose(sent, UPDATE, atol=4 / 255)


def test_without_feedback_it_would_be_lost(feedback: Feedback) -> None:
    codec = {"preset": "sparse-10pct-int8", "feedback": 0.0}
    take_part(feedback, plan_of(1, codec=codec))
    again = take_part(feedback, plan_of(2, codec=codec), np.zeros(SIZE, np.float32))
    assert np.linalg.norm(again) < 0.1 * np.linalg.norm(UPDATE), "the noise of rounding, and no update"
    assert not (feedback.state_dir / FOLDER_NAME).exists()


def rest_after(feedback: Feedback, plan: RoundPlan) -> np.ndarray:
    kept = feedback._kept(plan)
    return np.zeros(SIZE, np.float32) if kept is None else kept


def test_a_round_that_fails_leaves_it_unchanged(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1))
    before = rest_after(feedback, plan_of(2))
    assert before.any()
    take_part(feedback, plan_of(2), committed=False)
    take_part(feedback, plan_of(2, attempt=2), committed=False)
    assert rest_after(feedback, plan_of(2)).tobytes() == before.tobytes()


def test_an_update_that_is_refused_leaves_it_unchanged(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1))
    before = rest_after(feedback, plan_of(2))
    with pytest.raises(CodecError, match="NaN"):
        feedback.encode(plan_of(2), np.full(SIZE, np.nan, np.float32), WEIGHT, os.urandom)
    assert rest_after(feedback, plan_of(2)).tobytes() == before.tobytes()


def test_an_upload_that_never_arrived_leaves_it_unchanged(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1))
    before = rest_after(feedback, plan_of(3))
    feedback.encode(plan_of(2), UPDATE, WEIGHT, os.urandom)
    feedback.settle(plan_of(2).job_id, 2, 1, True)
    feedback._settle_by(plan_of(3))
    assert rest_after(feedback, plan_of(3)).tobytes() == before.tobytes()


def test_a_site_that_never_heard_the_end_concludes_it_from_the_next_invitation(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1), committed=None)
    feedback._settle_by(plan_of(1, attempt=2))
    assert not rest_after(feedback, plan_of(2)).any(), "the same round again: the attempt failed"
    take_part(feedback, plan_of(1, attempt=2), committed=None)
    feedback._settle_by(plan_of(2))
    assert rest_after(feedback, plan_of(2)).any(), "the next round: the attempt was committed"


def test_the_end_of_another_attempt_says_nothing(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1), committed=None)
    feedback.settle(plan_of(1).job_id, 1, 2, True)
    assert not rest_after(feedback, plan_of(2)).any()


def test_it_fades_while_the_site_is_away(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1))
    next_round, later = rest_after(feedback, plan_of(2)), rest_after(feedback, plan_of(5))
    np.testing.assert_allclose(later, next_round * np.float32(plan_of(1).codec.feedback) ** 3, rtol=1e-5)


def test_a_restarted_site_goes_on_with_it(feedback: Feedback, tmp_path: Path) -> None:
    take_part(feedback, plan_of(1))
    again = Feedback(tmp_path, KEY)
    assert rest_after(again, plan_of(2)).tobytes() == rest_after(feedback, plan_of(2)).tobytes()


def test_of_another_model_or_round_it_is_let_go(feedback: Feedback) -> None:
    take_part(feedback, plan_of(3))
    assert not rest_after(feedback, plan_of(2)).any(), "the coordinator went back"
    take_part(feedback, plan_of(3))
    other = plan_of(4, size=SIZE - 1)
    assert feedback._kept(other) is None


def test_it_is_sealed_on_the_disk(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1), update=np.full(SIZE, 0.0078125, np.float32))
    files = [path for path in feedback.state_dir.rglob("*") if path.is_file()]
    assert files
    assert all(np.float32(0.0078125).tobytes() * 3 not in path.read_bytes() for path in files)
    assert Feedback(feedback.state_dir, bytes([1]) * 32)._kept(plan_of(2)) is None, "another key opens nothing"


def test_a_damaged_file_is_no_rest(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1))
    for path in feedback.state_dir.rglob("*.sealed"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert not rest_after(feedback, plan_of(2)).any()


def test_a_job_that_ended_leaves_nothing(feedback: Feedback) -> None:
    take_part(feedback, plan_of(1))
    feedback.forget(plan_of(1).job_id)
    assert not list((feedback.state_dir / FOLDER_NAME).iterdir())


def test_the_other_stages_are_those_of_the_codec(feedback: Feedback) -> None:
    plan = replace(plan_of(1), codec=replace(plan_of(1).codec, feedback=0.0))
    upload = feedback.encode(plan, UPDATE, WEIGHT, lambda count: bytes(count))
    assert upload.tobytes() == codec_of(plan).encode(UPDATE, WEIGHT, lambda count: bytes(count)).tobytes()
