"""Who shares secrets and masks with whom.

A topology makes the graph once the members are known. `complete_graph` is that of Bonawitz et al. 2017. A sparse
graph (Bell et al. 2020) is another topology; no phase looks past this port.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fl_core.secagg.index_sets import check_ascending


class Graph(Protocol):
    """An undirected graph over the members of U1."""

    def neighbours(self, index: int) -> Sequence[int]:
        """The neighbours of a member, by ascending index, without itself."""


Topology = Callable[[Sequence[int]], Graph]
"""Makes the graph of these members, given by ascending index."""


@dataclass(frozen=True, slots=True)
class CompleteGraph:
    """Every member is a neighbour of every other."""

    members: tuple[int, ...]

    def neighbours(self, index: int) -> Sequence[int]:
        """All members but this one, by ascending index."""
        place = bisect_left(self.members, index)
        return self.members[:place] + self.members[place + 1 :]


def complete_graph(members: Sequence[int]) -> CompleteGraph:
    """The complete graph of these members.

    Raises:
        RemoteProtocolError: the members are not ascending.
    """
    check_ascending(members, "the members of a graph")
    return CompleteGraph(tuple(members))
