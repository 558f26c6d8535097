"""`tacit plan`: numbers for a cohort, from options or from a job, and a refusal in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cli.main import run
from cli.unit_costs import measure_unit_costs
from fl_core.rounds.costs import PACKAGED

JOB = """
name: mnist
rounds: 3
model: init.safetensors
cohort: {min: 8, max: 12}
codec: {clip: 1.0, ring_bits: 20}
max_weight: 100
"""


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        run(["plan", *arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def job_file(folder: Path) -> Path:
    save_file({"w": np.zeros((10, 10), np.float32), "b": np.zeros(10, np.float32)}, folder / "init.safetensors")
    path = folder / "job.yaml"
    path.write_text(JOB)
    return path


def test_a_cohort_of_options_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--sites", "1000", "--dropout", "0.3", "--corrupt", "0.05", "--parameters", "587392", "--bits", "16")
    code, out, _ = outcome(capsys, *options, "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["ring_bits"] == 26
    assert printed["dropped"] == 300
    assert set(printed["parties"]) == {"site", "key server", "aggregator", "coordinator"}
    assert all(party["seconds"] > 0 and party["memory_bytes"] > 0 for party in printed["parties"].values())
    assert printed["unit_costs"] == PACKAGED.machine


def test_the_table_names_graph_threshold_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "--sites", "50", "--parameters", "10000")
    assert code == 0
    for words in ("graph", "threshold", "bytes up per site", "key server", PACKAGED.machine):
        assert words in out


def test_a_job_gives_cohort_codec_and_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = outcome(capsys, "--job", str(job_file(tmp_path)), "--json")
    assert code == 0
    printed = json.loads(out)
    assert (printed["sites"], printed["parameters"], printed["ring_bits"], printed["bits"]) == (12, 110, 20, 16)


def test_an_option_goes_before_the_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out, _ = outcome(capsys, "--job", str(job_file(tmp_path)), "--sites", "9", "--json")
    assert json.loads(out)["sites"] == 9


def test_what_cannot_hold_is_one_line_that_names_the_number(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = outcome(capsys, "--sites", "10", "--parameters", "5", "--dropout", "0.6")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "lower max_dropout" in err


def test_a_plan_without_a_cohort_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = outcome(capsys, "--sites", "10")
    assert code == 1
    assert "--parameters" in err


def test_measured_costs_are_of_this_machine_and_its_engine() -> None:
    costs = measure_unit_costs()
    assert "one core, masks by " in costs.machine
    assert all(0 < seconds < 1 for seconds in costs.seconds().values())


@pytest.mark.parametrize(
    ("codec", "most"), [("int8", 1_530_000), ("int4-rotated", 1_040_000), ("sparse-1pct-int8", 30_000)]
)
def test_a_codec_by_its_name_gives_its_bytes(capsys: pytest.CaptureFixture[str], codec: str, most: int) -> None:
    code, out, _ = outcome(capsys, "--sites", "10", "--parameters", "1000000", "--codec", codec, "--json")
    assert code == 0
    assert json.loads(out)["bytes_up_per_site"] <= most


def test_a_codec_for_plain_rounds_has_an_upload_and_no_graph(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--sites", "10", "--parameters", "1000000", "--codec", "one-bit")
    code, out, _ = outcome(capsys, *options)
    assert code == 0
    assert "plain rounds only" in out
    code, out, _ = outcome(capsys, *options, "--json")
    assert 125_000 < json.loads(out)["bytes_up_per_site"] < 128_000


def test_a_codec_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = outcome(capsys, "--sites", "10", "--parameters", "100", "--codec", "int9")
    assert code != 0
    assert "int8" in said
