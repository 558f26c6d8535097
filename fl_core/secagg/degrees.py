"""How many neighbours a sparse graph needs: the conditions of Bell et al. 2020, with exact tails.

The members stand on a ring in uniformly random order, each joined to the k/2 nearest on either side. Who is corrupt and
who drops out is fixed before the order is drawn; a cohort in which somebody chooses the drop-outs afterwards needs the
audit of `fl_core.secagg.gap_audit`, whose conditions are here too.

With n members of whom A are corrupt and D drop out, t the threshold, sigma and eta the two security parameters:

    E1  honest but curious: nobody has t corrupt neighbours.
        Equivocation safe: nobody has so many corrupt neighbours, C, that 2t > k + C fails.
    E2  the honest survivors are connected: the ring has no two gaps of k/2 corrupt or dropped members.
    E3  everybody has t neighbours that survive.
    E4  no honest session is refused by the audit.

Members that are missing when U1 is frozen cannot drop out of it any more: of m members at most D - (n - m) still do,
while all A corrupt ones may be among them. E1 is worst for the smallest U1, E2 and E3 are for the largest, and the
audit is fitted to the U1 that there is.

E1 and E2 together fail with a chance of at most 2**-sigma, E3 and E4 with at most 2**-eta each.

Source: Bell et al. 2020, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, with the tails of the
parameter finder in google-parfait/federated-compute; E4 is ours.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import log

from fl_core.secagg.tails import Draw, log_falling_ratio

SIGMA = 40
ETA = 30
SIZES_OF_U1 = 128
"""Into so many ranges the sizes that U1 can have are cut at most for the audit."""
SMALLEST_DEGREE = 2
SMALLEST_SPARSE_THRESHOLD = 2


class Profile(StrEnum):
    """What a sparse graph holds against. A complete graph always holds against equivocation."""

    HONEST_BUT_CURIOUS = "honest_but_curious"
    EQUIVOCATION_SAFE = "equivocation_safe"

    @property
    def strength(self) -> int:
        """Profiles by ascending strength."""
        return list(Profile).index(self)


@dataclass(frozen=True, slots=True)
class Assumptions:
    """A cohort and what it must hold against.

    Args:
        size: most members of U1, n.
        smallest: fewest members of U1, at most n. Corrupt sites never leave, so that they weigh most here.
        corrupt: sites that collude with the servers, A.
        dropped: sites that drop out in all phases together, D.
        profile: which lies of a server it holds against.
        sigma: a break has a chance of at most 2**-sigma.
        eta: an honest session fails with a chance of at most 2**-eta for each reason.
    """

    size: int
    smallest: int
    corrupt: int
    dropped: int
    profile: Profile
    sigma: int = SIGMA
    eta: int = ETA

    def frozen_between(self, fewest: int, most: int) -> "Assumptions":
        """What is left to assume when U1 has been frozen at `fewest` to `most` members."""
        return replace(self, size=most, smallest=fewest, dropped=max(0, self.dropped - (self.size - most)))

    @property
    def rare(self) -> float:
        """The chance that each of E1 and E2 may have, for one of the n members: 2**-(sigma + 1) / n."""
        return 2.0 ** -(self.sigma + 1) / self.size


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds that hold at one degree: from the smallest that is private to the largest that is reached."""

    smallest: int
    largest: int

    @property
    def missing(self) -> int:
        """By how much the range misses to hold anything; 0 or less when it does not."""
        return self.smallest - self.largest


