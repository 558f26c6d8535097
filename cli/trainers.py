"""Trainers by name: `package.module:factory`, as `--trainer` takes them."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from client_sdk.trainer import Array, Trainer
from fl_core.errors import ConfigError


def load_trainer(name: str) -> Trainer:
    """Import a factory and let it make the trainer. The current folder is searched first, as `python -m` does.

    Args:
        name: `package.module:factory`; the factory takes no argument, or is a trainer itself.

    Raises:
        ConfigError: it cannot be imported, or gives no trainer.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError("--trainer cannot be read", expected="package.module:factory", got=name)
    made = _make(_factory(module_name, attribute), name)
    if not (hasattr(made, "train") and hasattr(made, "evaluate")):
        raise ConfigError(
            f"{name} gives no trainer",
            expected="an object with train and evaluate",
            got=type(made).__name__,
            fix="wrap a torch module in TorchTrainer and a Flower client in FlowerTrainer",
        )
    trainer: Trainer = made
    return trainer


def initial_parameters(trainer: Trainer, name: str) -> Mapping[str, Array]:
    """The parameters that a trainer starts from.

    Raises:
        ConfigError: it has no method `initial_parameters`.
    """
    method: Callable[[], Mapping[str, Array]] | None = getattr(trainer, "initial_parameters", None)
    if method is None:
        raise ConfigError(
            f"the trainer of {name} cannot say its initial parameters",
            fix="give it a method initial_parameters() that returns a dict of arrays, as TorchTrainer has",
        )
    return method()


def _factory(module_name: str, attribute: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"module {module_name} cannot be imported",
            got=str(error),
            fix="run in the folder that holds it, or install it with what it needs",
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError(f"module {module_name} has no {attribute}", fix="check the part behind the colon")
    return getattr(module, attribute)


def _make(factory: Any, name: str) -> Any:
    is_trainer = hasattr(factory, "train") and not isinstance(factory, type)
    if is_trainer:
        return factory
    if not callable(factory):
        raise ConfigError(f"{name} cannot be called", expected="a function or class without arguments")
    return factory()
