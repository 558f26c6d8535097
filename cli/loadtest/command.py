"""`tacit loadtest`: its options, and what it prints."""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.loadtest.aggregation import LoadAggregation
from cli.options import CLUSTER_DIR
from cli.output import JsonOption, console, print_json, say
from fl_core.errors import ConfigError

if TYPE_CHECKING:
    from cli.loadtest.federation import Federation
    from cli.loadtest.options import LoadOptions
    from cli.loadtest.result import LoadResult


def loadtest(
    sites: Annotated[int, typer.Option("--sites", help="How many sites.")] = 20,
    parameters: Annotated[int, typer.Option("--parameters", help="Size of the model, float32.")] = 100_000,
    dropout: Annotated[float, typer.Option("--dropout", help="Part of the sites that vanishes in each round.")] = 0.0,
    rounds: Annotated[int, typer.Option("--rounds", help="How many rounds.")] = 5,
    codec: Annotated[str, typer.Option("--codec", help="A preset, such as int16 or int8.")] = "int16",
    aggregation: Annotated[
        LoadAggregation, typer.Option("--aggregation", help="Masked, on a sparse graph with secagg+, or plain.")
    ] = LoadAggregation.SECAGG,
    processes: Annotated[
        int | None, typer.Option("--processes", help="Processes for the sites; 2 without it.", show_default=False)
    ] = None,
    rate_limit_mbit: Annotated[
        float | None,
        typer.Option("--rate-limit-mbit", help="Of each site's line, in each direction.", show_default=False),
    ] = None,
    latency_ms: Annotated[float, typer.Option("--latency-ms", help="Of each site's line, one way.")] = 0.0,
    target: Annotated[
        str | None,
        typer.Option("--target", help="HOST or HOST:PORT of a coordinator that runs already.", show_default=False),
    ] = None,
    authority: Annotated[
        Path, typer.Option("--ca", help="With --target: the folder of the CA, for the sites' certificates.")
    ] = CLUSTER_DIR / "ca",
    seed: Annotated[int, typer.Option("--seed", help="Of who vanishes when, and of the updates.")] = 1,
    workdir: Annotated[
        Path | None,
        typer.Option("--workdir", help="An empty folder; nothing is left without it.", show_default=False),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a PNG.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Let many light sites take part in rounds over real mTLS, and report what a round costs.

    The sites do not train: they return a made-up update at once. In each round some of them vanish, at steps that the
    seed draws, and come back when the round is over. Every aggregate is compared, bit for bit, with the plain sum of
    its survivors' updates.
    """
    from cli.loadtest.options import LoadOptions, Shaping

    with _folder(workdir) as folder:
        options = LoadOptions(
            workdir=folder.resolve(),
            sites=sites,
            parameters=parameters,
            dropout=dropout,
            rounds=rounds,
            codec=codec,
            aggregation=aggregation,
            processes=min(2, sites) if processes is None else processes,
            seed=seed,
            shaping=Shaping(rate_limit_mbit, latency_ms),
        )
        result = _run(options, target, authority)
    if plot is not None:
        from cli.loadtest.plot import draw

        say(f"drew {draw(result, plot)}")
    if as_json:
        print_json(result.to_json())
    else:
        from cli.loadtest.summary import render

        console().print(render(result))
    if not result.succeeded:
        raise typer.Exit(code=1)


def _run(options: "LoadOptions", target: str | None, authority: Path) -> "LoadResult":
    from cli.loadtest.run import run_load_test
    from cli.up import terminated_as_interrupt

    with terminated_as_interrupt():
        return run_load_test(options, _federation(options, target, authority))


def _federation(options: "LoadOptions", target: str | None, authority: Path) -> "AbstractContextManager[Federation]":
    from cli.loadtest.federation import local_federation, running_federation

    if target is None:
        is_encrypted = options.aggregation is LoadAggregation.PAILLIER
        return local_federation(options.workdir, has_paillier_key=is_encrypted)
    return running_federation(target, authority, options.workdir)


@contextmanager
def _folder(workdir: Path | None) -> Iterator[Path]:
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="tacit-loadtest-") as folder:
            yield Path(folder)
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(
            f"the work folder {workdir} is not empty", fix="name another with --workdir, or leave the option out"
        )
    yield workdir
