"""Accuracy against epsilon for the three mechanisms on digits and breast cancer, and what noise costs in time.

A mechanism is held against its reference in pairs: `central` against the trusted curator, `distributed` against
`central`, each seed against itself. The standard error says how far chance alone may have moved their mean difference.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from math import inf, sqrt
from pathlib import Path
from statistics import mean, pstdev, stdev

import numpy as np

from benchmarks.excess_noise import part_costs, sum_variances
from benchmarks.figures import Figure
from benchmarks.private_training import CURATOR, NO_NOISE, SITES, Crowd, Task, accuracy, load_task, noise_over_curators
from benchmarks.stopwatch import best_in_a_row, one_core
from fl_core.privacy.events import Noise
from fl_core.privacy.sampler import add_noise, noise_table
from fl_core.rounds.privacy_terms import Mechanism

SEEDS: Mapping[str, Mapping[float, int]] = {
    "digits": {0.5: 20, 1.0: 80, 2.0: 40, 4.0: 10, 8.0: 10},
    "cancer": dict.fromkeys((0.5, 1.0, 2.0, 4.0, 8.0), 10),
}
"""By epsilon: where noise drowns the model, accuracies spread over many points and their means need more of them."""

EPSILONS = tuple(SEEDS["digits"])
QUICK = {2.0: 1}
EVERYBODY = Crowd("", 70, SITES)
DROP_OUT = Crowd("30% drop out", 70, 70)
KEPT = Crowd("noise for 70 survivors kept", 70, SITES, removes=False)
REFERENCES: dict[str, str] = {Mechanism.CENTRAL: CURATOR, Mechanism.DISTRIBUTED: Mechanism.CENTRAL}
PLOT = Path("privacy.png")
PARAMETERS = 1_000_000
NOISE_STD = 1_638.0

Curves = dict[tuple[str, str, str, float], list[float]]
"""Accuracies in percent by data set, crowd, mechanism and epsilon, in the order of their seeds."""


def measure(*, quick: bool = False) -> list[Figure]:
    """Milliseconds of noise for a million parameters, then accuracies and their differences in pairs."""
    figures, curves = [*_noise_cost(), *part_costs(), *sum_variances(10 if quick else 1_000)], Curves()
    for task in map(load_task, SEEDS):
        seeds = QUICK if quick else SEEDS[task.name]
        for crowd in (EVERYBODY, DROP_OUT):
            curves.update(_train(task, crowd, (NO_NOISE,), {inf: min(seeds.values())}))
            curves.update(_train(task, crowd, (CURATOR, *Mechanism), seeds))
        if task.name == "digits":
            figures += _noise_sizes(task, tuple(seeds))
            curves.update(_train(task, KEPT, (Mechanism.DISTRIBUTED,), seeds))
    figures += _accuracies(curves)
    if not quick:
        figures += _losses(curves)
        _draw(curves, EPSILONS, PLOT)
    return figures


def _train(task: Task, crowd: Crowd, mechanisms: Sequence[str], seeds: Mapping[float, int]) -> Curves:
    return {
        (task.name, crowd.name, str(mechanism), epsilon): [
            100 * accuracy(task, mechanism, epsilon, crowd, seed) for seed in range(count)
        ]
        for mechanism in mechanisms
        for epsilon, count in seeds.items()
    }


def _noise_sizes(task: Task, epsilons: Sequence[float]) -> Iterator[Figure]:
    for crowd, mechanism in product((EVERYBODY, DROP_OUT), (Mechanism.CENTRAL, Mechanism.DISTRIBUTED)):
        yield from _noise_ratios(task, crowd, mechanism, epsilons)
    yield from _noise_ratios(task, KEPT, Mechanism.DISTRIBUTED, epsilons)


def _noise_ratios(task: Task, crowd: Crowd, mechanism: Mechanism, epsilons: Sequence[float]) -> Iterator[Figure]:
    for epsilon in epsilons:
        name = _label(task.name, crowd.name, mechanism, epsilon)
        ratio = noise_over_curators(task, mechanism, epsilon, crowd)
        yield Figure(f"noise over the trusted curator's, {name}", ratio, "ratio")


def _accuracies(curves: Curves) -> Iterator[Figure]:
    for key, runs in curves.items():
        yield Figure(f"accuracy, {_label(*key)}", mean(runs), "%")
        if len(runs) > 1:
            yield Figure(f"spread over seeds, {_label(*key)}", pstdev(runs), "points")


def _losses(curves: Curves) -> Iterator[Figure]:
    """What a mechanism loses against its reference, a seed against itself, and the standard error of the mean."""
    for (data, crowd, mechanism, epsilon), runs in curves.items():
        if mechanism not in REFERENCES:
            continue
        # The reference adds its noise once, whatever is taken away of the noise of sites.
        there = crowd if crowd == DROP_OUT.name else EVERYBODY.name
        reference = curves[data, there, str(REFERENCES[mechanism]), epsilon]
        lost = [theirs - ours for theirs, ours in zip(reference, runs, strict=True)]
        name = f"{_label(data, crowd, mechanism, epsilon)}, against {REFERENCES[mechanism]}"
        yield Figure(f"points lost, {name}", mean(lost), "points")
        yield Figure(f"standard error of points lost, {name}", stdev(lost) / sqrt(len(lost)), "points")


def _label(data: str, crowd: str, mechanism: str, epsilon: float) -> str:
    noise = ["no noise"] if mechanism == NO_NOISE else [mechanism, f"epsilon {epsilon:g}"]
    return ", ".join([data, *([crowd] if crowd else []), *noise])


def _noise_cost() -> list[Figure]:
    """CPU milliseconds for a million parameters on one core, beside numpy's Poisson and Gaussian."""
    vector, figures = np.zeros(PARAMETERS, np.uint32), []
    theirs = np.random.default_rng(1)
    rate = NOISE_STD**2 / 2
    with one_core():
        gaussian = best_in_a_row(lambda: theirs.normal(0, NOISE_STD, PARAMETERS), 5)
        poisson = best_in_a_row(lambda: theirs.poisson(rate, PARAMETERS) - theirs.poisson(rate, PARAMETERS), 3)
        for noise, peer in ((Noise.DISCRETE_GAUSSIAN, gaussian), (Noise.SKELLAM, poisson)):
            table = noise_table(noise, NOISE_STD**2)
            add_noise(vector, table, os.urandom(16))
            ours = best_in_a_row(partial(add_noise, vector, table, os.urandom(16)), 5)
            figures.append(Figure(f"noise for 1M parameters, {noise}", 1e3 * ours, "ms", 1e3 * peer))
        figures.append(Figure("noise for 1M parameters, numpy normal", 1e3 * gaussian, "ms"))
        figures.append(Figure("noise for 1M parameters, numpy poisson twice", 1e3 * poisson, "ms"))
    return figures


