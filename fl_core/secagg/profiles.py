"""Thresholds: how many shares rebuild a secret, given how many sites may drop out and how many may collude.

Source: Bonawitz et al. 2017, theorem 6.5 and figure 5.
"""

from fractions import Fraction
from math import floor

from fl_core.errors import PlanError


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


def _exact(fraction: float) -> Fraction:
    # 0.29 * 100 is 28.999... in floating point; the number as it is written is what was meant.
    return Fraction(str(fraction))
