"""Accuracy against epsilon for the three mechanisms on digits and breast cancer, and what noise costs in time.

Rounds are simulated in one process with the codec, the samplers and the accountant that services and sites run: updates
are clipped and rounded by `PrivateCodec`, noise is added where the mechanism has it, and sums wrap around in the ring.
Models are linear (softmax), one local pass of full gradient descent per round. With `central` every site is one
sample-holding party; `local` adds noise to the gradients of single samples.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import numpy.typing as npt

from benchmarks.figures import Figure
from benchmarks.stopwatch import best_in_a_row, one_core
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.calibration import noise_multiplier_for
from fl_core.privacy.events import Noise, PrivacyEvent
from fl_core.privacy.sampler import add_noise, noise_table
from fl_core.rounds.privacy_choice import Draw, PrivacyChoice
from fl_core.rounds.privacy_terms import PRIVATE_HEADER, Mechanism
from fl_core.rounds.private_codec import PrivateCodec

Floats = npt.NDArray[np.float64]

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
DELTA = 1e-5
SEEDS = 5
SITES = 100
SURVIVORS = 70
ROUNDS = 8
RING_BITS = 24
CLIPS = {"digits": 0.5, "cancer": 0.5}
RATES = {"digits": 4.0, "cancer": 2.0}
SAMPLE_CLIP = 1.0
SAMPLE_STEPS = 4
PLOT = Path("privacy.png")
PARAMETERS = 1_000_000
NOISE_STD = 1_638.0


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A data set, its held-out part, and the shares of the sites."""

    name: str
    inputs: Floats
    labels: npt.NDArray[np.int64]
    test_inputs: Floats
    test_labels: npt.NDArray[np.int64]
    classes: int

    @property
    def size(self) -> int:
        """Parameters of the linear model."""
        return (self.inputs.shape[1] + 1) * self.classes


def measure(*, quick: bool = False) -> list[Figure]:
    """Accuracy by data set, mechanism and epsilon over seeds, and milliseconds of noise for a million parameters."""
    epsilons, seeds = ((2.0,), 1) if quick else (EPSILONS, SEEDS)
    figures, curves = [*_noise_cost()], {}
    for name in ("digits", "cancer"):
        task = load_task(name)
        for mechanism in ("none", "trusted_curator", *Mechanism):
            for epsilon in epsilons if mechanism != "none" else (float("inf"),):
                runs = [accuracy(task, mechanism, epsilon, seed) for seed in range(seeds)]
                label = "no noise" if mechanism == "none" else f"{mechanism}, epsilon {epsilon:g}"
                figures.append(Figure(f"accuracy, {name}, {label}", 100 * mean(runs), "%"))
                if seeds > 1:
                    figures.append(Figure(f"spread over seeds, {name}, {label}", 100 * pstdev(runs), "points"))
                curves[name, str(mechanism), epsilon] = runs
    if not quick:
        _draw(curves, epsilons, PLOT)
    return figures


def accuracy(task: Task, mechanism: str, epsilon: float, seed: int) -> float:
    """Held-out accuracy of one training."""
    generator = np.random.default_rng([seed, 17])
    order = generator.permutation(len(task.labels))
    shares = np.array_split(order, SITES)
    weights = np.zeros((task.inputs.shape[1] + 1, task.classes))
    for _ in range(ROUNDS):
        weights += _round(task, shares, weights, mechanism, epsilon, generator)
    scores = _padded(task.test_inputs) @ weights
    return float((scores.argmax(axis=1) == task.test_labels).mean())


def _round(
    task: Task,
    shares: Sequence[npt.NDArray[np.int64]],
    weights: Floats,
    mechanism: str,
    epsilon: float,
    generator: np.random.Generator,
) -> Floats:
    if mechanism == Mechanism.LOCAL:
        updates = [_local_update(task, share, weights, epsilon) for share in shares]
        return np.mean(updates, axis=0).reshape(weights.shape)
    updates = [_update(task, share, weights) for share in shares]
    clip = CLIPS[task.name]
    if mechanism == "none":
        return np.mean(updates, axis=0).reshape(weights.shape)
    if mechanism == "trusted_curator":
        clipped = [update * min(1.0, clip / max(1e-12, float(np.linalg.norm(update)))) for update in updates]
        noise = generator.normal(0, clip * _multiplier(epsilon), task.size)
        return ((np.sum(clipped, axis=0) + noise) / SITES).reshape(weights.shape)
    codec = _codec(task, Mechanism(mechanism), epsilon)
    total = np.zeros(codec.length, np.uint32)
    for update in updates:
        total += codec.encode(update.astype(np.float32), 1, os.urandom)
    if mechanism == Mechanism.CENTRAL:
        codec.add_noise(total, os.urandom(16))
    total &= np.uint32((1 << RING_BITS) - 1)
    decoded = codec.open_sum(total[:PRIVATE_HEADER], SITES)
    return decoded.expand(decoded.decode(total[PRIVATE_HEADER:])).astype(np.float64).reshape(weights.shape)


