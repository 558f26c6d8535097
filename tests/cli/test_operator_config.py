"""The operator's configuration, and jobs as files: what is wrong is named."""

from pathlib import Path

import numpy as np
import pytest

from cli.job_files import read_job
from cli.model_files import load_model, save_model
from cli.operator import OperatorConfig
from fl_core.errors import ConfigError, PlanError

GOOD = "coordinator: localhost:7001\ncertificate: c.pem\nkey: k.pem\nca: ca.pem\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "operator.yaml"
    path.write_text(text)
    return path


def test_paths_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = OperatorConfig.from_file(written(tmp_path, GOOD))
    assert config.certificate == tmp_path / "c.pem"
    assert config.crl is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GOOD + "coordinatr: x\n", "coordinatr"),
        (GOOD.replace("key: k.pem\n", ""), "'key'"),
        (GOOD.replace("localhost:7001", "localhost"), "host:port"),
        (GOOD.replace("k.pem", "7"), "'key'"),
        ("just text", "lines of"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        OperatorConfig.from_file(written(tmp_path, text))


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    config = OperatorConfig.from_file(written(tmp_path, GOOD))
    with pytest.raises(ConfigError, match=r"c\.pem cannot be read"):
        config.credentials()


def test_a_job_brings_its_model_from_beside_the_file(tmp_path: Path) -> None:
    save_model({"w": np.ones((2, 3), np.float32)}, tmp_path / "init.safetensors")
    job = tmp_path / "job.yaml"
    job.write_text("name: test\nrounds: 2\nmodel: init.safetensors\n")
    spec, tensors = read_job(job)
    assert (spec.name, spec.rounds) == ("test", 2)
    assert tensors["w"].shape == (2, 3)


def test_a_job_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: test\nrounds: 2\n")
    with pytest.raises(ConfigError, match="tacit model init"):
        read_job(job)


def test_an_unknown_key_of_a_job_is_named_with_its_file(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: test\nround: 2\nmodel: init.safetensors\n")
    with pytest.raises(PlanError, match=r"job\.yaml.*'round'.*'rounds'"):
        read_job(job)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 64])
def test_a_model_that_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        load_model(path)
