"""Checks of the lists of indices that peers send. A set travels as an ascending list, so that it has one form."""

from collections.abc import Collection, Sequence, Set
from itertools import pairwise

from fl_core.errors import RemoteProtocolError


def check_ascending(indices: Sequence[int], name: str) -> None:
    """Refuse a list in which an index stands twice or out of order.

    Raises:
        RemoteProtocolError: it does.
    """
    for before, after in pairwise(indices):
        if before >= after:
            raise RemoteProtocolError(f"{name} are not in order", expected="ascending, each index once", got=after)


def check_subset(indices: Sequence[int], allowed: Collection[int], name: str, whole: str) -> None:
    """Refuse a list that is not ascending or names somebody outside `allowed`.

    Raises:
        RemoteProtocolError: it is, or does.
    """
    check_ascending(indices, name)
    known = allowed if isinstance(allowed, (range, Set)) else frozenset(allowed)
    for index in indices:
        if index not in known:
            raise RemoteProtocolError(
                f"{name} name a site outside {whole}",
                expected=f"a part of {whole}, which has {len(known)} sites",
                got=f"site {index}",
                fix="do not go on; wait for the next attempt",
            )


def check_equal(indices: Sequence[int], expected: Sequence[int], name: str) -> None:
    """Refuse a list that is not exactly the expected one.

    Raises:
        RemoteProtocolError: an index is missing, unknown, out of order or stands twice.
    """
    check_ascending(indices, name)
    odd = sorted(set(indices) ^ set(expected))
    if odd:
        raise RemoteProtocolError(f"{name} are not those of this session", expected=f"{len(expected)} sites", got=odd)
