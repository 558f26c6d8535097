"""The parts of the demo that need no process: data, options, events, the check of exactness, tables and the picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cli.demo.digits import load_digit_sets, split_unevenly
from cli.demo.events import EventKind, SiteEvent, training_seconds
from cli.demo.exactness import is_exact, plain_sum_sha256
from cli.demo.options import DemoOptions, KillPhase, most_kills
from cli.demo.plot import draw
from cli.demo.result import DemoResult
from cli.demo.summary import render
from fl_core.codec.packing import pack
from fl_core.errors import ConfigError, StorageError
from fl_core.rounds.job import job_from_mapping
from fl_core.rounds.machine import DropoutReason, RoundState, SiteDropout
from fl_core.rounds.plan import Aggregation, ClientId, JobId
from fl_core.rounds.planner import check_job, check_private_job
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.rounds.report import RoundReport

KEYS = {
    "rounds",
    "sites",
    "killed",
    "committed_rounds",
    "accuracy_federated",
    "accuracy_centralised",
    "aggregate_exact",
    "round_seconds",
    "bytes_up_per_site",
    "bytes_down_per_site",
    "phase_seconds",
    "aggregation_seconds",
}


def event(kind: EventKind, at: float, round_id: int = 1) -> SiteEvent:
    return SiteEvent(kind, round_id, at)


def committed_round(round_id: int, survivors: tuple[str, ...], digest: bytes = b"\1" * 32) -> RoundReport:
    ids = tuple(ClientId(name) for name in survivors)
    return RoundReport(
        job_id=JobId("job"),
        round_id=round_id,
        attempt=1,
        state=RoundState.COMMITTED,
        model_version=round_id + 1,
        invited=(*ids, ClientId("gone")),
        survivors=ids,
        dropouts=(SiteDropout(ClientId("gone"), DropoutReason.DISCONNECTED, RoundState.UPLOADING),),
        phase_seconds={RoundState.EXCHANGING: 0.25, RoundState.UPLOADING: 1.0},
        round_seconds=1.5,
        aggregate_sha256=digest,
        bytes_up=dict.fromkeys(ids, 30_000),
        bytes_down=dict.fromkeys(ids, 50_000),
    )


def a_result(folder: Path, exact: bool | None = True) -> DemoResult:
    return DemoResult(
        workdir=folder,
        sites=3,
        killed={"gone": "after uploading"},
        rounds=[committed_round(1, ("a", "b")), committed_round(2, ("a", "b"))],
        planned_rounds=2,
        accuracy_by_version={1: 0.1, 2: 0.8, 3: 0.95},
        accuracy_centralised=[0.9, 0.96],
        aggregate_exact=exact,
        aggregation_seconds=[0.5, 0.6],
    )


def test_every_digit_for_training_is_at_exactly_one_site() -> None:
    training, held_out = load_digit_sets(seed=3)
    shares = split_unevenly(training, 10, seed=3)
    assert sum(len(share) for share in shares) == len(training) == 1797 - len(held_out)
    together = np.concatenate([share.images for share in shares])
    assert {row.tobytes() for row in together} == {row.tobytes() for row in training.images}


def test_the_sites_have_different_mixtures_of_classes() -> None:
    training, _ = load_digit_sets(seed=1)
    largest = [np.bincount(share.labels, minlength=10).max() / len(share) for share in split_unevenly(training, 10, 1)]
    assert max(largest) > 0.3


def test_the_same_seed_gives_the_same_split_and_the_same_victims() -> None:
    training, _ = load_digit_sets(seed=5)
    first, second = split_unevenly(training, 4, 5), split_unevenly(training, 4, 5)
    assert all(np.array_equal(one.labels, other.labels) for one, other in zip(first, second, strict=True))
    options = DemoOptions(Path("x"), seed=5)
    assert options.victims() == DemoOptions(Path("y"), seed=5).victims()
    assert sorted(options.victims().values()) == sorted(
        [KillPhase.AFTER_KEYS, KillPhase.MID_UPLOAD, KillPhase.AFTER_UPLOAD]
    )


@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("sites", [3, 4, 5, 7, 10, 13, 30, 100])
def test_the_job_holds_for_every_number_of_sites(sites: int, aggregation: Aggregation) -> None:
    options = DemoOptions(Path("x"), sites=sites, kill=most_kills(sites), aggregation=aggregation)
    check_job(job_from_mapping(options.job()))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"sites": 2}, "--sites"), ({"rounds": 0}, "--rounds"), ({"kill": 4}, "--kill"), ({"seed": -1}, "--seed")],
)
def test_an_option_out_of_range_is_named(wrong: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DemoOptions(Path("x"), **wrong)  # type: ignore[arg-type]


def test_training_that_overlaps_counts_once_and_death_ends_nothing() -> None:
    first = [event(EventKind.TRAINING, 0.0), event(EventKind.TRAINED, 2.0)]
    second = [event(EventKind.TRAINING, 1.0), event(EventKind.TRAINED, 3.0)]
    later = [event(EventKind.TRAINING, 5.0), event(EventKind.TRAINED, 6.0)]
    dead = [event(EventKind.TRAINING, 0.0)]
    other_round = [event(EventKind.TRAINING, 10.0, 2), event(EventKind.TRAINED, 20.0, 2)]
    assert training_seconds([first, second, later, dead, other_round], 1) == pytest.approx(4.0)


def test_a_line_that_is_no_event_is_passed_over() -> None:
    assert SiteEvent.parse("epoch 1: loss 0.3\n") is None
    assert SiteEvent.parse('{"kind": "unheard_of", "round_id": 1, "at": 0, "detail": ""}') is None


def record(folder: Path, client_id: str, vector: list[int], attempt: int = 1) -> None:
    plain = folder / client_id / "plain-updates"
    plain.mkdir(parents=True, exist_ok=True)
    np.savez(
        plain / f"{attempt}.npz", vector=np.array(vector, np.uint32), round_id=1, attempt=attempt, index=0, ring_bits=20
    )


def test_one_changed_coordinate_is_not_exact(tmp_path: Path) -> None:
    record(tmp_path, "a", [1, 2, (1 << 20) - 1])
    record(tmp_path, "b", [10, 20, 2])
    digest = bytes.fromhex(plain_sum_sha256([np.array([11, 22, 1], np.uint32)], 20))
    assert is_exact(committed_round(1, ("a", "b"), digest), tmp_path)
    record(tmp_path, "b", [10, 21, 2])
    assert not is_exact(committed_round(1, ("a", "b"), digest), tmp_path)


def test_noise_that_was_taken_away_is_left_out_of_the_plain_sum(tmp_path: Path) -> None:
    record(tmp_path, "a", [1, 2, (1 << 20) - 1])
    record(tmp_path, "b", [10, 20, 2])
    with (tmp_path / "b" / "plain-updates" / "1.excess").open("wb") as file:
        np.savez(file, vector=np.array([0, 21, 3], np.uint32))
    digest = bytes.fromhex(plain_sum_sha256([np.array([11, 1, (1 << 20) - 2], np.uint32)], 20))
    assert is_exact(committed_round(1, ("a", "b"), digest), tmp_path)


def test_the_digest_is_that_of_the_packed_sum() -> None:
    import hashlib

    vectors = [np.array([7, 9], np.uint32), np.array([1, 2], np.uint32)]
    packed = pack(np.array([8, 11], np.uint32), 20).tobytes()
    assert plain_sum_sha256(vectors, 20) == hashlib.sha256(packed).hexdigest()


def test_a_survivor_without_a_record_is_an_error_and_no_agreement(tmp_path: Path) -> None:
    record(tmp_path, "a", [1, 2, 3], attempt=2)
    with pytest.raises(StorageError, match="recorded no update"):
        is_exact(committed_round(1, ("a",)), tmp_path)


def test_the_json_object_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    figures = a_result(tmp_path).to_json()
    assert set(figures) == KEYS
    assert (figures["killed"], figures["committed_rounds"], figures["accuracy_federated"]) == (1, 2, 0.95)


def test_a_wrong_aggregate_fails_the_run(tmp_path: Path) -> None:
    assert a_result(tmp_path).succeeded
    assert a_result(tmp_path, exact=None).succeeded
    assert not a_result(tmp_path, exact=False).succeeded


def test_the_summary_says_who_was_killed_and_what_holds(tmp_path: Path) -> None:
    screen = Console(width=120, record=True)
    screen.print(render(a_result(tmp_path)))
    text = screen.export_text()
    for claim in ("2 of 3", "1 disconnected", "95.0%", "gone after uploading", "exact", "30.0 kB"):
        assert claim in text


@pytest.mark.parametrize(("unit", "advice"), [("site", "3 are few"), ("sample", "samples at each site")])
def test_the_summary_of_a_private_demo_says_what_the_budget_costs(tmp_path: Path, unit: str, advice: str) -> None:
    spent = {"epsilon": 3.99, "delta": 1e-5}
    report = {"mechanism": "distributed", "unit_of_privacy": unit, "noise_by": "every site", "spent": spent}
    screen = Console(width=140, record=True)
    screen.print(render(replace(a_result(tmp_path), privacy=report | {"budget": {"epsilon": 4.0, "delta": 1e-5}})))
    text = screen.export_text()
    for claim in (f"epsilon 3.99 of 4 at delta 1e-05 for each {unit}", "noise by every site", advice):
        assert claim in text


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    path = draw(a_result(tmp_path), tmp_path / "deep" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_codec_is_one_that_exists_and_fits_the_aggregation(tmp_path: Path) -> None:
    assert DemoOptions(tmp_path, codec="int8").job()["codec"] == {"preset": "int8"}
    with pytest.raises(ConfigError, match="int8"):
        DemoOptions(tmp_path, codec="int9")
    with pytest.raises(ConfigError, match="--aggregation plain"):
        DemoOptions(tmp_path, codec="one-bit")
    DemoOptions(tmp_path, codec="one-bit", aggregation=Aggregation.PLAIN)


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_a_private_demo_is_a_job_that_can_hold(tmp_path: Path, mechanism: Mechanism) -> None:
    options = DemoOptions(tmp_path, privacy=mechanism, epsilon=8.0)
    job = job_from_mapping(options.job([20, 100, 400]))
    check_private_job(job, 10_026)
    assert job.privacy is not None
    assert job.privacy.epsilon == 8.0
