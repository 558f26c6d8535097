"""`tacit model`: the initial model of a job, and the versions that it made."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_CONFIG, ConfigOption, TrainerOption
from cli.output import JsonOption, bytes_text, print_json

if TYPE_CHECKING:
    from cli.model_files import Arrays

model_app = typer.Typer(help="Initial models, and the versions that a job made.", no_args_is_help=True)

OutOption = Annotated[Path, typer.Option("--out", "-o", help="The safetensors file to write.", show_default=False)]


@model_app.command()
def init(trainer: TrainerOption, out: OutOption, as_json: JsonOption = False) -> None:
    """Write a trainer's initial parameters, to start a job from."""
    from cli.trainers import initial_parameters, load_trainer

    tensors = dict(initial_parameters(load_trainer(trainer), trainer))
    _write(tensors, out, {}, as_json)


@model_app.command()
def get(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    out: OutOption,
    version: Annotated[int, typer.Option("--version", help="Which version; 0 is the newest.", min=0)] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Fetch a version of a job's model. Version 1 is the one that it started from."""
    fetched, tensors = asyncio.run(_fetch(config, job_id, version))
    _write(tensors, out, {"job_id": job_id, "model_version": fetched}, as_json)


async def _fetch(config: Path, job_id: str, version: int) -> "tuple[int, Arrays]":
    from cli.operator import Operator, OperatorConfig

    async with Operator.connect(OperatorConfig.from_file(config)) as operator:
        return await operator.get_model(job_id, version)


def _write(tensors: "Arrays", out: Path, facts: dict[str, object], as_json: bool) -> None:
    from cli.model_files import save_model

    save_model(tensors, out)
    parameters = sum(array.size for array in tensors.values())
    if as_json:
        print_json({**facts, "path": str(out), "tensors": len(tensors), "parameters": parameters})
        return
    version = f"version {facts['model_version']}: " if facts else ""
    typer.echo(f"{version}{len(tensors)} tensors, {parameters:,} parameters, {bytes_text(out.stat().st_size)} in {out}")
