"""The command line as a user meets it: help, one line for an error, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import run

HEAVY = ("torch", "grpc", "sqlalchemy", "pydantic", "cryptography", "matplotlib", "sklearn")


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    commands = (
        "demo",
        "up",
        "plan",
        "train",
        "status",
        "evaluate",
        "jobs",
        "model",
        "serve",
        "site",
        "pki",
        "db",
        "version",
    )
    for command in commands:
        assert f"│ {command} " in out


def test_help_brings_no_heavy_package() -> None:
    program = f"import sys, cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_is_one_line_and_exit_code_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = outcome(capsys, "status", "--config", str(tmp_path / "nowhere.yaml"))
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("error: there is no operator's config at ")
    assert "tacit up" in err


def test_a_wrong_option_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = outcome(capsys, "status", "--nonsense")
    assert code == 2
    assert "--nonsense" in err


def test_version_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "version", "--json")
    assert code == 0
    assert json.loads(out)["tacit"] == "0.1.0"


@pytest.mark.parametrize("service", ["coordinator", "aggregator", "keyserver"])
def test_a_service_refuses_an_unreadable_config_in_one_line(service: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("listen: [")
    command = [sys.executable, "-m", "cli", "serve", service, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "config.yaml" in done.stderr
    assert "YAML" in done.stderr
