"""A trainer that does not train: it returns a made-up update at once."""

import numpy as np

from client_sdk import EvaluationResult, TrainingContext, TrainResult
from client_sdk.trainer import Array
from fl_core.codec.tensors import FloatVector

TENSOR = "parameters"
LARGEST_STEP = 0.5
"""Of a coordinate, in units of the clip, so that nothing is cut off."""


def initial_model(parameters: int) -> dict[str, Array]:
    """A model of so many zeros, as one float32 tensor."""
    return {TENSOR: np.zeros(parameters, np.float32)}


def made_up_step(parameters: int, seed: int) -> FloatVector:
    """What every site of a process adds to the model, (parameters,) float32."""
    step: FloatVector = np.random.default_rng(seed).random(parameters, np.float32)
    step -= np.float32(LARGEST_STEP)
    return step


class MadeUpTrainer:
    """Adds the same step each time. Sites share it in memory; their weights differ.

    Args:
        step: (parameters,) float32.
        num_samples: the weight of the site.
    """

    def __init__(self, step: FloatVector, num_samples: int) -> None:
        self._step = step
        self._num_samples = num_samples

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:  # noqa: ARG002
        """Add the step."""
        parameters[TENSOR] += self._step
        return TrainResult(parameters, self._num_samples)

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:  # noqa: ARG002
        """Nothing to measure: the job of a load test asks for no evaluation."""
        return EvaluationResult(0.0, self._num_samples)
