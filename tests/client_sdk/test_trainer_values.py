"""Values around a trainer, and the thread that runs it."""

import subprocess
import sys

import numpy as np
import pytest

import client_sdk
from client_sdk import EvaluationResult, TrainingContext, TrainResult
from fl_core.errors import CodecError


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "7", None])
def test_a_sample_count_must_be_a_positive_whole_number(count: object) -> None:
    with pytest.raises(CodecError, match="num_samples is out of range"):
        TrainResult({}, count)  # type: ignore[arg-type]


def test_numpy_scalars_are_taken_and_become_numbers() -> None:
    result = EvaluationResult(np.float32(0.5), np.int64(3), {"accuracy": np.float64(0.25)})  # type: ignore[arg-type]
    assert (type(result.loss), type(result.num_samples)) == (float, int)
    assert dict(result.metrics) == {"accuracy": 0.25}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_must_be_finite(loss: float) -> None:
    with pytest.raises(CodecError, match="loss is not finite"):
        EvaluationResult(loss, 3)


def test_seeds_differ_by_site_and_round_and_not_by_attempt() -> None:
    base = TrainingContext("job", 1, 1, 0, "alpha")
    assert base.seed == TrainingContext("job", 1, 2, 0, "alpha").seed
    others = [
        TrainingContext("job", 2, 1, 0, "alpha"),
        TrainingContext("job", 1, 1, 0, "beta"),
        TrainingContext("job", 1, 1, 0, "alpha", {"seed": 1}),
    ]
    assert len({base.seed, *(other.seed for other in others)}) == 4
    assert 0 <= base.seed < 2**31


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(client_sdk, name) is not None for name in client_sdk.__all__)
    with pytest.raises(AttributeError):
        client_sdk.Nothing  # noqa: B018


def test_the_whole_sdk_loads_without_heavy_packages() -> None:
    code = (
        "import sys, client_sdk\n"
        "[getattr(client_sdk, name) for name in client_sdk.__all__]\n"
        "print([n for n in ('torch', 'numba', 'sqlalchemy', 'fsspec', 'flwr') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
