"""Who shares secrets and masks with whom: everybody with everybody, or each with its neighbours on a ring.

The ring is in an order that nobody can choose or foresee, see `fl_core.secagg.beacon`; every party computes it.

Source: Bonawitz et al. 2017 (complete), Bell et al. 2020 (Harary graph).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_core.errors import NotEnough
from fl_core.secagg.index_sets import check_ascending

_WORD_BITS = 32
_WORDS_PER_MEMBER = 2


class Graph(Protocol):
    """An undirected graph over the members of U1."""

    def neighbours(self, index: int) -> Sequence[int]:
        """The neighbours of a member, by ascending index, without itself."""

    def holders(self, owner: int) -> Sequence[int]:
        """Who holds shares of a member's secrets, by ascending index. Holding is mutual."""

    @property
    def witnesses(self) -> Sequence[int]:
        """Whose signatures over the survivors every site waits for, by ascending index."""


@dataclass(frozen=True, slots=True)
class CompleteGraph:
    """Every member is a neighbour of every other, holds shares of all and of itself, and is a witness."""

    members: tuple[int, ...]

    def neighbours(self, index: int) -> Sequence[int]:
        """All members but this one, by ascending index."""
        place = bisect_left(self.members, index)
        return self.members[:place] + self.members[place + 1 :]

    def holders(self, owner: int) -> Sequence[int]:  # noqa: ARG002 - of the port: here nobody's holders differ
        """All members, by ascending index."""
        return self.members

    @property
    def witnesses(self) -> Sequence[int]:
        """All members, by ascending index."""
        return self.members


@dataclass(frozen=True, slots=True)
class HararyGraph:
    """Members on a ring, each a neighbour of the degree/2 nearest on either side.

    Args:
        order: the members as they stand on the ring.
        degree: even, below the number of members.
    """

    order: tuple[int, ...] = field(repr=False)
    degree: int
    _places: Mapping[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = {member: place for place, member in enumerate(self.order)}
        object.__setattr__(self, "_places", MappingProxyType(places))

    def neighbours(self, index: int) -> Sequence[int]:
        """The degree/2 members before and after this one on the ring, by ascending index."""
        place, half, size = self._places[index], self.degree // 2, len(self.order)
        near = (*range(place - half, place), *range(place + 1, place + half + 1))
        return tuple(sorted(self.order[at % size] for at in near))

    def holders(self, owner: int) -> Sequence[int]:
        """The neighbours. A site needs no share of its own: it must be enough without it."""
        return self.neighbours(owner)

    @property
    def witnesses(self) -> Sequence[int]:
        """The first `degree` members of the ring, by ascending index: a uniformly random part of U1.

        They are the same for everybody. With witnesses near each site, two parts of the ring could be shown two sets
        of survivors, each with a gap of its own; no site would notice that both gaps together cut the ring.
        """
        return tuple(sorted(self.order[: self.degree]))


def complete_graph(members: Sequence[int]) -> CompleteGraph:
    """The complete graph of these members.

    Raises:
        RemoteProtocolError: the members are not ascending.
    """
    check_ascending(members, "the members of a graph")
    return CompleteGraph(tuple(members))


def harary_graph(members: Sequence[int], degree: int, seed: bytes) -> HararyGraph:
    """The Harary graph of these members in the order that a seed gives.

    Args:
        members: by ascending index, more than `degree`.
        degree: neighbours of each, even.
        seed: 32 bytes, of `fl_core.secagg.beacon`.

    Raises:
        RemoteProtocolError: the members are not ascending.
        NotEnough: there are too few members.
    """
    check_ascending(members, "the members of a graph")
    if len(members) <= degree:
        raise NotEnough("too few members for the graph", expected=f"> {degree}", got=len(members))
    return _ring(tuple(members), degree, seed)


# Neighbours are asked for many times, and a process that simulates a cohort would make the same ring for each site.
@lru_cache(maxsize=4)
def _ring(members: tuple[int, ...], degree: int, seed: bytes) -> HararyGraph:
    return HararyGraph(tuple(members[place] for place in permutation(seed, len(members))), degree)


def permutation(seed: bytes, size: int) -> list[int]:
    """A uniformly random order of 0 to size - 1, the same for everybody who knows the seed.

    From the keystream of AES-256-CTR (key: the seed, counter from 0), read as little-endian words of 32 bits. For
    each last = size - 1, ..., 1 the next word below the largest multiple of last + 1 is taken, words above are passed
    over, and the elements at `last` and at word mod (last + 1) change places.

    Args:
        seed: 32 bytes.
        size: 1 to 2**32.

    Source: Durstenfeld 1964, Algorithm 235 (Fisher-Yates).
    """
    stream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    order, words = list(range(size)), iter(())
    last = size - 1
    while last > 0:
        word = next(words, None)
        if word is None:
            drawn = stream.update(bytes(_WORDS_PER_MEMBER * size * (_WORD_BITS // 8)))
            words = iter(np.frombuffer(drawn, "<u4").tolist())
            continue
        if word >= (1 << _WORD_BITS) - (1 << _WORD_BITS) % (last + 1):
            continue
        other = word % (last + 1)
        order[last], order[other] = order[other], order[last]
        last -= 1
    return order
