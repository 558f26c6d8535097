"""The sum of a private attempt at the coordinator: noised before anybody looks at it, and read in order."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import MASK_KEY_BYTES, RingVector
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.rounds.planner import private_codec_of
from fl_core.rounds.privacy_terms import PRIVATE_HEADER
from fl_core.rounds.private_codec import IntegerVector, PrivateCodec, PrivateSum
from services.coordinator.totals import LevelReader, SessionSum


def noised_blocks(plan: RoundPlan, codec: PrivateCodec, blocks: Iterator[RingVector]) -> Iterator[RingVector]:
    """The blocks of a sum as they may be looked at: in a plain attempt the coordinator adds the noise here.

    In a secure attempt the noise is in the sum already, and the blocks stay as they are.

    Args:
        plan: of the attempt.
        codec: of the attempt.
        blocks: of the whole sum, in order.
    """
    if plan.aggregation is not Aggregation.PLAIN:
        yield from blocks
        return
    key, first = os.urandom(MASK_KEY_BYTES), 0
    for block in blocks:
        header = max(0, PRIVATE_HEADER - first)
        codec.add_noise_to_part(block[header:], key, first + header - PRIVATE_HEADER)
        yield block
        first += len(block)


class PrivateMeanReader:
    """Hands out the mean update in order, as many coordinates as are asked for.

    Args:
        decoder: of the total.
        take: gives the next coordinates of the total, integers around zero, as many as it is asked for.
    """

    def __init__(self, decoder: PrivateSum, take: Callable[[int], IntegerVector]) -> None:
        self._decoder = decoder
        self._take = take
        self._whole: FloatVector | None = None
        self._given = 0

    def take(self, count: int) -> FloatVector:
        """The next `count` coordinates, float32, model units."""
        if self._decoder.keeps_order:
            return self._decoder.mean(self._take(count))
        if self._whole is None:
            # A rotation mixes all coordinates, so that it is undone as a whole.
            self._whole = self._decoder.expand(self._decoder.mean(self._take(self._decoder.codec.coordinates)))
        start, self._given = self._given, self._given + count
        return self._whole[start : self._given]


class PrivateTotal:
    """The noised sums of an attempt's sessions, added as integers around zero while they are read.

    Args:
        decoder: of the total.
        parts: what is left of each sum, and its decoder.
        sums: what it is made of.
    """

    def __init__(
        self, decoder: PrivateSum, parts: Sequence[tuple[LevelReader, PrivateSum]], sums: Sequence[SessionSum]
    ) -> None:
        self.sums = tuple(sums)
        self._decoder = decoder
        self._parts = tuple(parts)
        self._digest = hashlib.sha256()

    @property
    def total_weight(self) -> int:
        """Sites in the total, which weigh one each."""
        return self._decoder.total_weight

    @property
    def sha256(self) -> bytes:
        """Of the packed sum of a single session; of several sessions that of the total, once all of it was read."""
        return self._digest.digest() if len(self.sums) > 1 else self.sums[0].aggregate.info.sha256

    def means(self) -> PrivateMeanReader:
        """Reads the mean update in order."""
        return PrivateMeanReader(self._decoder, self._take)

    def next_clip(self) -> float | None:
        """The clip of the next round, once the mean is read; None when the clip stays as it is."""
        if not self._decoder.codec.terms.quantile:
            return None
        return self._decoder.next_clip(int(self._take(1)[0]))

    def _take(self, count: int) -> IntegerVector:
        total: IntegerVector = np.zeros(count, np.int64)
        for levels, decoder in self._parts:
            total += decoder.centred(levels.take(count))
        self._digest.update(total.astype("<i8", copy=False).tobytes())
        return total


def open_private_total(sums: Sequence[SessionSum]) -> PrivateTotal:
    """Open the noised sums of an attempt's sessions and check each by itself.

    Args:
        sums: at least one, of a job whose noise is in the ring.

    Raises:
        BadAggregate: a sum does not count its survivors, or says another weight than it holds.
    """
    parts = []
    for one in sums:
        codec = private_codec_of(one.plan)
        assert codec is not None
        blocks = one.aggregate.packed.read_blocks(one.plan.length, one.plan.codec.ring_bits)
        levels = LevelReader(noised_blocks(one.plan, codec, blocks))
        decoder = codec.open_sum(levels.take(codec.header_length), len(one.aggregate.info.survivors))
        one.check(decoder)
        parts.append((levels, decoder))
    survivors = sum(decoder.survivors for _, decoder in parts)
    return PrivateTotal(PrivateSum(parts[0][1].codec, survivors), parts, sums)
