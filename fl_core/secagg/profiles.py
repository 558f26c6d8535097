"""Graphs and thresholds: who shares with whom and how many shares rebuild a secret, given drop-outs and collusion.

Below 100 sites, and wherever a sparse graph would not halve the work, the graph is complete.

Source: Bonawitz et al. 2017, theorem 6.5 and figure 5; for sparse graphs see `fl_core.secagg.degrees`.
"""

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor

from fl_core.errors import PlanError
from fl_core.secagg.degrees import (
    ETA,
    SIGMA,
    SMALLEST_DEGREE,
    Assumptions,
    Profile,
    Thresholds,
    audit_needs,
    smallest_degree,
    stays_connected,
    thresholds_at,
)

SMALLEST_SPARSE_COHORT = 100


class GraphKind(StrEnum):
    """Bonawitz et al. 2017, or Bell et al. 2020."""

    COMPLETE = "complete"
    HARARY = "harary"


@dataclass(frozen=True, slots=True)
class GraphParameters:
    """A graph that holds for a cohort.

    Args:
        kind: complete or sparse.
        degree: neighbours of each site, k; of a complete graph when everybody is in U1.
        thresholds: t that hold.
        audit_needs: dropped sites in a window of k/2 that may make a gap, see `fl_core.secagg.gap_audit`: if
            everybody is in U1, if one site is missing, and so on; empty when the graph is complete.
    """

    kind: GraphKind
    degree: int
    thresholds: Thresholds
    audit_needs: tuple[int, ...]

    @property
    def threshold(self) -> int:
        """The one to use: the largest that is reached, since each one more costs a traitor one more accomplice."""
        return self.thresholds.largest


def default_threshold(size: int) -> int:
    """floor(2n/3) + 1: holds against servers that collude with fewer than a third of the sites.

    Args:
        size: sites in the roster, n.
    """
    return 2 * size // 3 + 1


def most_dropouts(size: int, max_dropout: float) -> int:
    """How many of `size` sites may drop out: the fraction, rounded down."""
    return floor(_exact(max_dropout) * size)


def most_corrupt(size: int, max_corrupt: float) -> int:
    """How many of `size` sites may collude with the servers: the fraction, rounded down, but one when it is not zero.

    Rounding a small fraction of a small cohort down to nobody would drop the assumption without a word.
    """
    return max(1, floor(_exact(max_corrupt) * size)) if max_corrupt > 0 else 0


def check_thresholds(size: int, threshold: int, max_dropout: float, max_corrupt: float) -> None:
    """Prove that a complete graph holds against active servers and survives the drop-outs.

    With t the threshold, n the size, C the corrupt and D the dropped sites: 2t > n + C keeps servers that tell sites
    different survivors from gathering both kinds of share of one site, and t <= n - D keeps the session alive.

    Args:
        size: sites in the roster, n.
        threshold: t.
        max_dropout: fraction of sites that may drop out in all phases together.
        max_corrupt: fraction of sites that may collude with the servers.

    Raises:
        PlanError: one of the two does not hold; the message names the number to change.
    """
    corrupt, dropouts = most_corrupt(size, max_corrupt), most_dropouts(size, max_dropout)
    smallest, largest = (size + corrupt) // 2 + 1, size - dropouts
    if smallest > largest:
        raise PlanError(
            "no threshold holds for this cohort",
            expected=f"2t > {size} + {corrupt} corrupt sites and t <= {size} - {dropouts} dropped sites",
            got=f"max_corrupt {max_corrupt} and max_dropout {max_dropout}",
            fix="lower max_dropout or max_corrupt, or invite more sites",
        )
    if threshold < smallest:
        raise PlanError(
            "the threshold is too low for the corrupt sites",
            expected=f">= {smallest}, more than half of {size} sites and {corrupt} corrupt ones",
            got=threshold,
            fix=f"raise threshold to {smallest} or lower max_corrupt",
        )
    if threshold > largest:
        raise PlanError(
            "the threshold is too high for the drop-outs",
            expected=f"<= {largest}, what is left of {size} sites after {dropouts} dropped out",
            got=threshold,
            fix=f"lower threshold to {largest} or lower max_dropout",
        )


