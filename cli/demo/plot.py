"""The curves of a demo run as a PNG."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.demo.result import DemoResult
from cli.round_table import PHASE_TITLES
from fl_core.rounds.machine import RoundState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEDERATED = "#1f5fa8"
CENTRALISED = "#8a8a8a"
KILLED = "#c0392b"
NEGLIGIBLE_S = 0.02
_LABELS = {RoundState.UPLOADING: "training, upload"}
"""Sites train on while keys are exchanged; what is left of it shows as waiting for uploads."""
_PHASE_COLOURS = ("#d9d9d9", "#7fb0d8", "#1f5fa8", "#e8a33d", "#6aa66a")


def draw(result: DemoResult, path: Path) -> Path:
    """Accuracy by round against the centralised model, and where the seconds of each round went.

    Returns:
        The path that was written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_accuracy(left, result)
    _draw_seconds(right, result)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("round")
        axes.set_xticks([report.round_id for report in result.committed] or [0])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_accuracy(axes: "Axes", result: DemoResult) -> None:
    rounds = [report.round_id for report in result.committed]
    federated = [100 * share for share in result.accuracy_federated]
    centralised = [100 * share for share in result.accuracy_centralised]
    axes.plot(range(1, len(centralised) + 1), centralised, color=CENTRALISED, marker="s", ms=4, label="centralised")
    axes.plot(rounds, federated, color=FEDERATED, marker="o", ms=5, lw=2, label="federated")
    _mark_kills(axes, result)
    axes.set_ylabel("accuracy on held-out digits, %")
    axes.set_title("One model, data that never left its site", loc="left", fontsize=11)
    axes.set_ylim(min([*federated, *centralised, 90.0]) - 3, 101)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, loc="lower right")


def _mark_kills(axes: "Axes", result: DemoResult) -> None:
    if not result.killed:
        return
    round_id = next((report.round_id for report in result.rounds if report.dropouts), None)
    if round_id is None:
        return
    count = len(result.killed)
    axes.axvline(round_id, color=KILLED, ls=":", lw=1.3)
    axes.annotate(
        f"{count} site{'s' if count > 1 else ''} killed",
        (round_id, 0.06),
        xycoords=("data", "axes fraction"),
        xytext=(6, 0),
        textcoords="offset points",
        color=KILLED,
        fontsize=9,
    )


def _draw_seconds(axes: "Axes", result: DemoResult) -> None:
    rounds = [report.round_id for report in result.committed]
    bottom = [0.0] * len(rounds)
    for phase, colour in zip(PHASE_TITLES, _PHASE_COLOURS, strict=True):
        seconds = [report.phase_seconds.get(phase, 0.0) for report in result.committed]
        if max(seconds, default=0) > NEGLIGIBLE_S:
            axes.bar(rounds, seconds, bottom=bottom, color=colour, width=0.65, label=_LABELS.get(phase, phase))
        bottom = [base + more for base, more in zip(bottom, seconds, strict=True)]
    axes.plot(
        rounds, result.aggregation_seconds, color="black", marker="_", ms=14, mew=2, ls="", label="without training"
    )
    axes.set_ylabel("seconds")
    axes.set_title("Where the time of a round went", loc="left", fontsize=11)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
