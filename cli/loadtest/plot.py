"""A load test as a PNG: where the seconds of each round went, and what a site sends and receives."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.loadtest.metering import TrafficPhase
from cli.loadtest.result import LoadResult
from cli.round_table import PHASE_TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#d9d9d9", "#7fb0d8", "#1f5fa8", "#e8a33d", "#6aa66a")
MB = 1e6


def draw(result: LoadResult, path: Path) -> Path:
    """Write the picture.

    Returns:
        The path that was written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    _draw_seconds(left, result)
    _draw_bytes(right, result)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    options = result.options
    figure.suptitle(
        f"{options.sites} sites, {options.parameters:,} parameters, {options.codec}, {options.aggregation.value},"
        f" {options.dropout:.0%} vanish in each round",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_seconds(axes: "Axes", result: LoadResult) -> None:
    reports = [settled.report for settled in result.committed]
    rounds = [report.round_id for report in reports]
    bottom = [0.0] * len(rounds)
    for phase, colour in zip(PHASE_TITLES, _COLOURS, strict=True):
        seconds = [report.phase_seconds.get(phase, 0.0) for report in reports]
        axes.bar(rounds, seconds, bottom=bottom, color=colour, width=0.65, label=phase.value)
        bottom = [base + more for base, more in zip(bottom, seconds, strict=True)]
    axes.set_xlabel("round")
    axes.set_ylabel("seconds")
    axes.set_xticks(rounds or [0])
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_bytes(axes: "Axes", result: LoadResult) -> None:
    base = {"up": 0.0, "down": 0.0}
    for phase, colour in zip(TrafficPhase, _COLOURS, strict=True):
        counts = {direction: result.bytes_median(direction, phase) / MB for direction in base}
        axes.bar(list(counts), list(counts.values()), bottom=list(base.values()), color=colour, label=phase.value)
        base = {direction: base[direction] + counts[direction] for direction in base}
    axes.set_ylabel("MB of a survivor in a round")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
