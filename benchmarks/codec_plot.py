"""The trade-off of codecs as a PNG: accuracy against bytes of one upload, one panel for each task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.codec_rounds import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"digits": "convolutional network, 10,026 parameters", "mlp": "multilayer perceptron, 587,392 parameters"}
COLOUR, EXACT = "#1f5fa8", "#8a8a8a"


def draw(outcomes: Mapping[str, Sequence[Outcome]], path: Path) -> Path:
    """Write the picture; returns its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(outcomes), 4.4), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(outcomes), squeeze=False)[0]
    for axes, (task, runs) in zip(panels, outcomes.items(), strict=True):
        _draw(axes, TITLES[task], runs)
    figure.savefig(path)
    return path


def _draw(axes: "Axes", title: str, runs: Sequence[Outcome]) -> None:
    exact, *coded = runs
    axes.axhline(100 * exact.accuracies[-1], color=EXACT, linewidth=1, linestyle="--")
    axes.scatter([exact.bytes_up], [100 * exact.accuracies[-1]], color=EXACT, zorder=3)
    axes.annotate(exact.codec, (exact.bytes_up, 100 * exact.accuracies[-1]), (0, 7), textcoords="offset points")
    for place, run in enumerate(sorted(coded, key=lambda run: run.bytes_up)):
        point = (run.bytes_up, 100 * run.accuracies[-1])
        axes.scatter([point[0]], [point[1]], color=COLOUR, zorder=3)
        # Names of neighbours stand above and below by turns, so that they do not cover one another.
        shift, side = ((0, 8), "bottom") if place % 2 else ((0, -8), "top")
        axes.annotate(
            run.codec, point, shift, textcoords="offset points", fontsize=8, ha="center", va=side, rotation=18
        )
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.25)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("bytes of one upload")
    axes.set_ylabel("accuracy on held-out digits, %")
    axes.spines[["top", "right"]].set_visible(False)
