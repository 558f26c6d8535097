"""Private training of a linear model by simulated sites, with the codec, the samplers and the accountant of Tacit.

Updates are clipped and rounded by `PrivateCodec`, noise is added where the mechanism has it, and sums wrap around in
the ring. Models are linear (softmax), one local pass of full gradient descent per round. With `central` and
`distributed` a site is the unit of privacy; `local` adds noise to the gradients of single samples.

All mechanisms of a seed have the same shares of data, the same model to start from and the same sites that drop out,
so that their accuracies can be compared in pairs. Rate and clip of updates were chosen by the accuracy of the
trusted curator on fifths of the training data that were held back. Statistics that inputs are standardised with are
taken as public.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.calibration import noise_multiplier_for
from fl_core.privacy.events import Noise, PrivacyEvent
from fl_core.rounds.privacy_choice import Draw, PrivacyChoice
from fl_core.rounds.privacy_terms import PRIVATE_HEADER, Mechanism
from fl_core.rounds.private_codec import PrivateCodec
from fl_core.secagg.noise_seeds import parts_needed

Floats = npt.NDArray[np.float64]
Shares = Sequence[npt.NDArray[np.int64]]

DELTA = 1e-5
SITES = 100
ROUNDS = 8
RING_BITS = 24
CLIPS = {"digits": 2.0, "cancer": 1.0}
RATES = {"digits": 8.0, "cancer": 4.0}
LOCAL_STEPS = 5
SAMPLE_CLIP = 1.0
SAMPLE_STEPS = 4
SAMPLE_RATES = {"digits": 4.0, "cancer": 2.0}
NOISE_DRAWS = 40

NO_NOISE = "none"
CURATOR = "trusted_curator"


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who is there of the sites that were invited.

    Args:
        name: in figures; empty for the usual one.
        smallest: survivors for which shares of noise are sized.
        present: sites whose update arrives, drawn anew for each round.
        removes: whether noise that so many survivors do not need is taken away again, as Tacit does.
    """

    name: str
    smallest: int
    present: int
    removes: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A data set, its held-out part, and its classes."""

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


def load_task(name: str) -> Task:
    """Digits (10 classes, 64 inputs) or breast cancer (2 classes, 30 inputs), a fifth of it held out."""
    from sklearn.datasets import load_breast_cancer, load_digits

    inputs, labels = (load_digits if name == "digits" else load_breast_cancer)(return_X_y=True)
    inputs = (inputs - inputs.mean(axis=0)) / np.maximum(inputs.std(axis=0), 1e-6)
    # Inputs of norm two at most, so that no sample's gradient is large.
    inputs /= np.maximum(1.0, np.linalg.norm(inputs, axis=1, keepdims=True) / 2)
    order = np.random.default_rng(1).permutation(len(labels))
    held_out = len(labels) // 5
    train, test = order[held_out:], order[:held_out]
    return Task(name, inputs[train], labels[train], inputs[test], labels[test], int(labels.max()) + 1)


def accuracy(task: Task, mechanism: str, epsilon: float, crowd: Crowd, seed: int) -> float:
    """Held-out accuracy of one training, from 0 to 1."""
    shares = np.array_split(np.random.default_rng([seed, 17]).permutation(len(task.labels)), SITES)
    arrivals, noise = np.random.default_rng([seed, 18]), np.random.default_rng([seed, 19])
    weights = np.zeros((task.inputs.shape[1] + 1, task.classes))
    for _ in range(ROUNDS):
        arrived = [shares[site] for site in arrivals.choice(SITES, crowd.present, replace=False)]
        weights += _mean_update(task, arrived, weights, mechanism, epsilon, crowd, noise).reshape(weights.shape)
    scores = _padded(task.test_inputs) @ weights
    return float((scores.argmax(axis=1) == task.test_labels).mean())


def noise_over_curators(task: Task, mechanism: Mechanism, epsilon: float, crowd: Crowd) -> float:
    """Standard deviation of all that a decoded mean has in it beside the clipped updates, over the trusted curator's.

    So it holds the noise, what rounding adds, and what the accountant takes for the norm after rounding.
    """
    generator = np.random.default_rng(5)
    updates = generator.normal(size=(crowd.present, task.size))
    updates *= CLIPS[task.name] / np.linalg.norm(updates, axis=1, keepdims=True)
    exact = updates.mean(axis=0)
    errors = [_noised_mean(task, updates, mechanism, epsilon, crowd, generator) - exact for _ in range(NOISE_DRAWS)]
    return float(np.std(errors)) / (CLIPS[task.name] * _multiplier(epsilon) / crowd.present)


def _mean_update(
    task: Task,
    shares: Shares,
    weights: Floats,
    mechanism: str,
    epsilon: float,
    crowd: Crowd,
    noise: np.random.Generator,
) -> Floats:
    if mechanism == Mechanism.LOCAL:
        return np.mean([_local_update(task, share, weights, epsilon, noise) for share in shares], axis=0)
    updates = np.array([_update(task, share, weights) for share in shares])
    if mechanism == NO_NOISE:
        return updates.mean(axis=0)
    if mechanism != CURATOR:
        return _noised_mean(task, updates, Mechanism(mechanism), epsilon, crowd, noise)
    clip = CLIPS[task.name]
    updates *= np.minimum(1.0, clip / np.maximum(1e-12, np.linalg.norm(updates, axis=1, keepdims=True)))
    return (updates.sum(axis=0) + noise.normal(0, clip * _multiplier(epsilon), task.size)) / len(updates)


def _noised_mean(
    task: Task, updates: Floats, mechanism: Mechanism, epsilon: float, crowd: Crowd, noise: np.random.Generator
) -> Floats:
    """The mean of clipped updates as sites and services make it, (d,), model units."""
    codec = _codec(task, mechanism, epsilon, crowd)
    tiers = codec.terms.noise_tiers(codec.cohort, codec.min_survivors)
    needed = parts_needed(tiers, len(updates)) if tiers else 0
    keys = [[noise.bytes(16) for _ in codec.parts] for _ in updates]
    total, mask = np.zeros(codec.length, np.uint32), np.zeros(codec.length, np.uint32)
    for update, own in zip(updates, keys, strict=True):
        total += codec.encode(update.astype(np.float32), 1, noise.bytes, own)
    if crowd.removes:
        codec.add_parts(mask[PRIVATE_HEADER:], [own[needed:] for own in keys], 0)
    if mechanism is Mechanism.CENTRAL:
        codec.add_noise(total, noise.bytes(16))
    total = (total - mask) & np.uint32((1 << RING_BITS) - 1)
    decoded = codec.open_sum(total[:PRIVATE_HEADER], len(updates))
    return decoded.expand(decoded.decode(total[PRIVATE_HEADER:])).astype(np.float64)


def _update(task: Task, share: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """Steps of gradient descent on all of a site's own samples."""
    own, inputs, targets = weights.copy(), _padded(task.inputs[share]), np.eye(task.classes)[task.labels[share]]
    for _ in range(LOCAL_STEPS):
        own -= RATES[task.name] / LOCAL_STEPS * inputs.T @ (_softmax(inputs @ own) - targets) / len(share)
    return (own - weights).ravel()