def _draw(curves: Curves, epsilons: Sequence[float], path: Path) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 7.4), dpi=140, layout="constrained")
    crowds = {EVERYBODY: f"all of {SITES} sites stay", DROP_OUT: f"30 of {SITES} sites drop out"}
    for row, data in zip(canvas.subplots(len(SEEDS), len(crowds), sharey="row"), SEEDS, strict=True):
        for axes, (crowd, title) in zip(row, crowds.items(), strict=True):
            axes.axhline(mean(curves[data, crowd.name, NO_NOISE, inf]), color="#8a8a8a", label="no noise")
            for mechanism in (CURATOR, *(str(kind) for kind in Mechanism)):
                runs = [curves[data, crowd.name, mechanism, epsilon] for epsilon in epsilons]
                axes.errorbar(epsilons, list(map(mean, runs)), list(map(pstdev, runs)), label=mechanism, capsize=2)
            if crowd is EVERYBODY and data == "digits":
                kept = [mean(curves[data, KEPT.name, Mechanism.DISTRIBUTED, epsilon]) for epsilon in epsilons]
                axes.plot(epsilons, kept, ":", color="#4a4a4a", label="distributed, nothing taken away")
                axes.legend(fontsize=8, loc="lower right")
            axes.set_xscale("log", base=2)
            axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
            axes.set_title(f"{data}, {title}", fontsize=10)
            axes.grid(alpha=0.25)
        row[0].set_ylabel("accuracy on held-out data, %")
    canvas.supxlabel("epsilon of the whole job", fontsize=10)
    row[0].legend(fontsize=8)
    canvas.savefig(path)
