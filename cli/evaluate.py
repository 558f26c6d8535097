"""`tacit evaluate`: let the connected sites measure a model."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_CONFIG, ConfigOption
from cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from cli.reports import EvaluationSummary


def evaluate(
    job_id: Annotated[str, typer.Argument(help="The job whose model is measured.")],
    version: Annotated[int, typer.Option("--version", help="Which version; 0 is the newest.", min=0)] = 0,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds that a site may take.", min=1)] = 600.0,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Let every connected site measure a model on its own data, and print the weighted means."""
    summary = asyncio.run(_evaluate(config, job_id, version, timeout_s))
    if as_json:
        print_json(summary.to_json())
    else:
        console().print(_table(summary))


async def _evaluate(config: Path, job_id: str, version: int, timeout_s: float) -> "EvaluationSummary":
    from cli.operator import Operator, OperatorConfig

    async with Operator.connect(OperatorConfig.from_file(config)) as operator:
        return await operator.evaluate(job_id, version, timeout_s)


def _table(summary: "EvaluationSummary") -> "Table":
    from rich import box
    from rich.table import Table

    metrics = sorted(summary.metrics)
    title = f"model version {summary.model_version}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("site", footer="all, weighted")
    table.add_column("samples", justify="right", footer=str(summary.num_samples))
    table.add_column("loss", justify="right", footer=f"{summary.loss:.4f}")
    for name in metrics:
        table.add_column(name, justify="right", footer=f"{summary.metrics[name]:.4f}")
    for site in summary.sites:
        values = (f"{site.metrics[name]:.4f}" if name in site.metrics else "-" for name in metrics)
        table.add_row(site.client_id, str(site.num_samples), f"{site.loss:.4f}", *values)
    for client_id in summary.missing:
        table.add_row(client_id, "-", "no answer", *("-" for _ in metrics), style="yellow")
    return table
