"""The trade-off of codecs as a PNG: accuracy against bytes of one upload, one panel for each task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.codec_rounds import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"digits": "convolutional network, 10,026 parameters", "mlp": "multilayer perceptron, 587,392 parameters"}
EXACT = "#8a8a8a"
MARKERS = "os^vDP*X<>hd"


def draw(outcomes: Mapping[str, Sequence[Outcome]], path: Path) -> Path:
    """Write the picture; returns its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(outcomes) + 1.8, 4.4), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(outcomes), squeeze=False)[0]
    for axes, (task, runs) in zip(panels, outcomes.items(), strict=True):
        _draw(axes, TITLES[task], runs)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path)
    return path


def _draw(axes: "Axes", title: str, runs: Sequence[Outcome]) -> None:
    exact, *coded = runs
    axes.axhline(100 * exact.accuracies[-1], color=EXACT, linewidth=1, linestyle="--")
    axes.scatter([exact.bytes_up], [100 * exact.accuracies[-1]], color=EXACT, s=60, label=exact.codec)
    for run, marker in zip(coded, MARKERS, strict=False):
        axes.scatter([run.bytes_up], [100 * run.accuracies[-1]], marker=marker, s=60, alpha=0.8, label=run.codec)
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.12)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("bytes of one upload")
    axes.set_ylabel("accuracy on held-out digits, %")
    axes.spines[["top", "right"]].set_visible(False)
