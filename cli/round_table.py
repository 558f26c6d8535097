"""Rounds as a table for people: `tacit train` and `tacit demo` show the same one."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from cli.output import bytes_text, percent_text, seconds_text
from cli.reports import dropouts_in_words, is_committed, mean_over_survivors, words
from fl_core.rounds.machine import RoundState
from fl_core.rounds.report import RoundReport

PHASE_TITLES = {
    RoundState.RECRUITING: "wait",
    RoundState.EXCHANGING: "keys",
    RoundState.UPLOADING: "up-\nload",
    RoundState.UNMASKING: "un-\nmask",
    RoundState.APPLYING: "apply",
}


def round_table(
    reports: Sequence[RoundReport], accuracy: Mapping[int, float] | None = None, *, title: str | None = None
) -> Table:
    """One row for each attempt.

    Args:
        reports: in order.
        accuracy: of the model versions, where it was measured; None leaves the column out.
        title: above the table.
    """
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        header_style="bold",
        show_edge=False,
    )
    table.add_column("round", justify="right", no_wrap=True)
    table.add_column("survived", justify="right", no_wrap=True)
    table.add_column("drop-outs", justify="left", min_width=12)
    if accuracy is not None:
        table.add_column("accuracy", justify="right", no_wrap=True)
    phases = [phase for phase in PHASE_TITLES if any(_worth_showing(phase, report) for report in reports)]
    for phase in phases:
        table.add_column(PHASE_TITLES[phase], justify="right", style="dim", no_wrap=True)
    table.add_column("sec-\nonds", justify="right", style="bold", no_wrap=True)
    table.add_column("up per\nsite", justify="right", no_wrap=True)
    table.add_column("down per\nsite", justify="right", no_wrap=True)
    for report in reports:
        table.add_row(*_cells(report, accuracy, phases), style=None if is_committed(report) else "yellow")
    return table


def _cells(report: RoundReport, accuracy: Mapping[int, float] | None, phases: Sequence[RoundState]) -> list[str]:
    measured = [] if accuracy is None else [percent_text(_accuracy_of(report, accuracy))]
    return [
        str(report.round_id) if report.attempt == 1 else f"{report.round_id} (attempt {report.attempt})",
        f"{len(report.survivors)} of {len(report.invited)}",
        _remark(report),
        *measured,
        *(seconds_text(report.phase_seconds.get(phase, 0.0)) for phase in phases),
        seconds_text(report.round_seconds),
        bytes_text(mean_over_survivors(report, report.bytes_up)),
        bytes_text(mean_over_survivors(report, report.bytes_down)),
    ]


def _worth_showing(phase: RoundState, report: RoundReport) -> bool:
    """Recruiting takes no time while the sites stay connected; its column would only take room."""
    return phase in report.phase_seconds and (phase is not RoundState.RECRUITING or report.phase_seconds[phase] > 0.1)


def _accuracy_of(report: RoundReport, accuracy: Mapping[int, float]) -> float | None:
    return accuracy.get(report.model_version) if is_committed(report) else None


def _remark(report: RoundReport) -> str:
    if is_committed(report):
        return dropouts_in_words(report)
    if report.abandon_reason is None:
        return f"{report.state} ..."
    return f"abandoned: {words(report.abandon_reason)}"