def thresholds_at(cohort: Assumptions, degree: int) -> Thresholds:
    """The thresholds for which E1 and E3 hold.

    Args:
        cohort: what must hold.
        degree: k, below the smallest U1.
    """
    corrupt = Draw(cohort.smallest - 1, cohort.corrupt, degree).rarely_reached(cohort.rare)
    private = corrupt if cohort.profile is Profile.HONEST_BUT_CURIOUS else -(-(degree + corrupt) // 2)
    survivors = Draw(cohort.size - 1, cohort.size - 1 - cohort.dropped, degree)
    reached = survivors.nearly_always_reached(2.0**-cohort.eta / cohort.size)
    return Thresholds(max(SMALLEST_SPARSE_THRESHOLD, private), reached)


def stays_connected(cohort: Assumptions, degree: int) -> bool:
    """Whether E2 holds: two gaps of k/2 each need k bad members, at one of n (n - k - 1) / 2 places."""
    size, bad = cohort.size, cohort.corrupt + cohort.dropped
    if bad < degree:
        return True
    gaps = size * (size - degree - 1) / 2
    return log(gaps) + log_falling_ratio(bad, size, degree) <= log(2.0) * -(cohort.sigma + 1)


def audit_needs(cohort: Assumptions, degree: int) -> tuple[int, ...] | None:
    """The needs of the audit if E4 holds for every U1: of the whole cohort, of one member less, down to the smallest.

    Sizes of U1 that are close to one another have one need, which is right for the least of them, where corrupt
    members weigh most; E4 is checked for the largest of them, where most may drop out.

    Returns:
        The needs, each at least 1; None when E4 fails for one of them.
    """
    needs: list[int] = []
    step = -(-cohort.size // SIZES_OF_U1)
    for most in range(cohort.size, cohort.smallest - 1, -step):
        fewest = max(cohort.smallest, most - step + 1)
        here = cohort.frozen_between(fewest, most)
        if not audit_passes(here, degree):
            return None
        needs += [audit_need(here, degree)] * (most - fewest + 1)
    return tuple(needs)


def audit_need(cohort: Assumptions, degree: int) -> int:
    """So many dropped members in a window of k/2 may make a gap: the corrupt ones among them would fill it.

    With c the smallest count such that some window of k/2 holds c corrupt members with a chance of at most
    2**-(sigma + 1), a window without an honest survivor has at least k/2 - c + 1 dropped members.

    Returns:
        The need; it is below 1 when corrupt members alone may fill a window.
    """
    window = degree // 2
    return window - Draw(cohort.smallest, cohort.corrupt, window).rarely_reached(cohort.rare) + 1


def audit_passes(cohort: Assumptions, degree: int) -> bool:
    """Whether E4 holds: random drop-outs give two disjoint windows of the need with a chance of at most 2**-eta."""
    need, window = audit_need(cohort, degree), degree // 2
    if need < 1:
        return False
    if 2 * need > cohort.dropped:
        return True
    pairs = cohort.size * (cohort.size - 2 * window + 1) / 2
    first = Draw(cohort.size, cohort.dropped, window)
    chances = first.probabilities()[max(0, need - first.fewest) :]
    # What one window holds is missing in the other.
    both = sum(
        chance * Draw(cohort.size - window, cohort.dropped - count, window).at_least(need)
        for count, chance in enumerate(chances, max(need, first.fewest))
    )
    return bool(pairs * both <= 2.0**-cohort.eta)


def smallest_degree(cohort: Assumptions, *, audited: bool = True) -> int | None:
    """The smallest even degree at which everything holds, or None when only a complete graph can.

    Args:
        cohort: what must hold.
        audited: whether E4 must hold as well; the tables of the literature know no audit.
    """
    degree, most = SMALLEST_DEGREE, cohort.smallest - 2
    while degree <= most:
        missing = thresholds_at(cohort, degree).missing
        if missing > 0:
            # Two more neighbours raise the largest threshold by at most 2, and one that is safe from equivocation
            # rises by 1 with them: no degree in between can close the range.
            nearer = 1 if cohort.profile is Profile.EQUIVOCATION_SAFE else 2
            degree += 2 * -(-missing // nearer)
        elif stays_connected(cohort, degree) and (not audited or audit_needs(cohort, degree) is not None):
            return degree
        else:
            degree += 2
    return None
