"""Epsilon by round, one line for each mechanism."""

from collections.abc import Sequence
from pathlib import Path

from cli.privacy.forecast import MechanismForecast
from fl_core.errors import ConfigError


def draw_forecasts(forecasts: Sequence[MechanismForecast], delta: float, path: Path) -> None:
    """Write a PNG.

    Raises:
        ConfigError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("a plot needs matplotlib", fix="pip install 'tacit[demo]'") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for style, forecast in zip(("-", "--", ":"), forecasts, strict=True):
        rounds, epsilons = zip(*forecast.curve, strict=True)
        label = f"{forecast.mechanism.value} ({forecast.mechanism.unit}), noise {forecast.noise_multiplier:.3g}"
        axes.plot(rounds, epsilons, style, label=label)
    axes.set_xlabel("round")
    axes.set_ylabel(f"epsilon at delta {delta:g}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"the plot {path} cannot be written", got=error.strerror) from error
