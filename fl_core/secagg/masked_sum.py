"""The aggregator: one running sum of masked vectors, and one combined mask to take off. It holds no seed and no share.

Source: Bonawitz et al. 2017, figure 4, server side, rounds 2 and 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fl_core.crypto.mask_prg import lane_dtype, reduce_ring
from fl_core.errors import BadAggregate, LocalProtocolError, RemoteProtocolError, SessionFrozen
from fl_core.secagg.context import SessionContext
from fl_core.secagg.directory import check_enough
from fl_core.secagg.masks import check_vector
from fl_core.secagg.messages import MaskedInput, RingVector, SurvivorSet
from fl_core.secagg.phase import Turn


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The sum of the survivors' vectors in the clear, (d,), and who the survivors are, by ascending index."""

    sum: RingVector = field(repr=False)
    survivors: tuple[int, ...]

    def check_count(self, coordinate: int) -> None:
        """Check the coordinate in which every site sent a one. A wrong mask, or a vector too many, shows here.

        Raises:
            BadAggregate: it does not add up to the number of survivors.
        """
        counted = int(self.sum[coordinate])
        if counted != len(self.survivors):
            raise BadAggregate(
                "the sum is not that of the survivors",
                expected=f"a count of {len(self.survivors)}",
                got=counted,
                fix="run the round again; nothing of this sum may be used",
            )


class CollectingMaskedInputs:
    """Round 2: adds masked vectors up as they come, in one vector of memory.

    Args:
        context: the session.
    """

    __slots__ = ("_admitted", "_context", "_frozen", "_received", "_sum", "_turn")

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._sum: RingVector = np.zeros(context.length, lane_dtype(context.ring_bits))
        self._received: set[int] = set()
        self._admitted: frozenset[int] | None = None
        self._frozen = False
        self._turn = Turn()

    @property
    def received(self) -> frozenset[int]:
        """Indices whose vectors are in the sum."""
        return frozenset(self._received)

    def admit(self, eligible: Iterable[int]) -> None:
        """Take vectors of these sites only, from now on: a vector that is in the sum cannot be taken out again.

        Args:
            eligible: U2, as the key server froze it.

        Raises:
            LocalProtocolError: other sites were admitted before.
        """
        admitted = frozenset(eligible)
        if self._admitted not in (None, admitted):
            raise LocalProtocolError("the sites that may be summed were fixed before", expected="the same sites")
        self._admitted = admitted

    def add(self, masked: MaskedInput) -> None:
        """Add the vector of one site.

        Raises:
            RemoteProtocolError: the index is not in the roster or was not admitted, its vector was added before, or
                the vector does not fit the session.
            SessionFrozen: the survivors are frozen.
        """
        index = masked.index
        if self._frozen:
            raise SessionFrozen(
                f"the vector of site {index} comes too late",
                expected="an upload before the survivors were frozen",
                fix="take part in the next attempt",
            )
        if not 0 <= index < self._context.size:
            raise RemoteProtocolError(
                "a vector is of nobody in the roster", expected=f"index 0 to {self._context.size - 1}", got=index
            )
        if self._admitted is not None and index not in self._admitted:
            raise RemoteProtocolError(
                f"site {index} did not finish the key exchange", expected="a vector of a site of U2", got=index
            )
        if index in self._received:
            raise RemoteProtocolError(f"the vector of site {index} was added before", expected="one vector per site")
        _check_received(self._context, masked.vector)
        # The lane is a multiple of the ring: wrapping around in it loses nothing.
        np.add(self._sum, masked.vector, out=self._sum)
        self._received.add(index)

    def freeze(self, eligible: Iterable[int]) -> tuple["AwaitingMask", SurvivorSet]:
        """Take no more vectors; those that are in the sum are U3.

        Args:
            eligible: U2, as the key server froze it.

        Raises:
            BadAggregate: a site outside of U2 is in the sum. No honest site uploads without U2.
            NotEnough: fewer survivors than the plan demands; more may still come.
            LocalProtocolError: it is frozen already.
        """
        with self._turn:
            strangers = sorted(self._received.difference(eligible))
            if strangers:
                raise BadAggregate(
                    "the sum holds vectors of sites that did not finish the key exchange",
                    expected="sites of U2 only",
                    got=strangers,
                    fix="run the round again without them",
                )
            check_enough(len(self._received), self._context.min_survivors, "sites uploaded")
            self._frozen = True
            survivors = tuple(sorted(self._received))
            return AwaitingMask(self._context, self._sum, survivors), SurvivorSet(survivors)


class AwaitingMask:
    """Round 4: waits for the combined mask of the frozen survivors."""

    __slots__ = ("_context", "_sum", "_survivors", "_turn")

    def __init__(self, context: SessionContext, masked_sum: RingVector, survivors: tuple[int, ...]) -> None:
        self._context = context
        self._sum = masked_sum
        self._survivors = survivors
        self._turn = Turn()

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, by ascending index."""
        return self._survivors

    def step(self, mask: RingVector) -> Aggregate:
        """Take the mask off the sum.

        Args:
            mask: (d,) in the lane of the ring, of exactly these survivors.

        Raises:
            RemoteProtocolError: the mask does not fit the session.
            LocalProtocolError: the mask is off already.
        """
        with self._turn:
            _check_received(self._context, mask)
            np.subtract(self._sum, mask, out=self._sum)
            reduce_ring(self._sum, self._context.ring_bits)
            return Aggregate(self._sum, self._survivors)


def _check_received(context: SessionContext, vector: RingVector) -> None:
    try:
        check_vector(context, vector)
    except LocalProtocolError as error:
        raise RemoteProtocolError(error.what, expected=error.expected, got=error.got) from error
