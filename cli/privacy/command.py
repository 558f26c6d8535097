"""`tacit privacy plan` and `tacit privacy report`."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_CONFIG, ConfigOption
from cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cli.privacy.forecast import MechanismForecast
    from fl_core.rounds.privacy_terms import Mechanism

privacy_app = typer.Typer(help="What a privacy budget buys, and what a job has spent of it.", no_args_is_help=True)


@privacy_app.command("plan")
def plan(
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds, each of which releases one sum.")],
    sites: Annotated[int, typer.Option("--sites", help="Sites that are connected.")],
    delta: Annotated[float, typer.Option("--delta", help="Delta of the guarantee.")],
    target_epsilon: Annotated[
        float | None, typer.Option("--target-epsilon", help="Work out the noise for this epsilon.", show_default=False)
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option("--noise-multiplier", help="Work out the epsilon of this noise.", show_default=False),
    ] = None,
    sampling: Annotated[
        float, typer.Option("--sampling", help="Chance of a site, or of a sample with local noise; 1 is everybody.")
    ] = 1.0,
    parameters: Annotated[int, typer.Option("--parameters", help="Parameters of the model.")] = 100_000,
    steps: Annotated[int, typer.Option("--steps", help="Steps of local training in a round.")] = 1,
    survivors: Annotated[
        int | None,
        typer.Option("--survivors", help="Fewest sites of a sum; two thirds and one unless given.", show_default=False),
    ] = None,
    colluders: Annotated[int, typer.Option("--colluders", help="Sites whose noise is not counted on.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="A PNG of epsilon by round.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """From an epsilon to the noise that it needs, or back, for each mechanism, with epsilon by round."""
    from cli.privacy.forecast import PrivacyQuestion, foresee_epsilon, foresee_noise
    from cli.privacy.prv import prv_epsilon
    from fl_core.errors import ConfigError
    from fl_core.privacy.budget import PrivacyBudget

    if (target_epsilon is None) == (noise_multiplier is None):
        raise ConfigError("one figure leads to the other", fix="give --target-epsilon or --noise-multiplier, not both")
    budget = PrivacyBudget(1.0 if target_epsilon is None else target_epsilon, delta)
    question = PrivacyQuestion(rounds, sites, delta, parameters, sampling, steps, survivors, colluders)
    forecasts = (
        foresee_noise(question, budget) if noise_multiplier is None else foresee_epsilon(question, noise_multiplier)
    )
    tighter = {forecast.mechanism: prv_epsilon(forecast.event, rounds, delta) for forecast in forecasts}
    if plot is not None:
        from cli.privacy.plot import draw_forecasts

        draw_forecasts(forecasts, delta, plot)
    if as_json:
        print_json({"rounds": rounds, "delta": delta, "mechanisms": [_facts(one, tighter) for one in forecasts]})
        return
    _print(forecasts, tighter, sampling)
    if plot is not None:
        console().print(f"plot: {plot}")


@privacy_app.command("report")
def report(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    config: ConfigOption = DEFAULT_CONFIG,
    out: Annotated[
        Path | None, typer.Option("--out", help="A file for the report; stdout without it.", show_default=False)
    ] = None,
) -> None:
    """What a private job has spent: its ledger and those of its sites, countersigned, as JSON."""
    import json

    from cli.operator import Operator, OperatorConfig

    async def fetch() -> str:
        async with Operator.connect(OperatorConfig.from_file(config)) as operator:
            return await operator.privacy_report(job_id)

    text = json.dumps(json.loads(asyncio.run(fetch())), indent=2)
    if out is None:
        typer.echo(text)
        return
    out.write_text(text + "\n")
    console().print(f"report: {out}")


def _facts(forecast: "MechanismForecast", tighter: "Mapping[Mechanism, float | None]") -> dict[str, object]:
    return {
        "mechanism": forecast.mechanism.value,
        "unit": forecast.mechanism.unit,
        "noise_multiplier": forecast.noise_multiplier,
        "epsilon": forecast.epsilon,
        "epsilon_to_who_knows_the_cohort": forecast.epsilon_without_sampling,
        "epsilon_prv": tighter[forecast.mechanism],
        "noise_of_the_mean_in_clips": forecast.mean_noise,
        "noise_of_the_mean_of_fewest_in_clips": forecast.mean_noise_of_fewest,
        "epsilon_by_round": forecast.curve,
    }


def _print(
    forecasts: "Sequence[MechanismForecast]", tighter: "Mapping[Mechanism, float | None]", sampling: float
) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mechanism")
    table.add_column("unit")
    for title in ("noise multiplier", "epsilon", "PRV", "cohort known", "noise of the mean", "of fewest"):
        table.add_column(title, justify="right")
    for one in forecasts:
        prv = tighter[one.mechanism]
        table.add_row(
            one.mechanism.value,
            one.mechanism.unit,
            f"{one.noise_multiplier:.4g}",
            f"{one.epsilon:.4g}",
            "-" if prv is None else f"{prv:.4g}",
            f"{one.epsilon_without_sampling:.4g}",
            "-" if one.mean_noise is None else f"{one.mean_noise:.3g} clips",
            "-" if one.mean_noise_of_fewest is None else f"{one.mean_noise_of_fewest:.3g} clips",
        )
    console().print(table)
    by_round = Table(box=box.SIMPLE_HEAD, title="epsilon by round", title_justify="left")
    by_round.add_column("round", justify="right")
    for one in forecasts:
        by_round.add_column(one.mechanism.value, justify="right")
    points = [number for number, _ in forecasts[0].curve]
    for place in sorted({round(share * (len(points) - 1)) for share in (0, 0.1, 0.25, 0.5, 0.75, 1)}):
        by_round.add_row(str(points[place]), *(f"{one.curve[place][1]:.4g}" for one in forecasts))
    console().print(by_round)
    if sampling < 1:
        console().print("Sampling hides who was drawn from those who do not know the cohorts; distributed claims none.")
