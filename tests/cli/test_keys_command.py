"""`tacit keys`: keys are sealed on disk, replaced only by who can open them, and dealt beside the CA."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from fl_core.errors import ConfigError
from fl_core.transport.identity import Role

PHRASE = {"TACIT_PAILLIER_PASSPHRASE": "correct horse"}


def run(*arguments: str, env: dict[str, str] | None = None) -> Any:
    result = CliRunner().invoke(app, ["keys", *arguments], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_key_is_made_shown_and_rotated_under_a_passphrase(tmp_path: Path) -> None:
    path = str(tmp_path / "paillier.key")
    made = json.loads(run("make", path, "--json", env=PHRASE).stdout)
    assert made["bits"] == 2048
    assert json.loads(run("show", path, "--json", env=PHRASE).stdout) == made
    rotated = json.loads(run("rotate", path, "--json", env=PHRASE).stdout)
    assert rotated["fingerprint"] != made["fingerprint"]
    assert json.loads(run("show", path, "--json", env=PHRASE).stdout) == rotated


def test_who_cannot_open_a_key_cannot_replace_it(tmp_path: Path) -> None:
    path, unlock = tmp_path / "paillier.key", tmp_path / "unlock"
    run("make", str(path), "--unlock-file", str(unlock))
    assert unlock.stat().st_mode & 0o077 == 0
    before = path.read_bytes()
    for arguments, env in (
        (["rotate", str(path)], PHRASE),
        (["make", str(path), "--unlock-file", str(unlock)], None),
        (["rotate", str(path), "--unlock-file", str(tmp_path / "missing")], None),
    ):
        with pytest.raises(ConfigError):
            run(*arguments, env=env)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bits", ["1024", "2047"])
def test_a_key_of_another_size_is_not_made(tmp_path: Path, bits: str) -> None:
    with pytest.raises(ConfigError, match="not offered"):
        run("make", str(tmp_path / "key"), "--bits", bits, env=PHRASE)
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_dealt_to_services_that_the_ca_knows(federation: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        federation.issue(Role.KEYSERVER, name)
    decryptors = [part for name in "abc" for part in ("--decryptor", f"{name}=127.0.0.1:1")]
    ca, out = str(federation.folder / "ca"), tmp_path / "dealt"
    dealt = json.loads(run("deal", *decryptors, "--threshold", "2", "--ca", ca, "--out", str(out), "--json").stdout)
    assert dealt["bits"] == 2048
    assert sorted(path.name for path in out.iterdir()) == ["a.share", "b.share", "c.share", "dealing.json"]
    for wrong in (["--decryptor", "d=127.0.0.1:1"], ["--decryptor", "nonsense"]):
        with pytest.raises(ConfigError):
            run("deal", *wrong, *decryptors, "--threshold", "2", "--ca", ca, "--out", str(out))