def _local_update(
    task: Task, share: npt.NDArray[np.int64], weights: Floats, epsilon: float, noise: np.random.Generator
) -> Floats:
    """DP-SGD on a site's own samples: every step takes all of them, with the noise of the sample-level budget."""
    own, inputs, targets = weights.copy(), _padded(task.inputs[share]), np.eye(task.classes)[task.labels[share]]
    spread = SAMPLE_CLIP * _multiplier(epsilon, SAMPLE_STEPS)
    for _ in range(SAMPLE_STEPS):
        errors = _softmax(inputs @ own) - targets
        norms = np.linalg.norm(inputs, axis=1) * np.linalg.norm(errors, axis=1)
        factors = np.minimum(1.0, SAMPLE_CLIP / np.maximum(norms, 1e-12))
        summed = inputs.T @ (errors * factors[:, None]) + noise.normal(0, spread, own.shape)
        own -= SAMPLE_RATES[task.name] / SAMPLE_STEPS * summed / len(share)
    return (own - weights).ravel()


@lru_cache
def _multiplier(epsilon: float, steps: int = 1) -> float:
    budget = PrivacyBudget(epsilon, DELTA)
    return noise_multiplier_for(budget, ROUNDS * steps, lambda value: PrivacyEvent(Noise.GAUSSIAN, 1.0, value**2))


@lru_cache
def _codec(task: Task, mechanism: Mechanism, epsilon: float, crowd: Crowd) -> PrivateCodec:
    choice = PrivacyChoice(mechanism, epsilon, DELTA, CLIPS[task.name])
    terms = choice.terms(ROUNDS, task.size, Draw(SITES, SITES, SITES))
    manifest = TensorManifest((TensorSpec("weights", "float32", (task.size,)),))
    return PrivateCodec(terms, manifest, RING_BITS, SITES, crowd.smallest)


def _padded(inputs: Floats) -> Floats:
    return np.hstack([inputs, np.ones((len(inputs), 1))])


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result