def _update(task: Task, share: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """Five steps of gradient descent on a site's own samples."""
    own, inputs, targets = weights.copy(), _padded(task.inputs[share]), np.eye(task.classes)[task.labels[share]]
    for _ in range(5):
        own -= RATES[task.name] / 5 * inputs.T @ (_softmax(inputs @ own) - targets) / len(share)
    return (own - weights).ravel()


def _local_update(task: Task, share: npt.NDArray[np.int64], weights: Floats, epsilon: float) -> Floats:
    """DP-SGD on a site's own samples: every step takes all of them, with the noise of the sample-level budget."""
    own, inputs, targets = weights.copy(), _padded(task.inputs[share]), np.eye(task.classes)[task.labels[share]]
    noise, steps = (
        SAMPLE_CLIP * _multiplier(epsilon, SAMPLE_STEPS),
        np.random.default_rng(int.from_bytes(os.urandom(8), "little")),
    )
    for _ in range(SAMPLE_STEPS):
        errors = _softmax(inputs @ own) - targets
        norms = np.linalg.norm(inputs, axis=1) * np.linalg.norm(errors, axis=1)
        factors = np.minimum(1.0, SAMPLE_CLIP / np.maximum(norms, 1e-12))
        summed = inputs.T @ (errors * factors[:, None]) + steps.normal(0, noise, own.shape)
        own -= RATES[task.name] / SAMPLE_STEPS * summed / len(share)
    return (own - weights).ravel()


@lru_cache
def _multiplier(epsilon: float, steps: int = 1) -> float:
    budget = PrivacyBudget(epsilon, DELTA)
    return noise_multiplier_for(budget, ROUNDS * steps, lambda value: PrivacyEvent(Noise.GAUSSIAN, 1.0, value**2))


@lru_cache
def _codec(task: Task, mechanism: Mechanism, epsilon: float) -> PrivateCodec:
    choice = PrivacyChoice(mechanism, epsilon, DELTA, CLIPS[task.name])
    terms = choice.terms(ROUNDS, task.size, Draw(SITES, SITES, SITES))
    manifest = TensorManifest((TensorSpec("weights", "float32", (task.size,)),))
    return PrivateCodec(terms, manifest, RING_BITS, SURVIVORS, os.urandom(16))


def load_task(name: str) -> Task:
    """Digits (10 classes, 64 inputs) or breast cancer (2 classes, 30 inputs), a fifth of it held out."""
    from sklearn.datasets import load_breast_cancer, load_digits

    inputs, labels = (load_digits if name == "digits" else load_breast_cancer)(return_X_y=True)
    inputs = (inputs - inputs.mean(axis=0)) / np.maximum(inputs.std(axis=0), 1e-6)
    # Inputs of norm one at most, so that no sample's gradient is large.
    inputs /= np.maximum(1.0, np.linalg.norm(inputs, axis=1, keepdims=True) / 2)
    order = np.random.default_rng(1).permutation(len(labels))
    held_out = len(labels) // 5
    train, test = order[held_out:], order[:held_out]
    return Task(name, inputs[train], labels[train], inputs[test], labels[test], int(labels.max()) + 1)


def _padded(inputs: Floats) -> Floats:
    return np.hstack([inputs, np.ones((len(inputs), 1))])


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


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


def _draw(curves: dict[tuple[str, str, float], list[float]], epsilons: Sequence[float], path: Path) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 4), dpi=140, layout="constrained")
    for axes, name in zip(canvas.subplots(1, 2), ("digits", "cancer"), strict=True):
        axes.axhline(100 * mean(curves[name, "none", float("inf")]), color="#8a8a8a", label="no noise")
        for mechanism in ("trusted_curator", *(str(kind) for kind in Mechanism)):
            runs = [curves[name, mechanism, epsilon] for epsilon in epsilons]
            middle = [100 * mean(run) for run in runs]
            axes.errorbar(epsilons, middle, [100 * pstdev(run) for run in runs], label=mechanism, capsize=2)
        axes.set_xscale("log")
        axes.set_xlabel(f"epsilon at delta {DELTA:g}")
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"{name}: {SITES} sites, {ROUNDS} rounds")
        axes.legend()
    canvas.savefig(path)
