"""One site of the demo as a program: the SDK around a torch network and the site's own share of the digits."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from cli.demo.digits import DigitSet
from cli.demo.events import EventKind, emit
from cli.demo.network import build_network, dataset
from cli.demo.options import BATCH_SIZE, LEARNING_RATE, KillPhase
from cli.demo.watching import Halt, ReportingObserver
from client_sdk import EvaluationResult, Site, SiteConfig, Trainer, TrainingContext, TrainResult
from client_sdk.adapters.torch import TorchTrainer, accuracy
from client_sdk.trainer import Array

MOMENTUM = 0.9


class TimedTrainer:
    """Tells the parent when the training of a round starts and ends.

    Args:
        trainer: what trains.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        """Train, with an event before and after."""
        emit(EventKind.TRAINING, context.round_id)
        result = self._trainer.train(parameters, context)
        emit(EventKind.TRAINED, context.round_id)
        return result

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:
        """Evaluate as the trainer does."""
        return self._trainer.evaluate(parameters, context)


def digits_trainer(digits: DigitSet, seed: int = 0) -> TorchTrainer:
    """The trainer of the demo, the same at every site and for the centralised comparison."""
    return TorchTrainer(
        build_network(seed),
        torch.utils.data.DataLoader(dataset(digits), batch_size=BATCH_SIZE, shuffle=True),
        torch.utils.data.DataLoader(dataset(digits), batch_size=len(digits)),
        loss=torch.nn.functional.cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=LEARNING_RATE, momentum=MOMENTUM),
        measures={"accuracy": accuracy},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Take part until the parent stops or kills this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--halt-round", type=int, default=0)
    parser.add_argument("--halt-phase", type=KillPhase)
    options = parser.parse_args(arguments)
    # Many sites share this machine; one thread each is the fastest for all.
    torch.set_num_threads(1)
    halt = Halt(options.halt_round, options.halt_phase) if options.halt_phase else None
    trainer = digits_trainer(DigitSet.load(options.data))
    _warm_up(trainer)
    Site(SiteConfig.from_file(options.config), observer=ReportingObserver(halt)).run(TimedTrainer(trainer))


def _warm_up(trainer: TorchTrainer) -> None:
    """Train once for nothing: at its first step torch loads modules for a second, which is no part of a round."""
    context = TrainingContext(job_id="warm-up", round_id=1, attempt=1, model_version=1, client_id="")
    trainer.train(trainer.initial_parameters(), context)


if __name__ == "__main__":
    main()
