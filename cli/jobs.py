"""`tacit jobs`: what to do with jobs that were submitted."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cli.options import DEFAULT_CONFIG, ConfigOption
from cli.output import JsonOption, print_json

jobs_app = typer.Typer(help="Stop jobs; `tacit status` lists them.", no_args_is_help=True)


@jobs_app.callback()
def jobs() -> None:
    """Stop jobs; `tacit status` lists them."""


@jobs_app.command()
def cancel(
    job_id: Annotated[str, typer.Argument(help="The job, as `tacit train` named it.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Stop a job. The rounds that were committed stay, and so do their models."""
    asyncio.run(_cancel(config, job_id))
    if as_json:
        print_json({"job_id": job_id, "cancelled": True})
    else:
        typer.echo(f"cancelled {job_id}")


async def _cancel(config: Path, job_id: str) -> None:
    from cli.operator import Operator, OperatorConfig

    async with Operator.connect(OperatorConfig.from_file(config)) as operator:
        await operator.cancel(job_id)
