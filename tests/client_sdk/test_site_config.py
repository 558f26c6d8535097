"""A site's configuration: read from YAML, one clear error for each mistake."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml

from client_sdk import SiteConfig, SitePolicy
from fl_core.errors import ConfigError
from fl_core.secagg.degrees import Profile

GOOD: dict[str, Any] = {
    "coordinator": "fl.example.org:7001",
    "certificate": "certificate.pem",
    "key": "key.pem",
    "ca": "ca.pem",
    "state_dir": "state",
}


def write(folder: Path, settings: object) -> Path:
    path = folder / "site.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = SiteConfig.from_file(write(tmp_path, {**GOOD, "ca": "/etc/tacit/ca.pem", "crl": "../crl.pem"}))
    assert config.certificate == tmp_path / "certificate.pem"
    assert config.ca == Path("/etc/tacit/ca.pem")
    assert config.crl == tmp_path / "../crl.pem"


def test_defaults_require_secure_aggregation_and_record_nothing(tmp_path: Path) -> None:
    config = SiteConfig.from_file(write(tmp_path, GOOD))
    assert config.policy == SitePolicy(require_secure_aggregation=True, min_cohort=3)
    assert config.record_plain_updates is None


def test_every_key_is_read(tmp_path: Path) -> None:
    settings = {
        **GOOD,
        "client_id": "alpha",
        "record_plain_updates": "plain",
        "policy": {
            "require_secure_aggregation": False,
            "min_cohort": 5,
            "aggregator_id": "a",
            "keyserver_id": "k",
            "min_profile": "honest_but_curious",
            "min_corrupt": 0.1,
            "min_cohort_difference": 4,
            "trusted_sites": ["beta", "gamma"],
            "min_trusted": 2,
        },
        "log": {"level": "debug", "format": "json"},
    }
    config = SiteConfig.from_file(write(tmp_path, settings))
    assert config.policy == SitePolicy(False, 5, "a", "k", Profile.HONEST_BUT_CURIOUS, 0.1, 4, ("beta", "gamma"), 2)
    assert (config.client_id, config.log.level, config.log.format) == ("alpha", "debug", "json")


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = SiteConfig.from_file(write(tmp_path, GOOD))
    with pytest.raises(FrozenInstanceError):
        config.coordinator = "elsewhere:1"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("coordinator: [", "a mistake in line"),
        ("- a\n- b\n", "the file holds no settings"),
        ("", "the file holds no settings"),
        ({k: v for k, v in GOOD.items() if k != "key"}, "key is missing"),
        ({**GOOD, "coordinater": "x"}, "did you mean coordinator"),
        ({**GOOD, "policy": {"min_cohorts": 3}}, "did you mean policy.min_cohort"),
        ({**GOOD, "coordinator": "fl.example.org"}, "host:port"),
        ({**GOOD, "coordinator": "fl.example.org:70000"}, "host:port"),
        ({**GOOD, "coordinator": 7001}, "host:port"),
        ({**GOOD, "key": 5}, "key is no path"),
        ({**GOOD, "client_id": 5}, "client_id is no name"),
        ({**GOOD, "policy": 3}, "policy is no section"),
        ({**GOOD, "policy": {"min_cohort": 0}}, "policy.min_cohort is out of range"),
        ({**GOOD, "policy": {"min_cohort": "many"}}, "policy.min_cohort is out of range"),
        ({**GOOD, "policy": {"require_secure_aggregation": "no!"}}, "true or false"),
        ({**GOOD, "policy": {"aggregator_id": 7}}, "policy.aggregator_id is no name"),
        ({**GOOD, "log": {"level": "loud"}}, "log.level is unknown"),
    ],
)
def test_a_mistake_gives_one_error_that_names_the_file_and_the_key(tmp_path: Path, settings: object, says: str) -> None:
    path = write(tmp_path, settings)
    with pytest.raises(ConfigError, match=r"site\.yaml") as caught:
        SiteConfig.from_file(path)
    assert says in str(caught.value)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        SiteConfig.from_file(tmp_path / "nothing.yaml")
