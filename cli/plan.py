"""`tacit plan`: what a cohort would get, before anybody is invited."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import JsonOption, bytes_text, console, percent_text, print_json

if TYPE_CHECKING:
    from fl_core.rounds.forecast import Forecast, Question
    from fl_core.secagg.degrees import Profile


def plan(
    sites: Annotated[int | None, typer.Option(help="Sites in the cohort.", show_default=False)] = None,
    parameters: Annotated[int | None, typer.Option(help="Parameters of the model.", show_default=False)] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Fraction of sites that may drop out; 0.3 unless the job says.")
    ] = None,
    corrupt: Annotated[
        float | None, typer.Option(help="Fraction of sites that may collude with the servers; 0.3 unless the job says.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Bits of one site's coordinate; 16 unless the job says.")] = None,
    codec: Annotated[
        str | None, typer.Option(help="A codec by its name, in place of --bits.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="What a sparse graph must hold against: honest_but_curious or equivocation_safe; "
            "equivocation_safe unless the job says."
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(help="A job's YAML file: its largest cohort and its model, unless an option differs."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the unit costs on this machine first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Work out graph, threshold, bytes, seconds and memory of an attempt, or why it cannot hold."""
    from dataclasses import replace

    from fl_core.rounds.costs import PACKAGED
    from fl_core.rounds.forecast import foresee

    question = _question_of_job(job) if job else _question(sites, parameters)
    question = replace(
        question,
        sites=question.sites if sites is None else sites,
        parameters=question.parameters if parameters is None else parameters,
        max_dropout=question.max_dropout if dropout is None else dropout,
        max_corrupt=question.max_corrupt if corrupt is None else corrupt,
        bits=question.bits if bits is None else bits,
        profile=question.profile if profile is None else _profile(profile),
    )
    if codec is not None:
        if not _is_maskable(codec):
            _plan_plain(question, codec, as_json)
            return
        question = _with_codec(question, codec)
    costs = PACKAGED
    if measure:
        from cli.unit_costs import measure_unit_costs

        costs = measure_unit_costs()
    forecast = foresee(question, costs)
    if as_json:
        print_json({**forecast.to_json(), "unit_seconds": costs.seconds()})
        return
    _print(forecast)


def _question(sites: int | None, parameters: int | None) -> "Question":
    from fl_core.errors import ConfigError
    from fl_core.rounds.forecast import Question
    from fl_core.rounds.job import JobSpec

    if sites is None or parameters is None:
        raise ConfigError("a plan needs a cohort and a model", fix="give --sites and --parameters, or --job JOB.yaml")
    defaults = JobSpec("plan", rounds=1)
    return Question(sites, parameters, defaults.max_dropout, defaults.max_corrupt, bits=16)


def _question_of_job(path: Path) -> "Question":
    from cli.job_files import read_job
    from fl_core.errors import PlanError
    from fl_core.rounds.forecast import Question
    from fl_core.rounds.plan import Aggregation
    from fl_core.rounds.planner import check_job, choose_codec

    spec, tensors = read_job(path)
    if spec.aggregation is not Aggregation.SECAGG:
        raise PlanError(
            "only the exchange of keys of a masked job is planned here",
            expected="aggregation: secagg",
            got=spec.aggregation.value,
        )
    check_job(spec)
    codec = choose_codec(spec.codec, spec.cohort.largest_session, spec.codec.clip)
    parameters = sum(int(tensor.size) for tensor in tensors.values())
    return Question(
        sites=spec.cohort.largest_session,
        parameters=parameters,
        max_dropout=spec.max_dropout,
        max_corrupt=spec.max_corrupt,
        bits=codec.bits,
        ring_bits=codec.ring_bits,
        threshold=spec.threshold,
        min_survivors=spec.min_survivors,
        profile=spec.profile,
        coordinates=codec.length(parameters, spec.max_weight),
    )


def _is_maskable(codec: str) -> bool:
    from fl_core.codec.presets import PRESETS
    from fl_core.errors import ConfigError

    if codec not in PRESETS:
        raise ConfigError("--codec is unknown", expected=" | ".join(PRESETS), got=codec)
    return PRESETS[codec].is_maskable


def _with_codec(question: "Question", name: str) -> "Question":
    """The same cohort and model with another codec, in the rounds after its first, when its span is known."""
    from dataclasses import replace

    from fl_core.rounds.job import JobSpec, read_codec
    from fl_core.rounds.planner import choose_codec

    choice = read_codec(name)
    spec = choose_codec(choice, question.sites, choice.clip)
    coordinates = spec.length(question.parameters, JobSpec("plan", rounds=1).max_weight)
    return replace(
        question,
        bits=spec.bits,
        ring_bits=spec.ring_bits,
        coordinates=coordinates,
    )


def _plan_plain(question: "Question", name: str, as_json: bool) -> None:
    """What a codec for plain rounds costs: it has neither keys nor masks, so that the upload is all."""
    from fl_core.codec.plain_payload import largest_payload
    from fl_core.rounds.job import JobSpec, read_codec
    from fl_core.rounds.planner import choose_codec

    choice = read_codec(name)
    spec = choose_codec(choice, question.sites, choice.clip)
    most = largest_payload(spec, question.parameters, JobSpec("plan", rounds=1).max_weight)
    if as_json:
        print_json({"sites": question.sites, "parameters": question.parameters, "bytes_up_per_site": most})
        return
    console().print(f"{name} is for plain rounds only: an upload of at most {bytes_text(most)} for each site")


def _profile(name: str) -> "Profile":
    from fl_core.errors import ConfigError
    from fl_core.secagg.degrees import Profile

    try:
        return Profile(name)
    except ValueError as error:
        raise ConfigError("--profile is unknown", expected=" | ".join(Profile), got=name) from error


def _print(forecast: "Forecast") -> None:
    from rich import box
    from rich.table import Table

    shape = forecast.shape
    facts = {
        "graph": f"{forecast.graph}, {shape.degree} neighbours each",
        "threshold": f"{shape.threshold} shares rebuild a secret",
        "ring": f"{shape.ring_bits} bits for {shape.size} sites of {forecast.bits} bits",
        "smallest survivors": f"{forecast.min_survivors} of {shape.size} sites",
        "drop-outs": f"{shape.dropped} sites, {percent_text(shape.dropped / shape.size)}",
        "bytes up per site": bytes_text(forecast.bytes_up),
        "bytes down per site": bytes_text(forecast.bytes_down),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console().print(table)
    parties = Table(box=box.SIMPLE_HEAD)
    for title in ("party", "seconds", "memory", "most of it"):
        parties.add_column(title, justify="right" if title in ("seconds", "memory") else "left")
    for name, cost in forecast.parties.items():
        step, seconds = max(cost.seconds_by_step.items(), key=lambda item: item[1])
        parties.add_row(name, f"{cost.seconds:.3g}", bytes_text(cost.memory_bytes), f"{step}, {seconds:.3g} s")
    console().print(parties)
    console().print(f"Seconds without training and network. Unit costs: {forecast.machine}.")
