"""What training gives, and which task it answers to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fl_core.codec.tensors import FloatVector
from fl_core.privacy.events import PrivacyEvent


class Task(NamedTuple):
    """What a trained update answers to: the same in every attempt at a round."""

    job_id: str
    round_id: int
    model_digest: bytes


@dataclass(frozen=True, slots=True)
class TrainedUpdate:
    """What training changed, (d,) float32 in model units, and the result that it came from.

    Args:
        update: after - before.
        num_samples: samples that it was trained on.
        metrics: of the trainer, for the observer of this site.
        seconds: that training took.
        privacy: with which noise it was trained.
    """

    update: FloatVector = field(repr=False)
    num_samples: int
    metrics: Mapping[str, float]
    seconds: float = 0.0
    privacy: PrivacyEvent | None = None
