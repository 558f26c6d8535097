"""Runs a Flower `NumPyClient` as it is, by its methods alone: Flower itself is not needed.

The arrays of a Flower client have an order and no names; here they are called "0", "1", ...
Source of the conventions: flwr 1.41.0, `flwr.client.NumPyClient` and its message adapter.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from client_sdk.trainer import Array, EvaluationResult, TrainingContext, TrainResult
from fl_core.errors import CodecError, ConfigError
from fl_core.rounds.plan import Scalar

Client: TypeAlias = Any
"""A Flower client: any object with `fit`, `evaluate` or `get_parameters`."""


@dataclass
class FlowerContext:
    """What `client_fn(context)` gets. `state` lives as long as the trainer; clients are built anew for each task.

    Args:
        node_id: a number for this node.
        node_config: what is particular to this node, such as `partition-id`.
        run_config: the training options of the job.
        state: whatever clients keep from task to task.
    """

    node_id: int = 0
    run_id: int = 0
    node_config: dict[str, Scalar] = field(default_factory=dict)
    run_config: dict[str, Scalar] = field(default_factory=dict)
    state: Any = field(default_factory=lambda: SimpleNamespace(config_records={}, metric_records={}, array_records={}))


class FlowerTrainer:
    """A trainer around a `NumPyClient` object, or around `client_fn(context)` or the older `client_fn(cid)`.

    Args:
        client: the object or the function.
        node_config: handed to `client_fn`; `partition-id` also serves as the older `cid`.

    Raises:
        ConfigError: `client` is neither.
    """

    def __init__(self, client: Client | Callable[..., Client], node_config: Mapping[str, Scalar] | None = None) -> None:
        self._context = FlowerContext(node_config=dict(node_config or {}))
        if hasattr(client, "fit") or hasattr(client, "numpy_client"):
            self._build: Callable[[], Client] = lambda: client
        elif callable(client):
            self._build = _builder(client, self._context)
        else:
            raise ConfigError(
                "this is no Flower client", expected="an object with fit(), or client_fn", got=type(client).__name__
            )

    def initial_parameters(self, config: Mapping[str, Scalar] | None = None) -> dict[str, Array]:
        """The client's own parameters, to start a job from.

        Raises:
            CodecError: `get_parameters` gave something else than a list of arrays.
            ConfigError: the client has no `get_parameters`.
        """
        arrays = self._method("get_parameters")(dict(config or {}))
        return {str(place): np.asarray(array) for place, array in enumerate(_check_list("get_parameters", arrays))}

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        """Run `fit`.

        Raises:
            CodecError: `fit` gave something else than (list of arrays, int, dict), or other shapes.
            ConfigError: the client has no `fit`, or the model's tensors are not "0", "1", ...
        """
        before = _ordered(parameters)
        arrays, num_samples, metrics = _check_triple("fit", self._method("fit", context)(before, _config(context)))
        arrays = _check_list("fit", arrays)
        if len(arrays) != len(parameters):
            raise CodecError("fit gave a wrong number of arrays", expected=len(parameters), got=len(arrays))
        after = {
            name: _like(name, array, parameters[name]) for name, array in zip(_names(parameters), arrays, strict=True)
        }
        return TrainResult(after, num_samples, _real_metrics(metrics))

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:
        """Run `evaluate`.

        Raises:
            CodecError: `evaluate` gave something else than (float, int, dict).
            ConfigError: the client has no `evaluate`, or the model's tensors are not "0", "1", ...
        """
        method = self._method("evaluate", context)
        loss, num_samples, metrics = _check_triple("evaluate", method(_ordered(parameters), _config(context)))
        return EvaluationResult(loss, num_samples, _real_metrics(metrics))

    def _method(self, name: str, context: TrainingContext | None = None) -> Callable[..., Any]:
        if context is not None:
            self._context.run_config = dict(context.training)
        client = self._build()
        # Flower's NumPyClient.to_client() wraps the object and keeps it under this name.
        client = getattr(client, "numpy_client", client)
        method = getattr(client, name, None)
        # The base class of Flower has every method; those that its module defines do nothing.
        if not callable(method) or (getattr(method, "__module__", None) or "").startswith("flwr."):
            raise ConfigError(
                f"the Flower client {type(client).__name__} has no {name}", fix=f"write {name} in its class"
            )
        found: Callable[..., Any] = method
        return found


def _builder(client_fn: Callable[..., Client], context: FlowerContext) -> Callable[[], Client]:
    names = list(inspect.signature(client_fn).parameters)
    if names == ["cid"]:
        cid = str(context.node_config.get("partition-id", context.node_id))
        return lambda: client_fn(cid)
    return lambda: client_fn(context)


def _names(parameters: Mapping[str, Array]) -> list[str]:
    names = [str(place) for place in range(len(parameters))]
    if set(names) != set(parameters):
        raise ConfigError(
            "the tensors of this model have no order that a Flower client knows",
            expected='names "0", "1", ...',
            got=", ".join(sorted(parameters)[:5]),
            fix="start the job from FlowerTrainer.initial_parameters()",
        )
    return names


def _ordered(parameters: Mapping[str, Array]) -> list[Array]:
    # A copy: clients that train in place must not change the model that the update is measured against.
    return [np.array(parameters[name]) for name in _names(parameters)]


def _config(context: TrainingContext) -> dict[str, Scalar]:
    return {**context.training, "server_round": context.round_id, "server-round": context.round_id}


def _check_triple(method: str, result: object) -> tuple[Any, Any, Mapping[str, object]]:
    if not isinstance(result, tuple) or len(result) != 3 or not isinstance(result[2], Mapping):
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise CodecError(f"{method} gave a wrong result", expected="a tuple of three, the last a dict", got=got)
    return result[0], result[1], result[2]


def _check_list(method: str, arrays: object) -> Sequence[object]:
    if not isinstance(arrays, (list, tuple)):
        raise CodecError(f"{method} gave no list", expected="a list of numpy arrays", got=type(arrays).__name__)
    return arrays


def _like(name: str, array: object, model: Array) -> Array:
    """`array` in the dtype of the model, when that loses no more than precision."""
    found = np.asarray(array)
    if not np.can_cast(found.dtype, model.dtype, casting="same_kind"):
        raise CodecError(f"tensor {name!r} has a wrong dtype", expected=model.dtype.name, got=found.dtype.name)
    return found.astype(model.dtype, copy=False)


def _real_metrics(metrics: Mapping[str, object]) -> dict[str, float]:
    """Flower allows text and bytes among the metrics; only numbers have a mean, so that only numbers go on."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
