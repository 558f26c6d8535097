"""Short runs of `tacit demo`: real processes, real sockets, a real SIGKILL."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from cli.demo.exactness import is_exact
from cli.demo.options import RING_BITS, DemoOptions
from fl_core.rounds.machine import RoundState
from fl_core.rounds.plan import ClientId, JobId
from fl_core.rounds.report import RoundReport

pytestmark = pytest.mark.e2e


def run_demo(workdir: Path, *options: str) -> tuple[dict[str, object], str]:
    command = [sys.executable, "-m", "cli", "demo", "--workdir", str(workdir), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def processes_of(workdir: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(workdir) in part for part in process.info["cmdline"] or ())
    ]


@pytest.mark.timeout(300)
def test_a_site_dies_the_rest_carry_on_and_every_sum_is_exact(tmp_path: Path) -> None:
    workdir = tmp_path / "demo"
    figures, said = run_demo(workdir, "--sites", "4", "--rounds", "2", "--kill", "1")
    assert (figures["sites"], figures["rounds"], figures["committed_rounds"], figures["killed"]) == (4, 2, 2, 1)
    assert figures["aggregate_exact"] is True
    assert len(figures["round_seconds"]) == 2  # type: ignore[arg-type]
    assert figures["bytes_up_per_site"] <= 1.1 * 10_026 * RING_BITS / 8 + 20_000  # type: ignore[operator]
    victim = next(iter(DemoOptions(workdir, sites=4, rounds=2, kill=1).victims()))
    assert f"killed {victim} in round 2" in said
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert processes_of(workdir) == []
    survivors = sorted(
        path.parent.parent.name for path in workdir.glob("sites/*/plain-updates/*.npz") if of_round_2(path)
    )
    assert victim not in survivors
    # The check of the demo must be able to fail: no other digest passes for the same records.
    assert not is_exact(report_of(survivors, sha256=bytes(32)), workdir / "sites")


@pytest.mark.timeout(300)
def test_an_encrypted_run_loses_a_site_and_every_sum_is_exact(tmp_path: Path) -> None:
    workdir = tmp_path / "demo"
    figures, said = run_demo(workdir, "--sites", "4", "--rounds", "2", "--kill", "1", "--aggregation", "paillier")
    assert (figures["committed_rounds"], figures["killed"], figures["aggregate_exact"]) == (2, 1, True)
    assert "3 of 4 survived" in said
    assert processes_of(workdir) == []


@pytest.mark.timeout(300)
def test_a_plain_run_without_records_says_that_nothing_was_checked(tmp_path: Path) -> None:
    workdir = tmp_path / "demo"
    figures, _ = run_demo(
        workdir, "--sites", "3", "--rounds", "1", "--kill", "0", "--aggregation", "plain", "--no-record"
    )
    assert figures["aggregate_exact"] is None
    assert figures["committed_rounds"] == 1
    assert not list(workdir.rglob("plain-updates"))


def test_a_folder_in_use_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    command = [sys.executable, "-m", "cli", "demo", "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def of_round_2(path: Path) -> bool:
    with np.load(path, allow_pickle=False) as record:
        return int(record["round_id"]) == 2


def report_of(survivors: list[str], sha256: bytes) -> RoundReport:
    ids = tuple(ClientId(name) for name in survivors)
    return RoundReport(
        job_id=JobId("digits"),
        round_id=2,
        attempt=1,
        state=RoundState.COMMITTED,
        survivors=ids,
        aggregate_sha256=sha256,
    )
