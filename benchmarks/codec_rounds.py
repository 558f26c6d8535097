"""Federated rounds in one process, for the trade-off of codecs: ten uneven sites, the codec and span of real rounds."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from cli.demo.centralised import measure as measure_network
from cli.demo.digits import DigitSet, load_digit_sets, split_unevenly
from cli.demo.network import build_network, dataset
from cli.demo.options import BATCH_SIZE, EPOCHS, LEARNING_RATE, MAX_WEIGHT
from cli.demo.site_process import MOMENTUM
from client_sdk import TrainingContext
from client_sdk.adapters.torch import TorchTrainer
from fl_core.codec.packing import packed_bytes
from fl_core.codec.plain_payload import write_payload
from fl_core.codec.presets import PRESETS
from fl_core.codec.span import MARGIN_FIRST, next_span
from fl_core.codec.tensors import FloatVector, Tensors, add_update, difference, manifest_of
from fl_core.codec.update_codec import UpdateCodec
from fl_core.rounds.job import read_codec
from fl_core.rounds.planner import choose_codec

SITES = 10
SEED = 1
FLOAT = "float32"
"""No codec: the weighted mean of the updates themselves."""


@dataclass(frozen=True, slots=True)
class Task:
    """A network, what it learns, and how the sites train it."""

    name: str
    build: Callable[[], torch.nn.Module]
    epochs: int
    learning_rate: float


def _mlp() -> torch.nn.Module:
    """587,392 parameters: as many as a classifier of health records has that is often used for comparison."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(64, 616, bias=False),
            torch.nn.ReLU(),
            torch.nn.Linear(616, 577, bias=False),
            torch.nn.ReLU(),
            torch.nn.Linear(577, 328, bias=False),
            torch.nn.ReLU(),
            torch.nn.Linear(328, 10, bias=False),
        )


TASKS = (
    Task("digits", lambda: build_network(0), EPOCHS, LEARNING_RATE),
    Task("mlp", _mlp, 2, LEARNING_RATE),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Args:
        codec: a preset, or `FLOAT`.
        accuracies: on held-out digits after each round, 0 to 1.
        bytes_up: of one site, of the last round.
    """

    codec: str
    accuracies: Sequence[float] = field(repr=False)
    bytes_up: int = 0


def run(task: Task, codec: str, rounds: int) -> Outcome:
    """Train for some rounds."""
    everything, held_out = load_digit_sets(SEED)
    trainers = [_trainer(task, share) for share in split_unevenly(everything, SITES, SEED)]
    exchange = _Exchange(codec)
    model: Tensors = trainers[0].initial_parameters()
    accuracies = []
    for round_id in range(1, rounds + 1):
        updates = [_train(task, trainer, model, round_id) for trainer in trainers]
        model = exchange.apply(model, updates, round_id)
        accuracies.append(_accuracy(task, model, held_out))
    return Outcome(codec, accuracies, exchange.bytes_up)


class _Exchange:
    """From the sites' updates to the next model, by one codec."""

    def __init__(self, codec: str) -> None:
        self._choice = None if codec == FLOAT else read_codec(codec)
        self._is_plain = codec != FLOAT and not PRESETS[codec].is_maskable
        self._span: float | None = None
        self._margin = MARGIN_FIRST
        self._rests: list[FloatVector | None] = [None] * SITES
        self.bytes_up = 0

    def apply(self, model: Tensors, updates: Sequence[tuple[FloatVector, int]], round_id: int) -> Tensors:
        manifest = manifest_of(model)
        if self._choice is None:
            total = sum(weight for _, weight in updates)
            mean: FloatVector = np.zeros(manifest.size, np.float32)
            for update, weight in updates:
                mean += update * np.float32(weight / total)
            self.bytes_up = 4 * manifest.size
            return add_update(model, mean, manifest)
        spec = choose_codec(self._choice, SITES, self._span)
        codec = UpdateCodec(spec, manifest, MAX_WEIGHT, round_id.to_bytes(32, "big"))
        total_vector = np.zeros(codec.length, np.uint64)
        for upload in self._encode(codec, updates):
            total_vector += upload
            packed = packed_bytes(codec.length, spec.ring_bits)
            self.bytes_up = write_payload(spec, MAX_WEIGHT, upload).nbytes if self._is_plain else packed
        decoder = codec.open_sum(total_vector[: codec.header_length], len(updates))
        if spec.adaptive:
            told = decoder.header
            span = next_span(told.reach, told.clamped, len(updates), spec.clip, self._margin)
            self._span, self._margin = span.width, span.margin
        mean = decoder.expand(decoder.decode(total_vector[codec.header_length :]))
        return add_update(model, mean, manifest)

    def _encode(self, codec: UpdateCodec, updates: Sequence[tuple[FloatVector, int]]) -> Iterator[np.ndarray]:
        for site, (update, weight) in enumerate(updates):
            rest = self._rests[site]
            whole = update if rest is None else update + rest
            upload = codec.encode(whole, weight, os.urandom)
            if codec.spec.feedback:
                self._rests[site] = codec.rest_of(whole, upload) * np.float32(codec.spec.feedback)
            yield upload


def _trainer(task: Task, digits: DigitSet) -> TorchTrainer:
    loader = torch.utils.data.DataLoader(dataset(digits), batch_size=BATCH_SIZE, shuffle=True)
    return TorchTrainer(
        task.build(),
        loader,
        loader,
        loss=torch.nn.functional.cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=task.learning_rate, momentum=MOMENTUM),
    )


def _train(task: Task, trainer: TorchTrainer, model: Tensors, round_id: int) -> tuple[FloatVector, int]:
    options = {"epochs": task.epochs, "learning_rate": task.learning_rate, "seed": SEED}
    context = TrainingContext("codecs", round_id, 1, round_id, "site", options)
    result = trainer.train(dict(model), context)
    return difference(result.parameters, model, manifest_of(model)), result.num_samples


def _accuracy(task: Task, model: Tensors, held_out: DigitSet) -> float:
    arrays = {name: np.array(array) for name, array in model.items()}
    if task.name == "digits":
        return measure_network(arrays, held_out)
    network = task.build()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    with torch.no_grad():
        named = network(torch.from_numpy(held_out.images)).argmax(dim=1).numpy()
    return float((named == held_out.labels).mean())
