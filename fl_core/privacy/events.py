"""One release of noised data, with the facts that decide how much it costs."""

import json
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from math import isfinite, sqrt

import numpy as np

from fl_core.errors import PlanError
from fl_core.privacy import renyi
from fl_core.privacy.renyi import ORDERS, Curve

MAX_JSON_CHARACTERS = 2_000
MAX_COUNT = 1 << 40


class Noise(StrEnum):
    """Which noise was added; for all but `gaussian` sensitivity and noise are integers of the ring."""

    GAUSSIAN = "gaussian"
    DISCRETE_GAUSSIAN = "discrete_gaussian"
    SKELLAM = "skellam"
    DISTRIBUTED_DISCRETE_GAUSSIAN = "distributed_discrete_gaussian"


@dataclass(frozen=True, slots=True)
class PrivacyEvent:
    """A noised sum that was released, or may have been.

    Args:
        noise: the kind.
        sensitivity: largest L2 norm of what one protected unit adds to the sum.
        variance: of the noise that is counted on, in one coordinate of the sum, units of `sensitivity` squared.
        sampling_rate: chance of a unit to be in the sum; 1 claims no amplification.
        steps: equal releases, one after the other.
        l1_sensitivity: largest L1 norm, for Skellam and distributed discrete Gaussian noise; 0 for the others.
        dimension: coordinates, for distributed discrete Gaussian noise.
        shares: of the noise, for distributed discrete Gaussian noise.
        exposed: chance that the sampling hid nobody, see `renyi.mixed`.

    Raises:
        PlanError: a number is out of range.
    """

    noise: Noise
    sensitivity: float
    variance: float
    sampling_rate: float = 1.0
    steps: int = 1
    l1_sensitivity: float = 0.0
    dimension: int = 1
    shares: int = 1
    exposed: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.variance) and self.variance > 0):
            raise PlanError(
                "a private release needs noise", expected="a finite variance above 0", got=self.variance,
                fix="raise noise_multiplier, or leave the privacy section out",
            )  # fmt: skip
        if not (isfinite(self.sensitivity) and self.sensitivity > 0):
            raise PlanError("a sensitivity is out of range", expected="a finite number above 0", got=self.sensitivity)
        if not 0 < self.sampling_rate <= 1:
            raise PlanError("a sampling rate is out of range", expected="above 0, up to 1", got=self.sampling_rate)
        if not 0 <= self.exposed <= 1:
            raise PlanError("a chance is out of range", expected="0 to 1", got=self.exposed)
        if self.steps < 1 or self.dimension < 1 or self.shares < 1:
            raise PlanError("a count of a privacy event is out of range", expected="1 or more", got=self.steps)
        if self.noise in (Noise.SKELLAM, Noise.DISTRIBUTED_DISCRETE_GAUSSIAN) and not self.l1_sensitivity > 0:
            raise PlanError("this noise needs an L1 sensitivity", expected="above 0", got=self.l1_sensitivity)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation over L2 sensitivity."""
        return sqrt(self.variance) / self.sensitivity

    def curve(self) -> Curve:
        """(orders,) Rényi divergences of all steps together."""
        return self.steps * _curve_of_one(replace(self, steps=1))

    def to_json(self) -> str:
        """Canonical JSON: the same event gives the same text, which a site signs."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def without_sampling(self) -> "PrivacyEvent":
        """What it costs against somebody who knows who was in the sum."""
        return replace(self, sampling_rate=1.0, exposed=0.0)


def event_from_json(text: str) -> PrivacyEvent:
    """Read an event as `PrivacyEvent.to_json` writes it.

    Raises:
        PlanError: the text is no such JSON, or a number is out of range.
    """
    try:
        facts = json.loads(text) if len(text) <= MAX_JSON_CHARACTERS else None
    except (ValueError, RecursionError) as error:
        raise PlanError("a privacy event is no JSON", got=f"{len(text)} characters") from error
    if not isinstance(facts, dict) or facts.keys() != {part.name for part in fields(PrivacyEvent)}:
        raise PlanError("a privacy event has the wrong form", expected="the fields of a privacy event, each once")
    whole = {"steps", "dimension", "shares"}
    for name, value in facts.items():
        kinds = str if name == "noise" else int if name in whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise PlanError(f"{name} of a privacy event has the wrong type", got=type(value).__name__)
    if facts["noise"] not in tuple(Noise) or max(facts[name] for name in whole) > MAX_COUNT:
        raise PlanError("a privacy event is out of range", got=facts["noise"][:64])
    return PrivacyEvent(
        noise=Noise(facts["noise"]),
        sensitivity=float(facts["sensitivity"]),
        variance=float(facts["variance"]),
        sampling_rate=float(facts["sampling_rate"]),
        steps=facts["steps"],
        l1_sensitivity=float(facts["l1_sensitivity"]),
        dimension=facts["dimension"],
        shares=facts["shares"],
        exposed=float(facts["exposed"]),
    )


def integer_l1(l2: float, dimension: int) -> float:
    """Largest L1 norm of an integer vector of this L2 norm: at most l2 * sqrt(d), and at most its square."""
    return l2 * min(sqrt(dimension), l2)


@lru_cache(maxsize=4096)
def _curve_of_one(event: PrivacyEvent) -> Curve:
    divergences = [_divergence(event, order) for order in ORDERS]
    curve = np.array(divergences, np.float64)
    curve.flags.writeable = False
    return curve


def _divergence(event: PrivacyEvent, order: float) -> float:
    unsampled = _unsampled(event, order)
    if event.sampling_rate == 1:
        return unsampled
    if event.noise is Noise.GAUSSIAN:
        sampled = renyi.sampled_gaussian(order, event.noise_multiplier, event.sampling_rate)
    else:
        sampled = renyi.poisson_sampled(order, lambda alpha: _unsampled(event, alpha), event.sampling_rate)
    return renyi.mixed(order, min(sampled, unsampled), unsampled, event.exposed)


def _unsampled(event: PrivacyEvent, order: float) -> float:
    match event.noise:
        case Noise.GAUSSIAN | Noise.DISCRETE_GAUSSIAN:
            return renyi.gaussian(order, event.noise_multiplier)
        case Noise.SKELLAM:
            return renyi.skellam(order, event.sensitivity, event.l1_sensitivity, event.variance)
        case Noise.DISTRIBUTED_DISCRETE_GAUSSIAN:
            return renyi.distributed_discrete_gaussian(
                order, event.sensitivity, event.l1_sensitivity, event.variance / event.shares,
                event.shares, event.dimension,
            )  # fmt: skip
