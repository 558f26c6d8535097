"""`tacit selftest --secrecy`: a table for people, one object for programs, and an exit code that tells the truth."""

import json

import pytest
from typer.testing import CliRunner

from cli.main import app
from fl_core.secagg.commitments import CommitmentBook
from fl_core.simulation.adversary import SUITE


def test_every_attack_is_stopped_on_this_installation() -> None:
    result = CliRunner().invoke(app, ["selftest", "--secrecy", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert [row["attack"] for row in report["attacks"]] == [attack.name for attack in SUITE]
    assert all(row["stopped"] and row["succeeds_without_check"] for row in report["attacks"])


def test_the_table_names_each_attack_and_what_stops_it() -> None:
    result = CliRunner().invoke(app, ["selftest", "--secrecy"])
    assert result.exit_code == 0
    assert "bogus shares" in result.stdout
    assert "every attack is stopped, by its check alone" in result.stdout


def test_an_installation_without_a_check_fails_its_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitmentBook, "is_right", lambda *_: True)
    result = CliRunner().invoke(app, ["selftest", "--secrecy", "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert [row["attack"] for row in report["attacks"] if not row["stopped"]] == ["bogus shares"]


def test_it_must_be_said_what_to_test() -> None:
    result = CliRunner().invoke(app, ["selftest"])
    assert result.exit_code == 2
    assert "--secrecy" in result.output
