"""The privacy part of a plan: which noise is added by whom, and what one attempt of the plan costs.

Every party works out the same figures from the same few numbers, so that a site can check what it is promised.

What is protected is a unit's data: with `central` and `distributed` noise everything that a site has, with `local`
noise one sample. Two inputs are neighbours when the data of one unit is replaced by nothing, which for a site is an
update of zeros. Who takes part is no secret: every party of a session knows its roster.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, exp, floor, isfinite, lgamma, log, log1p, sqrt

from fl_core.codec.rotation_shape import padded_length
from fl_core.errors import PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.distributions import MAX_STD
from fl_core.privacy.events import Noise, PrivacyEvent, integer_l1
from fl_core.privacy.tiers import noise_tiers, part_variances

PRIVATE_HEADER = 2
"""Coordinates without noise in front of a private upload: a weight of one and a count of one."""

NOISE_MULTIPLIER_MAX = 10_000.0
LEVELS = range(8, (1 << 20) + 1)
TAIL = 12
"""Standard deviations of noise for which the ring has room: beyond them lies less than 2**-100 of it."""

QUANTILE_SHARE = 0.125
"""What the coordinate that counts clipped updates may have of the norm bound of an update."""

QUANTILE_STEP = 0.2
"""How far the clip follows, as the logarithm of its change (Andrew et al. 2021 use the same)."""

_ROUNDING_BETA = exp(-0.5)
"""One minus the least chance that a rounding is short enough to be taken."""


class Mechanism(StrEnum):
    """Who adds the noise."""

    LOCAL = "local"
    """Each site, to the gradients of its own samples."""
    CENTRAL = "central"
    """The key server, to the combined mask; in plain rounds the coordinator."""
    DISTRIBUTED = "distributed"
    """Every site a share, to what it uploads."""

    @property
    def unit(self) -> str:
        """What is protected."""
        return "sample" if self is Mechanism.LOCAL else "site"

    @property
    def is_in_ring(self) -> bool:
        """Whether the noise is integers of the ring."""
        return self is not Mechanism.LOCAL


@dataclass(frozen=True, slots=True)
class PrivacyTerms:
    """What a plan says about privacy.

    Args:
        mechanism: who adds the noise.
        budget: of the whole job.
        clip: largest L2 norm of an update; with `local` of one sample's gradient.
        noise_multiplier: standard deviation of the noise that is counted on over the sensitivity.
        levels: steps of the ring that stand for the clip; 0 with `local`.
        both_servers: with `central`, the aggregator adds noise of its own beside the key server.
        colluders: with `distributed`, survivors whose share of the noise is not counted on.
        sampling_rate: with `central` the chance of a site to be invited, drawn for each site alone; with `local` the
            largest chance of a sample to be in a step. 1 claims no amplification.
        exposed: chance that the draw of the cohort hid nobody, see `fl_core.privacy.renyi.mixed`.
        expected_sites: what the sum is divided by when sites are sampled; 0 for the survivors.
        quantile: the clip follows this quantile of the norms; 0 keeps it.
        steps: with `local`, the most steps of one round.

    Raises:
        PlanError: a number is out of range or the parts do not fit together.
    """

    mechanism: Mechanism
    budget: PrivacyBudget
    clip: float
    noise_multiplier: float
    levels: int = 0
    both_servers: bool = False
    colluders: int = 0
    sampling_rate: float = 1.0
    exposed: float = 0.0
    expected_sites: int = 0
    quantile: float = 0.0
    steps: int = 1

    def __post_init__(self) -> None:
        check_choice(self)
        if self.mechanism.is_in_ring != (self.levels in LEVELS):
            raise PlanError(
                "privacy.levels is out of range", expected=f"{LEVELS[0]} to {LEVELS[-1]}; 0 with local", got=self.levels
            )
        if self.steps < 1 or self.expected_sites < 0 or not 0 <= self.exposed <= 1:
            raise PlanError("the privacy part of a plan is out of range", got=f"{self.steps}, {self.expected_sites}")

    def sensitivity(self, coordinates: int) -> float:
        """Largest L2 norm of what one site adds to the sum, in steps of the ring, after rounding.

        Args:
            coordinates: that are rounded, without those of header and quantile.
        """
        return sqrt(norm_bound(self.levels, coordinates) + self.quantile_level(coordinates) ** 2)

    def quantile_level(self, coordinates: int) -> int:
        """What stands for one clipped or unclipped site in the coordinate that counts them; 0 without a quantile."""
        return ceil(QUANTILE_SHARE * sqrt(norm_bound(self.levels, coordinates))) if self.quantile else 0

    def event(self, coordinates: int) -> PrivacyEvent:
        """What one attempt costs.

        Args:
            coordinates: as in `sensitivity`.
        """
        if self.mechanism is Mechanism.LOCAL:
            return PrivacyEvent(Noise.GAUSSIAN, 1.0, self.noise_multiplier**2, self.sampling_rate, self.steps)
        sensitivity = self.sensitivity(coordinates)
        variance = self.variance(coordinates)
        if self.mechanism is Mechanism.CENTRAL:
            return PrivacyEvent(
                Noise.DISCRETE_GAUSSIAN, sensitivity, variance, self.sampling_rate, exposed=self.exposed
            )
        l1 = integer_l1(sensitivity, coordinates + bool(self.quantile))
        return PrivacyEvent(Noise.SKELLAM, sensitivity, variance, l1_sensitivity=l1)

    def variance(self, coordinates: int) -> float:
        """Of the noise that is counted on, in one coordinate of the sum, steps of the ring squared."""
        return (self.noise_multiplier * self.sensitivity(coordinates)) ** 2

    def share_variance(self, coordinates: int, min_survivors: int) -> float:
        """Of the noise that one party adds: all of it, or with `distributed` all parts of a site's share.

        Raises:
            PlanError: nobody is left whose share counts.
        """
        if self.mechanism is Mechanism.CENTRAL:
            return self.variance(coordinates)
        honest = min_survivors - self.colluders
        if honest < 1:
            raise PlanError(
                "nobody is left to add noise",
                expected=f"privacy.colluders below min_survivors, {min_survivors}",
                got=self.colluders,
                fix="lower privacy.colluders, or raise min_survivors or cohort.min",
            )
        return self.variance(coordinates) / honest

    def noise_tiers(self, cohort: int, min_survivors: int) -> tuple[int, ...]:
        """The numbers of survivors for which a site's noise has a part of its own; empty unless `distributed`.

        Raises:
            PlanError: nobody is left whose share counts.
        """
        if self.mechanism is not Mechanism.DISTRIBUTED:
            return ()
        return noise_tiers(cohort, min_survivors, self.colluders)

    def part_variances(self, coordinates: int, tiers: tuple[int, ...]) -> tuple[float, ...]:
        """Of each part of one site's noise, in one coordinate, steps of the ring squared.

        Args:
            coordinates: as in `sensitivity`.
            tiers: as of `noise_tiers`.
        """
        return part_variances(self.variance(coordinates), tiers, self.colluders)

    def check_room(self, coordinates: int, cohort: int, min_survivors: int, ring_bits: int) -> None:
        """Prove that a noised sum does not wrap around, and that its noise can be sampled.

        Raises:
            PlanError: it may wrap around, or the noise is too wide.
        """
        share = self.share_variance(coordinates, min_survivors)
        shares = cohort if self.mechanism is Mechanism.DISTRIBUTED else 1 + self.both_servers
        largest = cohort * floor(self.sensitivity(coordinates)) + ceil(TAIL * sqrt(shares * share))
        if largest >= 1 << (ring_bits - 1):
            raise PlanError(
                "the ring can overflow with this noise",
                expected=f"2**(ring_bits - 1) above {largest}",
                got=f"ring_bits {ring_bits}",
                fix="raise codec.ring_bits, or lower privacy.levels, the noise or the cohort",
            )
        if share > MAX_STD**2:
            raise PlanError(
                "the noise is too wide for the sampler",
                expected=f"a standard deviation up to {MAX_STD} steps",
                got=f"{sqrt(share):.0f}",
                fix="lower privacy.levels",
            )


def drawing_rate(terms: PrivacyTerms | None) -> float | None:
    """The chance with which each site is drawn into a cohort; None when the cohort is not drawn in this way."""
    is_drawn = terms is not None and terms.mechanism is Mechanism.CENTRAL and terms.sampling_rate < 1
    return terms.sampling_rate if is_drawn and terms is not None else None


def check_choice(terms: PrivacyTerms) -> None:
    """Check the numbers that a job chooses.

    Raises:
        PlanError: one is out of range; the message names it.
    """
    if not (isfinite(terms.clip) and 0 < terms.clip <= 1e30):
        raise PlanError(
            "privacy.clip is out of range",
            expected="above 0",
            got=terms.clip,
            fix="take the median norm of an update, or of a sample's gradient with local",
        )
    if not 0 < terms.noise_multiplier <= NOISE_MULTIPLIER_MAX:
        raise PlanError(
            "a private job needs noise",
            expected=f"a noise_multiplier above 0, up to {NOISE_MULTIPLIER_MAX:g}",
            got=terms.noise_multiplier,
            fix="leave noise_multiplier out to have it worked out, or leave the privacy section out",
        )
    if not 0 < terms.sampling_rate <= 1:
        raise PlanError("privacy.sampling_rate is out of range", expected="above 0, up to 1", got=terms.sampling_rate)
    if terms.mechanism is Mechanism.DISTRIBUTED and terms.sampling_rate < 1:
        raise PlanError(
            "distributed noise claims no amplification",
            expected="privacy.sampling_rate 1",
            got=terms.sampling_rate,
            fix="the servers, which it protects from, know who takes part; use central noise to claim it",
        )
    if terms.both_servers and terms.mechanism is not Mechanism.CENTRAL:
        raise PlanError("noise of both servers belongs to central noise", got=terms.mechanism.value)
    if terms.colluders < 0 or (terms.colluders and terms.mechanism is not Mechanism.DISTRIBUTED):
        raise PlanError("privacy.colluders belongs to distributed noise", expected=">= 0", got=terms.colluders)
    if not 0 <= terms.quantile < 1 or (terms.quantile and not terms.mechanism.is_in_ring):
        raise PlanError("privacy.quantile is out of range", expected="0 to below 1; 0 with local", got=terms.quantile)


def private_coordinates(terms: PrivacyTerms, size: int) -> int:
    """Coordinates that an update of a model of `size` is rounded to: padded where it is rotated."""
    return padded_length(size) if terms.mechanism is Mechanism.DISTRIBUTED else size


def private_length(terms: PrivacyTerms, size: int) -> int:
    """Coordinates of an upload: header, update, and the one that counts clipped updates."""
    return PRIVATE_HEADER + private_coordinates(terms, size) + bool(terms.quantile)


def check_aggregation(mechanism: Mechanism, both_servers: bool, is_masked: bool, aggregation: str) -> None:
    """Check that noise of this kind can be added with this aggregation.

    Args:
        mechanism: who adds the noise.
        both_servers: whether the aggregator adds noise beside the key server.
        is_masked: whether updates are masked.
        aggregation: its name.

    Raises:
        PlanError: it cannot.
    """
    needs_masks = mechanism is Mechanism.DISTRIBUTED or both_servers
    if is_masked or not (needs_masks or (mechanism.is_in_ring and aggregation != "plain")):
        return
    raise PlanError(
        "this noise needs masks",
        expected="aggregation: secagg",
        got=aggregation,
        fix="leave aggregation out, or take local noise",
    )


def norm_bound(levels: int, coordinates: int) -> int:
    """The square of the longest rounded update that is taken: an integer, checked exactly by whoever rounds.

    Source: Kairouz, Liu, Steinke 2021, The Distributed Discrete Gaussian Mechanism (conditional randomised rounding),
    with a chance of 1 - exp(-1/2) at most that a rounding is longer.
    """
    worst = (levels + sqrt(coordinates)) ** 2
    likely = levels**2 + coordinates / 4 + sqrt(-2 * log(_ROUNDING_BETA)) * (levels + sqrt(coordinates) / 2)
    return floor(min(worst, likely))


def default_levels(coordinates: int, noise_multiplier: float) -> int:
    """Steps for the clip: enough that rounding adds 1% to the sensitivity at most, where the sampler has room."""
    wanted = max(256, ceil(4 * sqrt(coordinates)))
    widest = int(0.9 * MAX_STD / max(noise_multiplier, 1.0))
    return max(LEVELS[0], min(wanted, widest, LEVELS[-1]))


def exposure(connected: int, rate: float, smallest: int, largest: int) -> float:
    """The chance that one site's presence decides whether the draw of the others is a cohort, or is cut.

    A draw that is too small is given up and one that is too large is cut, and both depend on each site being there.

    Args:
        connected: sites that were drawn from.
        rate: chance of each.
        smallest: fewest sites of a cohort.
        largest: most sites of a cohort.
    """
    others = connected - 1
    below = _binomial(others, smallest - 1, rate)
    above = sum(_binomial(others, count, rate) for count in range(largest, others + 1))
    # Draws that are too small are given up and drawn again, so that the chances are those among the others.
    taken = sum(_binomial(others, count, rate) for count in range(smallest, others + 1))
    return min(1.0, (below + above) / taken) if taken else 1.0


def _binomial(count: int, hits: int, rate: float) -> float:
    if not 0 <= hits <= count:
        return 0.0
    if rate == 1:
        return float(hits == count)
    coefficient = lgamma(count + 1) - lgamma(hits + 1) - lgamma(count - hits + 1)
    return exp(coefficient + hits * log(rate) + (count - hits) * log1p(-rate))
