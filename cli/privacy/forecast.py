"""What each mechanism costs by round, from epsilon to noise and back: plain values, ready for a table or a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from fl_core.errors import ConfigError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.calibration import epsilon_after, noise_multiplier_for
from fl_core.privacy.events import Noise, PrivacyEvent
from fl_core.rounds.privacy_terms import Mechanism, PrivacyTerms, default_levels, exposure, private_coordinates
from fl_core.secagg.profiles import default_threshold

MAX_ROUNDS = 100_000
MAX_SITES = 1_000_000
PLOT_POINTS = 60


@dataclass(frozen=True, slots=True)
class PrivacyQuestion:
    """What somebody wants to know.

    Args:
        rounds: releases.
        sites: connected.
        delta: of the guarantee.
        parameters: of the model.
        sampling: chance of each site, and of each sample with local noise; 1 claims no amplification.
        steps: of local training in a round.
        survivors: fewest sites of a sum; two thirds and one when None.
        colluders: whose noise does not count.

    Raises:
        ConfigError: a number is out of range.
    """

    rounds: int
    sites: int
    delta: float
    parameters: int = 100_000
    sampling: float = 1.0
    steps: int = 1
    survivors: int | None = None
    colluders: int = 0

    def __post_init__(self) -> None:
        for name, value, limit in (("rounds", self.rounds, MAX_ROUNDS), ("sites", self.sites, MAX_SITES)):
            if not 1 <= value <= limit:
                raise ConfigError(f"--{name} is out of range", expected=f"1 to {limit:,}", got=value)
        if not 0 < self.sampling <= 1:
            raise ConfigError("--sampling is out of range", expected="above 0, up to 1", got=self.sampling)
        if self.parameters < 1 or self.steps < 1:
            raise ConfigError("--parameters and --steps count from 1", got=f"{self.parameters} and {self.steps}")
        honest = self.smallest_sum - self.colluders
        if self.colluders < 0 or honest < 1 or self.smallest_sum > self.sites:
            raise ConfigError(
                "--survivors and --colluders leave nobody whose noise counts",
                expected=f"0 <= colluders < survivors <= {self.sites}",
                got=f"{self.colluders} colluders, {self.smallest_sum} survivors",
            )

    @property
    def smallest_sum(self) -> int:
        """Fewest sites of a sum."""
        return default_threshold(self.sites) if self.survivors is None else self.survivors


@dataclass(frozen=True, slots=True)
class MechanismForecast:
    """What one mechanism costs.

    Args:
        mechanism: which.
        noise_multiplier: standard deviation over sensitivity.
        event: of one round.
        epsilon: after all rounds.
        epsilon_without_sampling: the same against who knows the cohorts.
        mean_noise: standard deviation of one coordinate of the mean update, in clips, when all survive; None with
            local noise.
        mean_noise_of_fewest: the same when the fewest survive that may.
        curve: (round, epsilon), rising.
    """

    mechanism: Mechanism
    noise_multiplier: float
    event: PrivacyEvent
    epsilon: float
    epsilon_without_sampling: float
    mean_noise: float | None
    mean_noise_of_fewest: float | None
    curve: tuple[tuple[int, float], ...]


def foresee_noise(question: PrivacyQuestion, budget: PrivacyBudget) -> list[MechanismForecast]:
    """The noise that each mechanism needs for a budget.

    Raises:
        PlanError: none does.
    """
    return [_forecast(question, mechanism, _needed(question, mechanism, budget)) for mechanism in Mechanism]


def _needed(question: PrivacyQuestion, mechanism: Mechanism, budget: PrivacyBudget) -> float:
    return noise_multiplier_for(budget, question.rounds, lambda value: event_of(question, mechanism, value))


def foresee_epsilon(question: PrivacyQuestion, noise_multiplier: float) -> list[MechanismForecast]:
    """What a noise multiplier costs with each mechanism."""
    return [_forecast(question, mechanism, noise_multiplier) for mechanism in Mechanism]


def event_of(question: PrivacyQuestion, mechanism: Mechanism, multiplier: float) -> PrivacyEvent:
    """One round of a mechanism."""
    if mechanism is Mechanism.LOCAL:
        return PrivacyEvent(Noise.GAUSSIAN, 1.0, multiplier**2, question.sampling, question.steps)
    is_drawn = mechanism is Mechanism.CENTRAL and question.sampling < 1
    terms = PrivacyTerms(
        mechanism=mechanism,
        budget=PrivacyBudget(1.0, question.delta),
        clip=1.0,
        noise_multiplier=multiplier,
        levels=default_levels(question.parameters, multiplier),
        sampling_rate=question.sampling if is_drawn else 1.0,
        exposed=_exposed(question) if is_drawn else 0.0,
    )
    return terms.event(private_coordinates(terms, question.parameters))


def _exposed(question: PrivacyQuestion) -> float:
    smallest = min(3, question.sites)
    return exposure(question.sites, question.sampling, smallest, question.sites)


def _forecast(question: PrivacyQuestion, mechanism: Mechanism, multiplier: float) -> MechanismForecast:
    event = event_of(question, mechanism, multiplier)
    curve = tuple((count, epsilon_after(event, count, question.delta)) for count in _points(question.rounds))
    return MechanismForecast(
        mechanism=mechanism,
        noise_multiplier=multiplier,
        event=event,
        epsilon=curve[-1][1],
        epsilon_without_sampling=epsilon_after(event.without_sampling(), question.rounds, question.delta),
        mean_noise=_mean_noise(question, mechanism, multiplier, question.sites),
        mean_noise_of_fewest=_mean_noise(question, mechanism, multiplier, question.smallest_sum),
        curve=curve,
    )


def _mean_noise(question: PrivacyQuestion, mechanism: Mechanism, multiplier: float, survivors: int) -> float | None:
    match mechanism:
        case Mechanism.LOCAL:
            return None
        case Mechanism.CENTRAL:
            # Where sites are drawn, the sum is divided by those that are expected, whoever is there.
            return multiplier / (survivors if question.sampling == 1 else max(1.0, question.sampling * question.sites))
        case Mechanism.DISTRIBUTED:
            # What so many do not need is taken away, but for the share that stands for the colluders.
            return multiplier * sqrt(survivors / (survivors - question.colluders)) / survivors


def _points(rounds: int) -> Sequence[int]:
    count = min(rounds, PLOT_POINTS)
    return sorted({max(1, round(rounds * (place + 1) / count)) for place in range(count)})
