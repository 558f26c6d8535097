"""`tacit pki` as an operator and a site use it."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.pki import PASSPHRASE_VARIABLE, pki_app
from fl_core.errors import ConfigError, IdentityError, NotFound, TacitError
from fl_core.transport.identity import Role
from fl_core.transport.tls import Credentials


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    return tmp_path


def pki(*arguments: str, answers: str = "") -> str:
    """Run a command; its error is raised as the main command would see it."""
    result = CliRunner().invoke(pki_app, arguments, input=answers)
    if isinstance(result.exception, TacitError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def pki_json(*arguments: str) -> Any:
    return json.loads(pki(*arguments, "--json"))


def test_a_site_keeps_its_key_and_gets_a_certificate(working_folder: Path) -> None:
    pki("init", "hospitals")
    asked = pki_json("request", "site", "hospital-a", "--federation", "hospitals")
    key = Path(asked["key"])
    before = key.read_bytes()
    signed = pki_json("sign", asked["request"], "--id", "hospital-a")
    credentials = Credentials.from_files(Path(signed["certificate"]), key, Path("ca/ca.pem"), Path("ca/crl.pem"))
    assert credentials.identity.name == "site/hospital-a"
    assert signed["serial"] == f"{credentials.identity.serial:x}"
    assert key.read_bytes() == before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not any(before in path.read_bytes() for path in Path("ca").rglob("*.pem"))


def test_issue_gives_all_that_a_local_service_needs() -> None:
    pki("init", "hospitals")
    issued = pki_json("issue", "coordinator", "coordinator-1", "--out", "c")
    credentials = Credentials.from_files(*(Path(issued[name]) for name in ("certificate", "key", "ca", "crl")))
    assert credentials.identity.role is Role.COORDINATOR
    assert issued["certificate_sha256"] == credentials.identity.certificate_sha256.hex()


def test_no_command_prints_a_private_key() -> None:
    output = (
        pki("init", "hospitals") + pki("issue", "site", "a") + pki("request", "site", "b", "--federation", "hospitals")
    )
    output += pki("show") + pki("show", "site-a/certificate.pem") + json.dumps(pki_json("show"))
    secrets = [path.read_text().splitlines()[1] for path in Path().rglob("*key.pem")]
    assert len(secrets) == 3
    assert not any(secret in output for secret in secrets)


@pytest.mark.parametrize(
    ("role", "subject_id"), [("aggregator", "a"), ("operator", "a"), ("site", "b")], ids=["role", "operator", "id"]
)
def test_a_request_is_signed_for_what_was_granted_only(role: str, subject_id: str) -> None:
    pki("init", "hospitals")
    asked = pki_json("request", role, subject_id, "--federation", "hospitals", "--out", "x")
    with pytest.raises(IdentityError, match=r"expected hospitals/site/a, got hospitals/"):
        pki("sign", asked["request"], "--id", "a")
    assert pki_json("show")["certificates"] == []


def test_a_service_is_signed_when_its_role_is_granted() -> None:
    pki("init", "hospitals")
    asked = pki_json("request", "keyserver", "k", "--federation", "hospitals")
    assert pki_json("sign", asked["request"], "--id", "k", "--role", "keyserver")["role"] == "keyserver"


def test_a_certificate_is_not_overwritten_by_signing_again() -> None:
    pki("init", "hospitals")
    asked = pki_json("request", "site", "a", "--federation", "hospitals")
    pki("sign", asked["request"], "--id", "a")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        pki("sign", asked["request"], "--id", "a")
    assert len(pki_json("show")["certificates"]) == 1


@pytest.mark.parametrize("by", ["serial", "name", "file"])
def test_a_certificate_is_revoked_by_serial_name_or_file(by: str) -> None:
    pki("init", "hospitals")
    issued = pki_json("issue", "site", "a")
    pki("issue", "site", "b")
    text = {"serial": issued["serial"], "name": "site/a", "file": issued["certificate"]}[by]
    assert [who["id"] for who in pki_json("revoke", text)["revoked"]] == ["a"]
    assert {who["id"]: who["status"] for who in pki_json("show")["certificates"]} == {"a": "revoked", "b": "valid"}
    with pytest.raises(ConfigError, match=r"site/a .*was revoked"):
        Credentials.from_files(*(Path(issued[name]) for name in ("certificate", "key", "ca", "crl")))


def test_the_list_is_renewed_without_revoking() -> None:
    pki("init", "hospitals")
    before = Path("ca/crl.pem").read_bytes()
    assert pki_json("revoke", "--refresh")["revoked"] == []
    assert Path("ca/crl.pem").read_bytes() != before


@pytest.mark.parametrize("arguments", [["revoke"], ["revoke", "site/a", "--refresh"]])
def test_revoke_wants_one_thing(arguments: list[str]) -> None:
    pki("init", "hospitals")
    with pytest.raises(ConfigError, match="either a certificate or --refresh"):
        pki(*arguments)


def test_what_was_never_issued_is_not_revoked() -> None:
    pki("init", "hospitals")
    with pytest.raises(NotFound, match=r"no such certificate was issued here.*got 'site/zzz'"):
        pki("revoke", "site/zzz")


def test_show_says_who_a_certificate_or_request_stands_for() -> None:
    pki("init", "hospitals")
    pki("issue", "site", "a")
    asked = pki_json("request", "site", "b", "--federation", "hospitals")
    assert "site/a (serial " in pki("show", "site-a/certificate.pem")
    assert pki_json("show", asked["request"]) == {"federation": "hospitals", "role": "site", "id": "b"}
    assert "valid" in pki("show")


def test_an_encrypted_ca_asks_for_its_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    pki("init", "hospitals", "--encrypt", answers="horse\nhorse\n")
    with pytest.raises(ConfigError, match="cannot be opened"):
        pki("issue", "site", "a", answers="donkey\n")
    pki("issue", "site", "a", answers="horse\n")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "horse")
    pki("issue", "site", "b")
    assert len(pki_json("show")["certificates"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["issue", "admin", "a"], "there is no such role: expected site, coordinator"),
        (["issue", "site", "a/b"], "an id of role site is not valid"),
        (["init", "Bad Name"], "the name of the federation is not valid"),
        (["issue", "site", "a", "--ca", "none"], r"none/ca-key.pem cannot be read: got No such file"),
        (["show", "none"], r"none cannot be read: got No such file"),
        (["sign", "none.pem", "--id", "a"], r"none.pem cannot be read: got No such file"),
    ],
)
def test_wrong_input_gets_one_clear_error(arguments: list[str], sentence: str) -> None:
    pki("init", "hospitals")
    with pytest.raises(TacitError, match=sentence):
        pki(*arguments)


@pytest.mark.parametrize("command", ["init", "issue", "request", "sign", "revoke", "show"])
def test_every_command_explains_itself_and_can_print_json(command: str) -> None:
    output = pki(command, "--help")
    assert "--json" in output
