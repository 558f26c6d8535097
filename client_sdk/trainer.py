"""What a site brings: a trainer, and the values that go into it and come out of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Protocol

import numpy.typing as npt

from fl_core.errors import CodecError
from fl_core.privacy.events import PrivacyEvent
from fl_core.rounds.plan import Scalar
from fl_core.rounds.privacy_terms import PrivacyTerms

Array = npt.NDArray[Any]
"""A tensor of the model. The element type is open because trainers calculate with it."""


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """What a trainer may want to know about the task.

    Args:
        job_id: the job.
        round_id: counts from 1; in an evaluation the version of the model.
        attempt: counts from 1 within the round; 0 in an evaluation.
        model_version: the version that the parameters are.
        client_id: this site.
        training: the options of the job, as its author wrote them under `training`.
        privacy: the terms of a job in whose training noise is added; None for any other.
    """

    job_id: str
    round_id: int
    attempt: int
    model_version: int
    client_id: str
    training: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    privacy: PrivacyTerms | None = None

    @property
    def seed(self) -> int:
        """A seed below 2**31 for this site and round.

        It is the same in every attempt at the round, and another one at every other site. The job's option `seed`
        changes it.
        """
        text = f"{self.training.get('seed', 0)}/{self.round_id}/{self.client_id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave.

    Args:
        parameters: every tensor of the model after training, with the names, shapes and dtypes that came in.
        num_samples: the weight of this update, > 0. It is never sent in the clear in a secure round.
        metrics: for the log and the observer of this site; they are not sent.
        privacy: with which noise it was trained, where the context asked for it.

    Raises:
        CodecError: num_samples is no positive whole number, or a metric is no number.
    """

    parameters: Mapping[str, Array] = field(repr=False)
    num_samples: int
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    privacy: PrivacyEvent | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", _sample_count(self.num_samples))
        object.__setattr__(self, "metrics", _numbers(self.metrics))


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What an evaluation gave. It goes to the coordinator as it is.

    Args:
        loss: mean loss over the samples, finite.
        num_samples: how many samples were used, > 0.
        metrics: other means over the samples, by name, finite.

    Raises:
        CodecError: num_samples is no positive whole number, or loss or a metric is no finite number.
    """

    loss: float
    num_samples: int
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", _sample_count(self.num_samples))
        object.__setattr__(self, "loss", _finite("loss", self.loss))
        metrics = {name: _finite(f"metric {name!r}", value) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", MappingProxyType(metrics))


class Trainer(Protocol):
    """How a site trains and evaluates. Both methods run in a thread of their own, one at a time.

    The arrays that come in belong to the trainer: it may change them.
    """

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        """Train from `parameters` on the site's data."""

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:
        """Measure `parameters` on the site's data."""


def _sample_count(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or count <= 0:
        raise CodecError("num_samples is out of range", expected="a whole number > 0", got=repr(count))
    return int(count)


def _numbers(metrics: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType({name: _number(f"metric {name!r}", value) for name, value in metrics.items()})


def _number(name: str, value: object) -> float:
    if not isinstance(value, Real):
        raise CodecError(f"{name} is no number", expected="a float", got=type(value).__name__)
    return float(value)


def _finite(name: str, value: object) -> float:
    number = _number(name, value)
    if not isfinite(number):
        raise CodecError(f"{name} is not finite", expected="a finite number", got=number)
    return number
