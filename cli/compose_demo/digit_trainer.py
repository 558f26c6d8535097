"""What a site of the demo trains: softmax regression on its own share of scikit-learn's digits, in numpy alone."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cli.demo.digits import CLASSES, CONCENTRATION, DigitSet, load_digit_sets
from client_sdk.trainer import Array, EvaluationResult, TrainingContext, TrainResult

SHARE = 120
"""Images of one site."""
PIXELS = 64
DATA_SEED = 7


class DigitTrainer:
    """Softmax regression by mini-batches.

    Args:
        client_id: whose share of the digits it is; the same site has the same share after every restart.
    """

    def __init__(self, client_id: str = "") -> None:
        training, self._held_out = load_digit_sets(DATA_SEED)
        self._share = _share_of(training, client_id)

    def initial_parameters(self) -> Mapping[str, Array]:
        """A model that knows nothing."""
        return {"weight": np.zeros((PIXELS, CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        """Go over the share `epochs` times with step `lr`."""
        options = context.training
        epochs, step, batch = int(options.get("epochs", 2)), float(options.get("lr", 0.2)), 16
        weight, bias = parameters["weight"].astype(np.float32), parameters["bias"].astype(np.float32)
        generator = np.random.default_rng(context.seed)
        for _ in range(epochs):
            order = generator.permutation(len(self._share))
            for start in range(0, len(order), batch):
                part = self._share.take(order[start : start + batch])
                error = _probabilities(part, weight, bias) - np.eye(CLASSES, dtype=np.float32)[part.labels]
                weight -= step / len(part) * part.images.T @ error
                bias -= step * error.mean(axis=0)
        return TrainResult({"weight": weight, "bias": bias}, len(self._share))

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:  # noqa: ARG002
        """Measure on the digits that no site trains on."""
        guess = _probabilities(self._held_out, parameters["weight"], parameters["bias"])
        right = guess[np.arange(len(guess)), self._held_out.labels]
        accuracy = float((guess.argmax(axis=1) == self._held_out.labels).mean())
        loss = float(-np.log(np.maximum(right, 1e-9)).mean())
        return EvaluationResult(loss, len(self._held_out), {"accuracy": accuracy})


def _share_of(digits: DigitSet, client_id: str) -> DigitSet:
    """A share with a mixture of classes of its own, Dirichlet(0.5), drawn by the site's name."""
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(client_id.encode()).digest()[:8], "little"))
    by_class = generator.dirichlet(np.full(CLASSES, CONCENTRATION))
    counts = np.bincount(digits.labels, minlength=CLASSES)
    chances = (by_class / counts)[digits.labels]
    return digits.take(generator.choice(len(digits), SHARE, replace=False, p=chances / chances.sum()))


def _probabilities(digits: DigitSet, weight: Array, bias: Array) -> npt.NDArray[np.float32]:
    logits = digits.images @ weight + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