@lru_cache(maxsize=64)
def choose_graph(
    size: int,
    max_corrupt: float,
    max_dropout: float,
    profile: Profile = Profile.EQUIVOCATION_SAFE,
    sigma: int = SIGMA,
    eta: int = ETA,
) -> GraphParameters:
    """The graph of a cohort: as few neighbours as hold, or everybody.

    A sparse graph holds for every U1 that `max_dropout` allows: the server that closes U1 early gains nothing.

    Args:
        size: sites in the roster, n.
        max_corrupt: fraction of sites that may collude with the servers.
        max_dropout: fraction of sites that may drop out in all phases together.
        profile: what a sparse graph holds against.
        sigma: a break has a chance of at most 2**-sigma.
        eta: an honest session fails with a chance of at most 2**-eta for each reason.

    Raises:
        PlanError: nothing holds; the message names the numbers to change.
    """
    cohort = _assumptions(size, max_corrupt, max_dropout, profile, sigma, eta)
    if size >= SMALLEST_SPARSE_COHORT:
        degree = smallest_degree(cohort)
        # Directories with proofs and a second secret from the coordinator are worth it when they halve the work.
        if degree is not None and 2 * degree < size:
            thresholds = thresholds_at(cohort, degree)
            return GraphParameters(GraphKind.HARARY, degree, thresholds, audit_needs(cohort, degree) or ())
    smallest, largest = (size + most_corrupt(size, max_corrupt)) // 2 + 1, size - most_dropouts(size, max_dropout)
    check_thresholds(size, max(smallest, min(default_threshold(size), largest)), max_dropout, max_corrupt)
    return GraphParameters(GraphKind.COMPLETE, size - 1, Thresholds(smallest, largest), ())


@lru_cache(maxsize=64)
def check_sparse_graph(
    size: int, degree: int, threshold: int, max_corrupt: float, max_dropout: float, profile: Profile
) -> tuple[int, ...]:
    """Prove that a sparse graph of this degree and threshold holds, whoever proposed it.

    Args:
        size: sites in the roster, n.
        degree: neighbours of each site, k.
        threshold: t.
        max_corrupt: fraction of sites that may collude with the servers.
        max_dropout: fraction of sites that may drop out in all phases together.
        profile: what it must hold against.

    Returns:
        The needs of the audit, as `GraphParameters` has them.

    Raises:
        PlanError: it does not hold; the message names the number to change.
    """
    cohort = _assumptions(size, max_corrupt, max_dropout, profile, SIGMA, ETA)
    if degree % 2 or not SMALLEST_DEGREE <= degree <= cohort.smallest - 2:
        raise PlanError(
            "the degree of the graph is out of range",
            expected=f"even, {SMALLEST_DEGREE} to {cohort.smallest - 2}, what {size} sites less the drop-outs allow",
            got=degree,
        )
    thresholds = thresholds_at(cohort, degree)
    needs = audit_needs(cohort, degree) if stays_connected(cohort, degree) else None
    if thresholds.missing > 0 or needs is None:
        raise PlanError(
            "the degree of the graph is too low for the corrupt sites and the drop-outs",
            expected=f"a degree that holds for {cohort.corrupt} corrupt and {cohort.dropped} dropped of {size} sites",
            got=degree,
            fix=f"raise the degree to {smallest_degree(cohort)}, or lower max_corrupt or max_dropout",
        )
    if not thresholds.smallest <= threshold <= thresholds.largest:
        raise PlanError(
            "the threshold is out of range for the degree",
            expected=f"{thresholds.smallest} to {thresholds.largest} of {degree} neighbours",
            got=threshold,
            fix="change threshold, max_corrupt or max_dropout",
        )
    return needs


def _assumptions(
    size: int, max_corrupt: float, max_dropout: float, profile: Profile, sigma: int, eta: int
) -> Assumptions:
    # Here a fraction is rounded up: what a sparse graph is promised holds for one site more.
    corrupt, dropped = ceil(_exact(max_corrupt) * size), ceil(_exact(max_dropout) * size)
    smallest = size - most_dropouts(size, max_dropout)
    if corrupt >= smallest:
        raise PlanError(
            "nobody honest is left after the drop-outs",
            expected=f"fewer corrupt sites than the {smallest} that stay",
            got=corrupt,
            fix="lower max_corrupt or max_dropout",
        )
    return Assumptions(size, smallest, corrupt, dropped, profile, sigma, eta)


def _exact(fraction: float) -> Fraction:
    # 0.29 * 100 is 28.999... in floating point; the number as it is written is what was meant.
    return Fraction(str(fraction))
