"""Every benchmark prints the one form, and its figures are listed where readers look for them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)


@pytest.mark.parametrize(
    "name",
    [
        "masking",
        "secagg",
        "secaggplus",
        "crowd",
        pytest.param("round", marks=pytest.mark.e2e),
        pytest.param("scaling", marks=pytest.mark.e2e),
        pytest.param("transport", marks=pytest.mark.e2e),
    ],
)
def test_the_figures_come_in_the_one_form(name: str) -> None:
    done = benchmark(name, "--json", "--quick")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert set(printed) == {"benchmark", "machine", "results"}
    assert printed["benchmark"] == name
    assert printed["machine"]["cores"] >= 1
    for result in printed["results"]:
        assert set(result) == {"name", "value", "unit", "baseline", "ratio"}
        assert result["value"] > 0
        assert (result["baseline"] is None) == (result["ratio"] is None)


def test_every_benchmark_has_its_section_in_the_readme() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    choices = benchmark("--help").stdout.split("{", 1)[1].split("}", 1)[0].split(",")
    assert {"masking", "round", "secagg", "transport"} <= set(choices)
    for name in choices:
        assert f"## `{name}`" in text


def test_an_unknown_benchmark_is_refused() -> None:
    assert benchmark("nonsense").returncode == 2
