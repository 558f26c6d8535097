"""What a job says about privacy, and the terms that follow from it for one attempt."""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from math import isfinite

from fl_core.errors import PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.calibration import epsilon_after, noise_multiplier_for, rounds_within
from fl_core.privacy.events import PrivacyEvent
from fl_core.rounds.privacy_terms import (
    LEVELS,
    Mechanism,
    PrivacyTerms,
    check_choice,
    default_levels,
    exposure,
    private_coordinates,
)

MAX_RELEASES = 1_000_000
MAX_STEPS = 1_000_000


class NoiseBy(StrEnum):
    """With central noise, who adds it."""

    KEYSERVER = "keyserver"
    BOTH = "both"


class Evaluations(StrEnum):
    """Whether sites may report what they measure, which no noise covers."""

    REFUSED = "refused"
    OUTSIDE = "outside"
    """They may: what they report is outside of the guarantee, and every report says so."""


@dataclass(frozen=True, slots=True)
class PrivacyChoice:
    """The `privacy` section of a job.

    Args:
        mechanism: who adds the noise.
        epsilon: of the whole job, a hard stop.
        delta: of the whole job.
        clip: largest L2 norm of an update, model units; with `local` of one sample's gradient.
        noise_multiplier: of each release; when None the least with which `releases` of them keep the budget.
        releases: that the budget is spread over; when None the rounds of the job. An attempt that is abandoned after
            its unmasking began is a release too.
        levels: steps of the ring that stand for the clip; as many as are useful when None.
        noise: with `central`, whether the aggregator adds noise of its own beside the key server.
        colluders: with `distributed`, survivors that may give their noise away.
        sampling_rate: see `PrivacyTerms`.
        quantile: the clip follows this quantile of the norms of the updates, from `clip` on; 0 keeps it.
        steps: with `local`, steps of a round at the site that takes most of them.
        evaluations: whether sites may report measurements, which no noise covers.

    Raises:
        PlanError: a number is out of range; the message names it.
    """

    mechanism: Mechanism
    epsilon: float
    delta: float
    clip: float
    noise_multiplier: float | None = None
    releases: int | None = None
    levels: int | None = None
    noise: NoiseBy = NoiseBy.KEYSERVER
    colluders: int = 0
    sampling_rate: float = 1.0
    quantile: float = 0.0
    steps: int = 1
    evaluations: Evaluations = Evaluations.REFUSED

    def __post_init__(self) -> None:
        PrivacyBudget(self.epsilon, self.delta)
        if self.noise_multiplier is not None and not (isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PlanError(
                "a private job needs noise",
                expected="privacy.noise_multiplier above 0",
                got=self.noise_multiplier,
                fix="leave noise_multiplier out to have it worked out, or leave the privacy section out",
            )
        if self.releases is not None and not 1 <= self.releases <= MAX_RELEASES:
            raise PlanError("privacy.releases is out of range", expected=f"1 to {MAX_RELEASES}", got=self.releases)
        if self.levels is not None and self.levels not in LEVELS:
            raise PlanError("privacy.levels is out of range", expected=f"{LEVELS[0]} to {LEVELS[-1]}", got=self.levels)
        if not 1 <= self.steps <= MAX_STEPS or (self.steps > 1 and self.mechanism is not Mechanism.LOCAL):
            raise PlanError(
                "privacy.steps is out of range", expected=f"1 to {MAX_STEPS}; 1 without local noise", got=self.steps
            )
        check_choice(self._terms(1.0, 1))

    @property
    def budget(self) -> PrivacyBudget:
        """Epsilon and delta of the job."""
        return PrivacyBudget(self.epsilon, self.delta)

    def terms(self, rounds: int, size: int, cohort: "Draw", clip: float | None = None) -> PrivacyTerms:
        """The terms of one attempt.

        Args:
            rounds: of the job.
            size: parameters of the model.
            cohort: from whom its cohort was drawn.
            clip: of this round, where it follows a quantile.

        Raises:
            PlanError: no noise keeps the budget over so many releases.
        """
        base = replace(self._terms(1.0, size), exposed=self._exposure(cohort), expected_sites=self._expected(cohort))
        multiplier = self.noise_multiplier or _calibrated(self.budget, self.releases or rounds, base, size, self.levels)
        terms = _with_multiplier(base, multiplier, size, self.levels)
        return terms if clip is None else replace(terms, clip=clip)

    def check_rounds(self, rounds: int, size: int, cohort: "Draw") -> None:
        """Prove that the budget is enough for all rounds, if nothing is run twice.

        Raises:
            PlanError: it is not; the message says for how many it is.
        """
        terms = self.terms(rounds, size, cohort)
        event = terms.event(private_coordinates(terms, size))
        if epsilon_after(event, rounds, self.delta) <= self.epsilon:
            return
        enough = rounds_within(self.budget, event, rounds)
        raise PlanError(
            "the privacy budget is too small for the rounds",
            expected=f"at most {enough} rounds with epsilon {self.epsilon:g} and this noise",
            got=f"{rounds} rounds, which cost {epsilon_after(event, rounds, self.delta):.4g}",
            fix=f"lower rounds to {enough}, raise privacy.epsilon or privacy.noise_multiplier",
        )

    def _terms(self, multiplier: float, size: int) -> PrivacyTerms:
        base = PrivacyTerms(
            mechanism=self.mechanism,
            budget=self.budget,
            clip=self.clip,
            noise_multiplier=multiplier,
            levels=LEVELS[0] if self.mechanism.is_in_ring else 0,
            both_servers=self.noise is NoiseBy.BOTH,
            colluders=self.colluders,
            sampling_rate=self.sampling_rate,
            quantile=self.quantile,
            steps=self.steps,
        )
        return _with_multiplier(base, multiplier, size, self.levels)

    def _exposure(self, cohort: "Draw") -> float:
        if self.drawing_rate is None:
            return 0.0
        return exposure(cohort.connected, self.sampling_rate, cohort.smallest, cohort.largest)

    def _expected(self, cohort: "Draw") -> int:
        return max(1, round(self.sampling_rate * cohort.connected)) if self.drawing_rate else 0

    @property
    def drawing_rate(self) -> float | None:
        """The chance with which each connected site is drawn alone, by a coin; None when the cohort is not drawn so."""
        return self.sampling_rate if self.mechanism is Mechanism.CENTRAL and self.sampling_rate < 1 else None


@dataclass(frozen=True, slots=True)
class Draw:
    """How a cohort was drawn.

    Args:
        connected: sites that each had the same chance.
        smallest: fewest of a cohort.
        largest: most of a cohort.
    """

    connected: int
    smallest: int
    largest: int


def _with_multiplier(base: PrivacyTerms, multiplier: float, size: int, levels: int | None) -> PrivacyTerms:
    if not base.mechanism.is_in_ring:
        return replace(base, noise_multiplier=multiplier)
    chosen = levels or default_levels(private_coordinates(base, size), multiplier)
    return replace(base, noise_multiplier=multiplier, levels=chosen)


@lru_cache(maxsize=64)
def _calibrated(budget: PrivacyBudget, releases: int, base: PrivacyTerms, size: int, levels: int | None) -> float:
    coordinates = private_coordinates(base, size)

    def event_of(multiplier: float) -> PrivacyEvent:
        return _with_multiplier(base, multiplier, size, levels).event(coordinates)

    return noise_multiplier_for(budget, releases, event_of)
