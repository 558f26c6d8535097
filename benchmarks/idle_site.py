"""A site that does not train, as a program: what is measured with it is everything but training."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cli.demo.events import EventKind, emit
from cli.demo.watching import ReportingObserver
from client_sdk import EvaluationResult, Site, SiteConfig, TrainingContext, TrainResult
from client_sdk.trainer import Array

STEP = np.float32(0.01)


class IdleTrainer:
    """Moves every parameter by the same small step, in place."""

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        """An update, at the cost of one pass over the parameters."""
        emit(EventKind.TRAINING, context.round_id)
        for array in parameters.values():
            np.add(array, STEP, out=array)
        emit(EventKind.TRAINED, context.round_id)
        return TrainResult(parameters, 10)

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:  # noqa: ARG002
        """Nothing is measured."""
        return EvaluationResult(1.0, 10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take part until the parent stops this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    config = SiteConfig.from_file(parser.parse_args(arguments).config)
    Site(config, observer=ReportingObserver()).run(IdleTrainer())


if __name__ == "__main__":
    main()
