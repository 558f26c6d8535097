"""Which of the connected sites take part in an attempt."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from fl_core.errors import NotEnough, PlanError
from fl_core.rounds.plan import MAX_COHORT, MAX_SITES, ClientId

Entropy = Callable[[int], bytes]
"""Gives that many bytes: `os.urandom` in a coordinator, a seeded generator in a simulation."""


MOST_DRAWS = 1_000
"""Draws of a cohort that may all be too small before it is given up: they will be then for the next thousand too."""


@dataclass(frozen=True, slots=True)
class CohortBounds:
    """Fewest and most sites of an attempt, and of one session of it.

    Args:
        min: fewest sites of an attempt.
        max: most sites of an attempt.
        split: fewest sites of one session, where there are so many: a larger cohort becomes several sessions, see
            `fl_core.rounds.partition`. None leaves all in one.
        min_sessions: part of the sessions of an attempt without whose sums nothing is committed.

    Raises:
        PlanError: 1 <= min <= max <= MAX_SITES or 0 < min_sessions <= 1 does not hold, or a session could have more
            than MAX_COHORT sites.
    """

    min: int = 3
    max: int = 100
    split: int | None = None
    min_sessions: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max <= MAX_SITES:
            raise PlanError(
                "the cohort's bounds are out of range",
                expected=f"1 <= min <= max <= {MAX_SITES}",
                got=f"min {self.min}, max {self.max}",
            )
        if self.split is not None and not 1 <= self.split <= MAX_COHORT // 2:
            raise PlanError("the split is out of range", expected=f"1 to {MAX_COHORT // 2} sites", got=self.split)
        if self.largest_session > MAX_COHORT:
            raise PlanError(
                "a session is too large",
                expected=f"at most {MAX_COHORT} sites",
                got=self.largest_session,
                fix="say into sessions of how many sites the cohort is split (cohort.split), or lower cohort.max",
            )
        if not 0 < self.min_sessions <= 1:
            raise PlanError("min_sessions is out of range", expected="0 < x <= 1", got=self.min_sessions)

    @property
    def smallest_session(self) -> int:
        """Fewest sites that a session can have."""
        return self.min if self.split is None else min(self.min, self.split)

    @property
    def largest_session(self) -> int:
        """Most sites that a session can have."""
        return self.max if self.split is None else min(self.max, 2 * self.split - 1)

    def sessions_needed(self, count: int) -> int:
        """Of `count` sessions, how many must succeed."""
        return max(1, ceil(self.min_sessions * count))


def pool_bounds(bounds: CohortBounds, rate: float | None) -> tuple[int, int]:
    """How many connected sites a cohort needs to be chosen from, and from how many on nobody waits for more.

    Where sites are drawn by coins, so many that the expected draw is the smallest cohort, or lies in the middle.

    Args:
        bounds: fewest and most sites of the cohort.
        rate: chance with which each site is drawn alone; None when it is not.
    """
    if rate is None:
        return bounds.min, bounds.max
    fewest = ceil(bounds.min / rate)
    return fewest, max(fewest, round((bounds.min + bounds.max) / 2 / rate))


def fill_up(
    connected: Iterable[ClientId], quarantined: Sequence[ClientId], bounds: CohortBounds
) -> tuple[list[ClientId], list[ClientId]]:
    """Part those who are there into sites that can be invited, and those of them whose quarantine gives way for it.

    A liar spoils attempts and learns nothing, while a cohort that never comes together trains nothing at all. So the
    quarantine gives way, but only as far as `bounds.min` demands it.

    Args:
        connected: the sites that are there.
        quarantined: sites that were caught lying, those whose last lie is the oldest first.
        bounds: fewest and most.

    Returns:
        The sites that can be invited, by ascending client_id, and the quarantined ones among them, which are none
        when there are enough others, or too few sites in all.
    """
    here = set(connected)
    free = sorted(here - set(quarantined))
    spare = [name for name in quarantined if name in here]
    missing = bounds.min - len(free)
    recalled = spare[: max(missing, 0)] if len(spare) >= missing else []
    return sorted([*free, *recalled]), sorted(recalled)


def choose_cohort(
    connected: Iterable[ClientId], bounds: CohortBounds, entropy: Entropy, rate: float | None = None
) -> tuple[ClientId, ...]:
    """Take everybody, or `bounds.max` sites of whom every subset is equally likely.

    Args:
        connected: the sites that can be invited; one that is given twice counts once.
        bounds: fewest and most.
        entropy: for the choice; it is not used when everybody is taken.
        rate: draw each site alone with this chance before anything else (Poisson sampling), as a private job that
            claims amplification by sampling needs it. A draw of too few is given up and all sites are drawn again.

    Returns:
        The cohort by ascending client_id, as a roster has it.

    Raises:
        NotEnough: fewer than `bounds.min` sites are there, or so many are never drawn.
    """
    pool = sorted(set(connected))
    if len(pool) < bounds.min:
        raise NotEnough("too few sites are connected", expected=f"at least {bounds.min}", got=len(pool))
    if rate is not None:
        pool = _draw_each(pool, bounds.min, entropy, rate)
    if len(pool) <= bounds.max:
        return tuple(pool)
    for place in range(bounds.max):
        chosen = place + draw_below(len(pool) - place, entropy)
        pool[place], pool[chosen] = pool[chosen], pool[place]
    return tuple(sorted(pool[: bounds.max]))


def _draw_each(pool: Sequence[ClientId], fewest: int, entropy: Entropy, rate: float) -> list[ClientId]:
    limit = floor(rate * (1 << 64))
    for _ in range(MOST_DRAWS):
        coins = np.frombuffer(entropy(8 * len(pool)), "<u8").tolist()
        drawn = [name for name, coin in zip(pool, coins, strict=True) if coin < limit]
        if len(drawn) >= fewest:
            return drawn
    raise NotEnough(
        "too few sites were drawn",
        expected=f"at least {fewest} of {len(pool)} in one of {MOST_DRAWS} draws",
        got=f"a chance of {rate:g} for each",
        fix="raise privacy.sampling_rate, lower cohort.min, or wait for more sites",
    )


def draw_below(limit: int, entropy: Entropy) -> int:
    """A number below `limit`, each equally likely: draws that would favour small ones are thrown away."""
    fair = (1 << 64) // limit * limit
    while True:
        drawn = int.from_bytes(entropy(8), "little")
        if drawn < fair:
            return drawn % limit
