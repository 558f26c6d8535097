"""Settings: one sentence for each broken config, paths from the folder of the file, the environment on top."""

from pathlib import Path
from typing import Any

import pytest

from fl_core.errors import ConfigError
from fl_core.transport.identity import Role
from services.runtime.settings import ServiceSettings, split_address

GOOD = """
service_id: agg-1
listen: 127.0.0.1:7001
certificate: pki/certificate.pem
key: pki/key.pem
ca: pki/ca.pem
state_dir: state
"""


class StoredSettings(ServiceSettings):
    """A service with a database and blobs."""

    database_url: str = ""
    blob_url: str = ""


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "service.yaml"
    path.write_text(content)
    return path


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = ServiceSettings.from_file(write(tmp_path, GOOD))
    assert settings.key == tmp_path / "pki" / "key.pem"
    assert settings.state_dir == tmp_path / "state"
    assert settings.crl is None
    assert settings.advertised == "127.0.0.1:7001"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///state/a.db", "sqlite:///{base}/state/a.db"),
        ("sqlite:////var/a.db", "sqlite:////var/a.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
    ],
)
def test_a_relative_database_counts_from_the_folder_of_the_file(tmp_path: Path, given: str, expected: str) -> None:
    settings = StoredSettings.from_file(write(tmp_path, f"{GOOD}database_url: '{given}'\n"))
    assert settings.database_url == expected.format(base=tmp_path)


@pytest.mark.parametrize(("given", "expected"), [("blobs", "{base}/blobs"), ("s3://b/p", "s3://b/p")])
def test_a_relative_blob_folder_counts_from_the_folder_of_the_file(tmp_path: Path, given: str, expected: str) -> None:
    settings = StoredSettings.from_file(write(tmp_path, f"{GOOD}blob_url: {given}\n"))
    assert settings.blob_url == expected.format(base=tmp_path)


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACIT_LISTEN", "0.0.0.0:9000")
    monkeypatch.setenv("TACIT_LOG__LEVEL", "debug")
    settings = ServiceSettings.from_file(write(tmp_path, GOOD + "log: {format: console}\n"))
    assert settings.listen == "0.0.0.0:9000"
    assert (settings.log.level, settings.log.format) == ("debug", "console")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("lisen: 1\n", r"unknown key 'lisen'.*; did you mean 'listen'\?"),
        ("log: {levle: info}\n", r"unknown key 'log.levle'"),
        (
            "grace_seconds: soon\n",
            r"'grace_seconds' in the config .* is wrong: expected Input should be a valid number",
        ),
        ("advertise: nowhere\n", r"an address cannot be read: expected host:port, got 'nowhere'"),
        ("a: [\n", r"is not valid YAML: .*got an error at line"),
        ("log: {level: loud}\n", r"'log.level' in the config .* is wrong"),
    ],
)
def test_a_broken_config_gets_one_sentence(tmp_path: Path, change: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        ServiceSettings.from_file(write(tmp_path, GOOD + change))
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"service.yaml lacks 'state_dir'"):
        ServiceSettings.from_file(write(tmp_path, GOOD.replace("state_dir: state\n", "")))


@pytest.mark.parametrize("content", ["", "- a\n", "just text", "1: 2\n"])
def test_a_config_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="has the wrong form"):
        ServiceSettings.from_file(write(tmp_path, content))


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml cannot be read: .*got No such file or directory"):
        ServiceSettings.from_file(tmp_path / "nowhere.yaml")


def test_a_config_cannot_build_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        ServiceSettings.from_file(write(tmp_path, "service_id: !!python/object/apply:os.getcwd []\n"))


def test_the_id_must_be_the_one_in_the_certificate(federation: Any) -> None:
    settings = federation.settings(ServiceSettings, Role.AGGREGATOR, "agg-1")
    wrong = settings.model_copy(update={"service_id": "agg-2"})
    assert settings.credentials().identity.id == "agg-1"
    with pytest.raises(ConfigError, match="service_id is not the id in the certificate: expected agg-1, got agg-2"):
        wrong.credentials()


def test_settings_of_a_service_are_fixed(federation: Any) -> None:
    settings = federation.settings(ServiceSettings, Role.AGGREGATOR, "agg-1")
    with pytest.raises(ValueError, match="frozen"):
        settings.listen = "x:1"


@pytest.mark.parametrize(
    ("address", "parts"), [("a:1", ("a", 1)), ("[::1]:70", ("::1", 70)), ("127.0.0.1:0", ("127.0.0.1", 0))]
)
def test_an_address_has_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "a", ":1", "a:", "a:b", "a:65536", "a:-1", "a:٣"])
def test_a_broken_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="an address cannot be read"):
        split_address(address)
