"""Noise of many sites that is enough for whatever number of them survives, and can be cut down to what is needed.

A site does not know how many others will survive. So it adds its noise in parts: the first is enough when all of the
cohort survive, and each further part makes it enough for a smaller number, its tier. When it is known who survived,
the parts of smaller tiers are taken away again. Skellam noise is closed under addition, so that parts add up to
exactly the noise that one draw would have been.

Source: Jiang, Wang, Chen 2024, Dordis: Efficient Federated Learning with Dropout-Resilient Differential Privacy (add,
then remove); tiers in geometric steps and exact arithmetic are ours.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, inf, nextafter

from fl_core.errors import PlanError

TIER_RATIO = 1.05
"""Most variance that is left over what is needed: the shares of noise at two neighbouring tiers differ by so much."""

MAX_TIERS = 16


def noise_tiers(cohort: int, fewest: int, colluders: int) -> tuple[int, ...]:
    """The numbers of survivors for which a site's noise has a part of its own, descending.

    With exactly as many survivors as a tier says nothing is left over; just below the tier above it the most is.

    Args:
        cohort: sites in the roster, the first tier.
        fewest: survivors of the smallest sum, the last tier.
        colluders: survivors whose noise is not counted on.

    Raises:
        PlanError: nobody is left whose noise counts, or the cohort is smaller than its smallest sum.
    """
    if not colluders < fewest <= cohort or colluders < 0:
        raise PlanError(
            "nobody is left to add noise",
            expected=f"0 <= colluders < min_survivors <= {cohort}",
            got=f"{colluders} colluders, {fewest} survivors",
        )
    # Where colluders leave few whose noise counts, steps are as wide as it takes to have no more tiers.
    ratio = max(TIER_RATIO, ((cohort - colluders) / (fewest - colluders)) ** (1 / (MAX_TIERS - 1)))
    tiers = [cohort]
    while tiers[-1] > fewest:
        honest = tiers[-1] - 1 - colluders
        tiers.append(max(fewest, colluders + ceil(honest / ratio)))
    return tuple(tiers)


def part_variances(target: float, tiers: Sequence[int], colluders: int) -> tuple[float, ...]:
    """The variance of each part of one site's noise, in one coordinate.

    The sum of the first parts, up to that of a tier, is at least target / (tier - colluders): exactly, because each
    variance is rounded up.

    Args:
        target: variance that is needed in the sum, above 0.
        tiers: as of `noise_tiers`.
        colluders: as there.
    """
    parts: list[float] = []
    reached = Fraction(0)
    for tier in tiers:
        missing = Fraction(target) / (tier - colluders) - reached
        part = float(missing)
        parts.append(part if Fraction(part) >= missing else nextafter(part, inf))
        reached += Fraction(parts[-1])
    return tuple(parts)
