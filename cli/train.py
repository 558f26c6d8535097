"""`tacit train`: submit a job and follow it to its end."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_CONFIG, ConfigOption
from cli.output import JsonOption, console, print_json, progress_console, say

if TYPE_CHECKING:
    from cli.following import JobHistory
    from cli.model_files import Arrays
    from cli.operator import OperatorConfig
    from fl_core.rounds.job import JobSpec


def train(
    job: Annotated[Path, typer.Argument(help="The job: a YAML file that also names the initial model.")],
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Stay until the job ends.")] = True,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Submit a job, then show its rounds as they come. Ctrl-C stops watching, not the job."""
    from cli.job_files import read_job
    from cli.operator import OperatorConfig
    from fl_core.errors import PlanError

    settings = OperatorConfig.from_file(config)
    spec, tensors = read_job(job)
    history = asyncio.run(_submit_and_follow(settings, spec, tensors, follow=follow))
    if as_json:
        print_json(history.to_json())
    elif follow:
        console().print(history.render())
    else:
        console().print(history.job_id)
    if history.failure:
        raise PlanError(
            f"the job {history.job_id} {history.failure}", fix="see `tacit status` and the coordinator's log"
        )


async def _submit_and_follow(
    settings: "OperatorConfig", spec: "JobSpec", tensors: "Arrays", *, follow: bool
) -> "JobHistory":
    from cli.following import JobHistory, follow_job
    from cli.operator import Operator

    async with Operator.connect(settings) as operator:
        job_id = await operator.submit(spec, tensors)
        say(f"submitted {job_id}")
        history = JobHistory(job_id)
        if follow:
            await follow_job(operator, history, progress_console())
        return history
