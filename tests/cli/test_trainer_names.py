"""Trainers by name: what cannot be imported or is no trainer is refused with its reason."""

from pathlib import Path

import numpy as np
import pytest

from cli.main import run
from cli.model_files import load_model
from cli.trainers import initial_parameters, load_trainer
from fl_core.errors import ConfigError

MODULE = """
import numpy as np

class Mine:
    def train(self, parameters, context): ...
    def evaluate(self, parameters, context): ...
    def initial_parameters(self):
        return {"w": np.arange(4, dtype=np.float32)}

def make():
    return Mine()

def nothing():
    return 7

constant = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"site_code_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("factory", ["make", "Mine"])
def test_a_factory_and_a_class_both_make_a_trainer(module: str, factory: str) -> None:
    name = f"{module}:{factory}"
    assert list(initial_parameters(load_trainer(name), name)["w"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        ("", "cannot be read"),
        (":absent", "has no absent"),
        (":nothing", "gives no trainer"),
        (":constant", "cannot be called"),
    ],
)
def test_what_is_no_trainer_is_refused_with_its_reason(module: str, suffix: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_trainer(module + suffix)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="nowhere_at_all"):
        load_trainer("nowhere_at_all:make")


def test_model_init_writes_the_trainer_s_own_parameters(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "init.safetensors"
    with pytest.raises(SystemExit) as left:
        run(["model", "init", "--trainer", f"{module}:make", "--out", str(out)])
    assert left.value.code == 0
    assert "4 parameters" in capsys.readouterr().out
    np.testing.assert_array_equal(load_model(out)["w"], np.arange(4, dtype=np.float32))
