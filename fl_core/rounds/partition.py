"""Splits a large cohort into sessions: at random, so that nobody chooses with whom a site is summed, and balanced."""

from collections.abc import Sequence

from fl_core.errors import PlanError
from fl_core.rounds.cohort import Entropy, draw_below
from fl_core.rounds.plan import ClientId


def session_sizes(sites: int, split: int | None) -> tuple[int, ...]:
    """How many sites each session of an attempt has.

    As many sessions as there can be with at least `split` sites each; their sizes differ by one at most. Fewer sites
    than `split` are one session.

    Args:
        sites: sites of the attempt, >= 1.
        split: fewest sites of one session, >= 1; None leaves all in one.

    Returns:
        The sizes, largest first; their sum is `sites`. Each is below 2 * split.

    Raises:
        PlanError: a number is out of range.
    """
    if sites < 1 or (split is not None and split < 1):
        raise PlanError("a cohort cannot be split", expected="sites >= 1 and split >= 1", got=f"{sites} and {split}")
    count = 1 if split is None else max(1, sites // split)
    share, rest = divmod(sites, count)
    return (share + 1,) * rest + (share,) * (count - rest)


def partition(cohort: Sequence[ClientId], split: int | None, entropy: Entropy) -> tuple[tuple[ClientId, ...], ...]:
    """Split a cohort into sessions of which every one with these sizes is equally likely.

    Args:
        cohort: distinct client_ids.
        split: fewest sites of one session; None leaves all in one.
        entropy: for the shuffle; it is not used for a single session.

    Returns:
        The sessions, each by ascending client_id as a roster has it, largest first. Every site is in exactly one.

    Raises:
        PlanError: the cohort is empty or names a site twice, or `split` is out of range.
    """
    if len(set(cohort)) != len(cohort):
        raise PlanError("a cohort names a site twice", expected="distinct client_ids", got=len(cohort))
    sizes = session_sizes(len(cohort), split)
    pool = sorted(cohort)
    if len(sizes) > 1:
        _shuffle(pool, entropy)
    sessions, start = [], 0
    for size in sizes:
        sessions.append(tuple(sorted(pool[start : start + size])))
        start += size
    return tuple(sessions)


def _shuffle(pool: list[ClientId], entropy: Entropy) -> None:
    """Every order equally likely (Fisher-Yates)."""
    for place in range(len(pool) - 1):
        chosen = place + draw_below(len(pool) - place, entropy)
        pool[place], pool[chosen] = pool[chosen], pool[place]
