"""Jobs as files: the keys of `JobSpec`, and `model`, the initial model beside them."""

from pathlib import Path

from cli.model_files import Arrays, load_model
from fl_core.errors import ConfigError, PlanError
from fl_core.rounds.job import JobSpec, job_from_mapping
from services.runtime.settings import read_yaml


def read_job(path: Path) -> tuple[JobSpec, Arrays]:
    """Read a job and its initial model.

    Raises:
        ConfigError: a file cannot be read, or `model` is missing.
        PlanError: the job cannot hold.
    """
    content = read_yaml(path)
    model = content.pop("model", None)
    if not isinstance(model, str):
        raise ConfigError(
            f"the job {path} names no initial model",
            expected="a line `model: init.safetensors`",
            fix="make one with `tacit model init --trainer package.module:factory --out init.safetensors`",
        )
    try:
        spec = job_from_mapping(content)
    except PlanError as error:
        raise PlanError(f"{path}: {error.what}", expected=error.expected, got=error.got, fix=error.fix) from error
    return spec, load_model(path.parent / model)
