"""Short runs of `tacit loadtest`: real services, real mTLS, sites that vanish."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e

KEYS = {
    "round_seconds_median",
    "round_seconds_p95",
    "phase_seconds",
    "bytes_up_per_site_median",
    "bytes_down_per_site_median",
    "committed_rounds",
    "dropouts_by_reason",
    "server_cpu_seconds",
    "server_peak_rss_bytes",
    "aggregate_exact",
}


def loadtest(*options: str) -> dict[str, object]:
    command = [sys.executable, "-m", "cli", "loadtest", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    figures: dict[str, object] = json.loads(done.stdout)
    assert figures.keys() >= KEYS
    return figures


@pytest.mark.timeout(300)
def test_sites_vanish_the_rounds_are_committed_and_every_sum_is_exact(tmp_path: Path) -> None:
    workdir, plot = tmp_path / "run", tmp_path / "load.png"
    figures = loadtest(
        *("--sites", "4", "--rounds", "2", "--parameters", "1000", "--dropout", "0.25"),
        *("--workdir", str(workdir), "--plot", str(plot)),
    )
    assert (figures["committed_rounds"], figures["aggregate_exact"]) == (2, True)
    assert sum(figures["dropouts_by_reason"].values()) == 2  # type: ignore[attr-defined]
    assert figures["bytes_up_per_site_median"] >= 1000 * figures["ring_bits"] / 8  # type: ignore[operator]
    assert set(figures["server_cpu_seconds"]) == {"coordinator", "aggregator", "keyserver"}  # type: ignore[call-overload]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not any(str(workdir) in " ".join(process.info["cmdline"] or ()) for process in processes())


@pytest.mark.timeout(300)
def test_plain_sites_behind_slow_lines_take_as_long_as_their_lines(tmp_path: Path) -> None:
    figures = loadtest(
        *("--sites", "3", "--rounds", "1", "--parameters", "50000", "--aggregation", "plain"),
        *("--rate-limit-mbit", "2", "--latency-ms", "5", "--workdir", str(tmp_path / "run")),
    )
    assert (figures["committed_rounds"], figures["aggregate_exact"]) == (1, True)
    # The model alone needs 0.8 s of each line.
    assert figures["round_seconds_median"] > 50_000 * 4 * 8 / 2e6  # type: ignore[operator]


def processes() -> list[psutil.Process]:
    return list(psutil.process_iter(["cmdline"]))
