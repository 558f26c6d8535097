"""`tacit demo`: its options, and what it prints."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import JsonOption, console, print_json, progress_console
from fl_core.rounds.plan import Aggregation
from fl_core.rounds.privacy_terms import Mechanism

if TYPE_CHECKING:
    from cli.demo.options import DemoOptions
    from cli.demo.result import DemoResult

MISSING = "the demo needs torch, scikit-learn and matplotlib"


def demo(
    sites: Annotated[int, typer.Option("--sites", help="How many site processes.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", help="How many rounds.")] = 8,
    aggregation: Annotated[
        Aggregation, typer.Option("--aggregation", help="Masked, Paillier-encrypted, or plain for comparison.")
    ] = Aggregation.SECAGG,
    kill: Annotated[
        int | None,
        typer.Option("--kill", help="How many sites are killed in round 3; 3 if the cohort can lose so many.", min=0),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option("--codec", help="A codec by its name, such as int8 or sparse-1pct-int8.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of data split, model, training and victims.")] = 1,
    workdir: Annotated[
        Path | None,
        typer.Option(
            "--workdir", help="An empty folder for all it leaves; a temporary one without it.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="The PNG; curves.png in the work folder without it.", show_default=False),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Sites log their plain updates for the check of exactness.")
    ] = True,
    privacy: Annotated[
        Mechanism | None,
        typer.Option("--privacy", help="Differential privacy: who adds the noise.", show_default=False),
    ] = None,
    epsilon: Annotated[float, typer.Option("--epsilon", help="Privacy budget of the run, at delta 1e-5.")] = 8.0,
    as_json: JsonOption = False,
) -> None:
    """Train one model at ten sites with secure aggregation while three of them are killed.

    Every site is a process with its own share of handwritten digits and talks mTLS to three services. In round 3 one
    site dies after sharing keys, one in the middle of its upload and one after it. Then every aggregate is compared,
    bit for bit, with the plain sum of its survivors' updates, and the model with one that was trained on all data.
    """
    from cli.demo.options import DemoOptions, most_kills

    options = DemoOptions(
        workdir=Path(tempfile.mkdtemp(prefix="tacit-demo-")) if workdir is None else workdir,
        sites=sites,
        rounds=rounds,
        aggregation=aggregation,
        kill=min(3, most_kills(sites)) if kill is None else kill,
        seed=seed,
        record=record,
        privacy=privacy,
        epsilon=epsilon,
        codec=codec,
    )
    result = _run(options)
    path = _draw(result, plot or options.workdir / "curves.png")
    _print(result, path, as_json)
    if not result.succeeded:
        raise typer.Exit(1)


def _run(options: "DemoOptions") -> "DemoResult":
    from cli.up import terminated_as_interrupt
    from fl_core.errors import ConfigError

    try:
        from cli.demo.run import Demo
        from cli.demo.view import DemoView
    except ModuleNotFoundError as error:
        raise ConfigError(MISSING, got=str(error), fix="pip install 'tacit[all]'") from error
    view = DemoView(progress_console(), options.client_ids)
    view.note(f"work folder: {options.workdir}")
    with terminated_as_interrupt(), view.running():
        return Demo(options, view).run()


def _draw(result: "DemoResult", path: Path) -> Path:
    from cli.demo.plot import draw

    return draw(result, path)


def _print(result: "DemoResult", plot: Path, as_json: bool) -> None:
    from cli.demo.summary import render

    screen = progress_console() if as_json else console()
    screen.print(render(result))
    screen.print(f"[bold]curves[/bold]                    {plot}", soft_wrap=True)
    screen.print(f"[bold]work folder[/bold]               {result.workdir}", soft_wrap=True)
    if as_json:
        print_json(result.to_json())
