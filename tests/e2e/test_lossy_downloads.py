"""A job that releases its model as lossy differences: over the network, all sites train from the same version."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_federation import HONEST, Steps, running_federation

from client_sdk import Array, TrainingContext, TrainResult
from fl_core.codec.tensors import manifest_of
from fl_core.wire.chunks import model_digest

SIZE = 40_000
MODEL: dict[str, Array] = {"w": np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)}


class Wanderer(Steps):
    """Moves every coordinate by another amount, and keeps what it was given to start from."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, dict[str, Array]] = {}

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        self.given[context.model_version] = {name: array.copy() for name, array in parameters.items()}
        parameters["w"] += np.random.default_rng(context.round_id).standard_normal(SIZE).astype(np.float32) * 0.01
        return TrainResult(parameters, 10)


@pytest.mark.parametrize(("form", "most"), [("int8-difference", 1.1), ("int4-difference", 0.5)])
async def test_sites_train_from_the_rounded_model_for_a_few_bits_a_coordinate(
    federation: Any, tmp_path: Path, free_port: Callable[[], int], form: str, most: float
) -> None:
    rounds = 4
    trainers = {name: Wanderer() for name in HONEST}
    async with running_federation(federation, tmp_path, free_port()) as whole:
        witnesses = [whole.join(name, trainer) for name, trainer in trainers.items()]
        reports = await whole.run_job(rounds, model=MODEL, model_format=form)
    plans = {plan.model_version: plan for plan in witnesses[0].plans}
    assert sorted(plans) == list(range(1, rounds + 1))
    for version, plan in plans.items():
        for trainer in trainers.values():
            assert model_digest(trainer.given[version], manifest_of(MODEL)) == plan.model_digest
    for report in reports[1:]:
        assert max(report.bytes_down.values()) < most * SIZE + 20_000
    assert min(reports[0].bytes_down.values()) > 4 * SIZE
    # Three rounds of 0.01 a coordinate: what the levels cannot say in one round comes in the next.
    exact = MODEL["w"].astype(np.float64)
    for round_id in range(1, rounds):
        exact += np.random.default_rng(round_id).standard_normal(SIZE).astype(np.float32) * 0.01
    last = trainers[HONEST[0]].given[rounds]["w"]
    level = 0.01 * 5 / ((1 << (int(form[3]) - 1)) - 1)
    assert np.abs(last - exact).max() < 0.6 * level + 2e-5
