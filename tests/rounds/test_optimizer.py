"""The server's optimisers against the formulas of their papers, step by step."""

from typing import Any

import numpy as np
import pytest

from fl_core.errors import CodecError, PlanError
from fl_core.rounds.optimizer import OptimizerName, OptimizerSpec, OptimizerState, change, slot_names, step

UPDATES = [np.random.default_rng(seed).normal(0, 0.1, 7).astype(np.float32) for seed in range(4)]


def by_the_paper(spec: OptimizerSpec) -> np.ndarray:
    """Coordinate by coordinate in Python floats."""
    model = [0.0] * 7
    first, second, velocity = [0.0] * 7, [spec.tau**2] * 7, [0.0] * 7
    for update in UPDATES:
        for j, delta in enumerate(map(float, update)):
            if spec.name is OptimizerName.FEDAVG:
                velocity[j] = spec.momentum * velocity[j] + delta
                model[j] += spec.lr * velocity[j]
                continue
            first[j] = spec.beta1 * first[j] + (1 - spec.beta1) * delta
            if spec.name is OptimizerName.FEDADAGRAD:
                second[j] += delta**2
            elif spec.name is OptimizerName.FEDADAM:
                second[j] = spec.beta2 * second[j] + (1 - spec.beta2) * delta**2
            else:
                second[j] -= (1 - spec.beta2) * delta**2 * np.sign(second[j] - delta**2)
            model[j] += spec.lr * first[j] / (second[j] ** 0.5 + spec.tau)
    return np.array(model)


@pytest.mark.parametrize(
    "spec",
    [
        OptimizerSpec(),
        OptimizerSpec(lr=0.5, momentum=0.9),
        OptimizerSpec(OptimizerName.FEDADAGRAD, lr=0.1),
        OptimizerSpec(OptimizerName.FEDADAM, lr=0.1),
        OptimizerSpec(OptimizerName.FEDYOGI, lr=0.1),
    ],
    ids=lambda spec: f"{spec.name.value}-{spec.momentum}",
)
def test_an_optimizer_follows_its_paper(spec: OptimizerSpec) -> None:
    model, state = np.zeros(7, np.float32), OptimizerState()
    for update in UPDATES:
        model, state = step(spec, model, update, state)
    np.testing.assert_allclose(model, by_the_paper(spec), rtol=1e-4, atol=1e-6)
    assert model.dtype == np.float32
    assert state.steps == len(UPDATES)
    assert set(state.slots) == set(slot_names(spec))
    assert all(slot.dtype == np.float32 for slot in state.slots.values())


def test_a_step_changes_none_of_its_arguments() -> None:
    spec, model, update = OptimizerSpec(OptimizerName.FEDADAM), np.ones(7, np.float32), UPDATES[0].copy()
    _, state = change(spec, update, OptimizerState())
    kept = {name: slot.copy() for name, slot in state.slots.items()}
    step(spec, model, update, state)
    assert model.tolist() == [1.0] * 7
    assert update.tolist() == UPDATES[0].tolist()
    assert all((state.slots[name] == kept[name]).all() for name in kept)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(CodecError):
        change(OptimizerSpec(), np.array([wrong], np.float32), OptimizerState())


def test_a_step_that_overflows_is_refused() -> None:
    with pytest.raises(CodecError, match="lower lr"):
        change(OptimizerSpec(lr=1e30), np.array([1e30], np.float32), OptimizerState())


def test_a_state_of_another_model_or_rule_is_refused() -> None:
    adam, average = OptimizerSpec(OptimizerName.FEDADAM), OptimizerSpec()
    _, state = change(adam, UPDATES[0], OptimizerState())
    with pytest.raises(CodecError, match="another model"):
        change(adam, UPDATES[0][:3], state)
    with pytest.raises(CodecError, match="another rule"):
        change(average, UPDATES[0], state)
    with pytest.raises(CodecError, match="length"):
        step(average, np.zeros(3, np.float32), UPDATES[0], OptimizerState())


@pytest.mark.parametrize(
    "numbers", [{"lr": 0}, {"lr": float("nan")}, {"momentum": 1.0}, {"beta1": -0.1}, {"beta2": 1.0}, {"tau": 0}]
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        OptimizerSpec(**numbers)
