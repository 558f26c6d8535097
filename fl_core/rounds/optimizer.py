"""The server's optimiser: how the mean update of a round moves the global model. Pure numpy; the state is a value.

Source: McMahan et al. 2017 (FedAvg); Reddi et al. 2021, Adaptive Federated Optimization, algorithm 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from types import MappingProxyType

import numpy as np

from fl_core.codec.tensors import FloatVector
from fl_core.errors import CodecError, PlanError


class OptimizerName(StrEnum):
    """Which rule."""

    FEDAVG = "fedavg"
    FEDADAGRAD = "fedadagrad"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """A rule and its numbers.

    Args:
        name: fedavg adds lr times the (momentum of the) mean update; the others scale each coordinate.
        lr: learning rate of the server, > 0.
        momentum: of fedavg, 0 to below 1.
        beta1: decay of the first moment, 0 to below 1; not used by fedavg.
        beta2: decay of the second moment, 0 to below 1; not used by fedavg and fedadagrad.
        tau: adaptivity, > 0, model units; not used by fedavg.

    Raises:
        PlanError: a number is out of range.
    """

    name: OptimizerName = OptimizerName.FEDAVG
    lr: float = 1.0
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("lr", "tau"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise PlanError(
                    f"the optimizer's {name} is out of range", expected="a finite number > 0", got=getattr(self, name)
                )
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(
                    f"the optimizer's {name} is out of range", expected="0 <= x < 1", got=getattr(self, name)
                )


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """What a rule remembers between rounds: how many steps it took, and vectors (d,) float32 by name."""

    steps: int = 0
    slots: Mapping[str, FloatVector] = field(default_factory=lambda: MappingProxyType({}), repr=False)


def slot_names(spec: OptimizerSpec) -> tuple[str, ...]:
    """Names of the vectors that the rule remembers; none when it remembers nothing."""
    if spec.name is OptimizerName.FEDAVG:
        return ("velocity",) if spec.momentum else ()
    return ("first_moment", "second_moment")


def change(spec: OptimizerSpec, mean_update: FloatVector, state: OptimizerState) -> tuple[FloatVector, OptimizerState]:
    """What to add to the model after one round.

    Args:
        spec: the rule.
        mean_update: (d,) float32, weighted mean of the sites' updates, model units.
        state: after the round before; a new `OptimizerState()` in the first.

    Returns:
        (d,) float32 to be added to the parameters, and the next state. The arguments are not changed.

    Raises:
        CodecError: the update or the result is not finite, or the state belongs to another model or rule.
    """
    _check_state(spec, mean_update, state)
    with np.errstate(over="ignore", invalid="ignore"):
        result, slots = _average(spec, mean_update, state) if _is_average(spec) else _adapt(spec, mean_update, state)
    if not np.isfinite(result).all():
        raise CodecError("the step of the server's optimizer is not finite", fix="lower lr, or clip updates more")
    return result, OptimizerState(state.steps + 1, MappingProxyType(slots))


def step(
    spec: OptimizerSpec, parameters: FloatVector, mean_update: FloatVector, state: OptimizerState
) -> tuple[FloatVector, OptimizerState]:
    """Move a flat model; as `change`, added to `parameters` in float32.

    Use `change` and `codec.tensors.add_update` for a model that has float64 or large integers.

    Args:
        spec: the rule.
        parameters: (d,) float32.
        mean_update: (d,) float32.
        state: after the round before.

    Returns:
        The new parameters and the next state. The arguments are not changed.

    Raises:
        CodecError: as `change`, or the lengths differ.
    """
    if parameters.shape != mean_update.shape:
        raise CodecError("update and model differ in length", expected=parameters.shape, got=mean_update.shape)
    result, next_state = change(spec, mean_update, state)
    result += parameters
    if not np.isfinite(result).all():
        raise CodecError("the new model is not finite", fix="lower lr, or clip updates more")
    return result, next_state


def _is_average(spec: OptimizerSpec) -> bool:
    return spec.name is OptimizerName.FEDAVG


def _average(
    spec: OptimizerSpec, mean_update: FloatVector, state: OptimizerState
) -> tuple[FloatVector, dict[str, FloatVector]]:
    if not spec.momentum:
        return mean_update * np.float32(spec.lr), {}
    velocity = _slot(state, "velocity", mean_update) * np.float32(spec.momentum) + mean_update
    return velocity * np.float32(spec.lr), {"velocity": velocity}


def _adapt(
    spec: OptimizerSpec, mean_update: FloatVector, state: OptimizerState
) -> tuple[FloatVector, dict[str, FloatVector]]:
    beta1, beta2 = np.float32(spec.beta1), np.float32(spec.beta2)
    one = np.float32(1)
    first = beta1 * _slot(state, "first_moment", mean_update) + (one - beta1) * mean_update
    # The paper starts the second moment at tau squared, so that the first step is no larger than the later ones.
    start = spec.tau**2 if state.steps == 0 else 0.0
    second = _slot(state, "second_moment", mean_update, start)
    square = mean_update * mean_update
    match spec.name:
        case OptimizerName.FEDADAGRAD:
            second = second + square
        case OptimizerName.FEDADAM:
            second = beta2 * second + (one - beta2) * square
        case _:
            second = second - (one - beta2) * square * np.sign(second - square)
    result: FloatVector = (np.float32(spec.lr) * first / (np.sqrt(second) + np.float32(spec.tau))).astype(np.float32)
    return result, {"first_moment": first, "second_moment": second}


def _slot(state: OptimizerState, name: str, like: FloatVector, start: float = 0.0) -> FloatVector:
    return state.slots[name] if name in state.slots else np.full_like(like, start)


def _check_state(spec: OptimizerSpec, mean_update: FloatVector, state: OptimizerState) -> None:
    if not np.isfinite(mean_update).all():
        raise CodecError("a mean update holds a NaN or infinite coordinate", expected="finite")
    wanted = set(slot_names(spec)) if state.steps else set()
    if set(state.slots) != wanted:
        raise CodecError("an optimizer's state is of another rule", expected=sorted(wanted), got=sorted(state.slots))
    for name, slot in state.slots.items():
        if slot.shape != mean_update.shape or slot.dtype != np.float32:
            raise CodecError(f"the optimizer's {name} is of another model", expected=mean_update.shape, got=slot.shape)
