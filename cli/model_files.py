"""Models as safetensors files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fl_core.errors import ConfigError

Arrays = dict[str, npt.NDArray[np.generic]]


def load_model(path: Path) -> Arrays:
    """Read a model.

    Raises:
        ConfigError: the file cannot be read or is no safetensors file.
    """
    try:
        arrays: Arrays = load_file(path)
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise ConfigError(
            f"the model {path} cannot be read", got=got, fix="make one with `tacit model init`"
        ) from error
    except SafetensorError as error:
        raise ConfigError(f"the model {path} is no safetensors file", got=str(error)) from error
    if not arrays:
        raise ConfigError(f"the model {path} holds no tensor")
    return arrays


def save_model(tensors: Arrays, path: Path) -> None:
    """Write a model, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the model {path} cannot be written", got=str(error)) from error
