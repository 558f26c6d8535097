"""The total over the sessions of an attempt: their sums, each checked by itself, added exactly as 64-bit integers."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fl_core.codec.update_codec import MeanReader, SumDecoder
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import BadAggregate, LocalProtocolError
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import codec_of
from fl_core.rounds.private_codec import PrivateSum
from services.coordinator.aggregates import Aggregate

LevelVector = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class SessionSum:
    """The sum of one session, and the plan that says what it means."""

    plan: RoundPlan
    aggregate: Aggregate

    def levels(self) -> "LevelReader":
        """Its coordinates, from the first one on."""
        return LevelReader(self.aggregate.packed.read_blocks(self.plan.length, self.plan.codec.ring_bits))

    def check(self, decoder: SumDecoder | PrivateSum) -> None:
        """Check the weight that the aggregator stated against the one that is inside the sum.

        Raises:
            BadAggregate: they differ.
        """
        if decoder.total_weight != self.aggregate.info.total_weight:
            raise BadAggregate(
                "a sum says another weight than it holds",
                expected=decoder.total_weight,
                got=self.aggregate.info.total_weight,
            )


class Levels(Protocol):
    """Coordinates of a sum or of a total, in order."""

    def take(self, count: int) -> LevelVector:
        """The next `count` coordinates."""


class LevelReader:
    """Hands out the coordinates of one sum in order, as many as are asked for."""

    def __init__(self, blocks: Iterator[RingVector]) -> None:
        self._blocks = blocks
        self._held: RingVector = np.empty(0, np.uint32)

    def take(self, count: int) -> RingVector:
        """The next `count` coordinates.

        Raises:
            LocalProtocolError: there are not so many.
        """
        parts = [self._held]
        while sum(map(len, parts)) < count:
            block = next(self._blocks, None)
            if block is None:
                raise LocalProtocolError("a sum ends too early", expected=f"{count} more coordinates")
            parts.append(block)
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._held = joined[count:]
        return joined[:count]


class AddedLevels:
    """Adds the coordinates of several sums as they are read, and hashes their total.

    A coordinate of one session is below 2**32 and an attempt has fewer than 2**17 sites, so 64 bits hold every total.

    Args:
        header: the added headers, uint64.
        sums: what is left of each session's sum, and its decoder, by which each coordinate is checked before it is
            added.
    """

    def __init__(self, header: LevelVector, sums: Sequence[tuple[Levels, SumDecoder]]) -> None:
        self._sums = tuple(sums)
        self._digest = hashlib.sha256(header.astype("<u8").tobytes())

    @property
    def sha256(self) -> bytes:
        """Of the total so far, each coordinate as a 64-bit integer, little-endian."""
        return self._digest.digest()

    def take(self, count: int) -> LevelVector:
        """The next `count` coordinates of the total, uint64.

        Raises:
            BadAggregate: a session holds a level that so many uploads cannot give.
        """
        total = np.zeros(count, np.uint64)
        for levels, decoder in self._sums:
            part = levels.take(count)
            decoder.check(part)
            np.add(total, part, out=total)
        self._digest.update(total.astype("<u8", copy=False).tobytes())
        return total


@dataclass(frozen=True, slots=True)
class Total:
    """The total of an attempt, ready to be decoded part by part.

    Args:
        decoder: of the total.
        levels: its coordinates after the header.
        sums: what it is made of.
    """

    decoder: SumDecoder
    levels: Levels
    sums: tuple[SessionSum, ...]

    @property
    def total_weight(self) -> int:
        """Sum of the weights of all survivors."""
        return self.decoder.total_weight

    def means(self) -> MeanReader:
        """Reads the mean update in order."""
        return MeanReader(self.decoder, self.levels.take)

    @property
    def sha256(self) -> bytes:
        """Of the packed sum of a single session; of several sessions that of the total, once all of it was read."""
        return self.levels.sha256 if isinstance(self.levels, AddedLevels) else self.sums[0].aggregate.info.sha256


def open_total(sums: Sequence[SessionSum]) -> Total:
    """Open the sums of an attempt's sessions, check each by itself, and begin to add them.

    Args:
        sums: at least one.

    Raises:
        BadAggregate: a sum fails its own check, or says another weight than it holds.
        LocalProtocolError: the plans of the sessions have different codecs, so that a level does not mean the same.
    """
    codecs = [codec_of(one.plan) for one in sums]
    codec = codecs[0]
    if any(other != codec for other in codecs):
        raise LocalProtocolError("sums of different codecs cannot be added", expected="one codec in all sessions")
    header, opened = np.zeros(codec.header_length, np.uint64), []
    for one in sums:
        levels = one.levels()
        own = levels.take(codec.header_length)
        decoder = codec.open_sum(own, len(one.aggregate.info.survivors))
        one.check(decoder)
        np.add(header, own, out=header)
        opened.append((levels, decoder))
    if len(opened) == 1:
        return Total(opened[0][1], opened[0][0], tuple(sums))
    survivors = sum(decoder.survivors for _, decoder in opened)
    return Total(codec.open_sum(header, survivors), AddedLevels(header, opened), tuple(sums))
