"""The codec of a private attempt: an update of bounded L2 norm as integers around zero, and their noised sum back.

The bound that privacy rests on is one of integers: a rounding that is longer is drawn again, so that no float error
and no rotation can exceed it. All updates weigh the same. The header, a weight of one and a count of one, says nothing
but that a site took part, which every party of the session knows; noise is added to what follows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp

import numpy as np
import numpy.typing as npt

from fl_core.codec.rotation import rotate, unrotate
from fl_core.codec.tensors import FloatVector, TensorManifest, check_length
from fl_core.crypto.mask_prg import MASK_KEY_BYTES, RingVector, add_mask, lane_dtype, reduce_ring
from fl_core.errors import BadAggregate, CodecError
from fl_core.privacy.clipping import l2_norm
from fl_core.privacy.events import Noise
from fl_core.privacy.sampler import NoiseDraw, NoiseTable, add_draws, add_noise, noise_table
from fl_core.rounds.privacy_terms import (
    PRIVATE_HEADER,
    QUANTILE_STEP,
    Mechanism,
    PrivacyTerms,
    norm_bound,
    private_coordinates,
    private_length,
)

MOST_ROUNDINGS = 1_000
"""A rounding is taken with a chance of 0.39 at least, so that nobody ever comes near this."""

_BLOCK = 1 << 16
_COIN = 2.0**-32

Entropy = Callable[[int], bytes]
IntegerVector = npt.NDArray[np.int64]
"""(n,) integers around zero."""


@dataclass(frozen=True, slots=True)
class PrivateCodec:
    """Encodes updates and decodes their noised sum.

    Args:
        terms: clip, levels and noise; central or distributed.
        manifest: of the model.
        ring_bits: of the sum.
        cohort: sites in the roster.
        min_survivors: for which the shares of noise are enough.
        rotation_key: 16 public bytes that all sites of a round share; only distributed noise rotates.
    """

    terms: PrivacyTerms
    manifest: TensorManifest
    ring_bits: int
    cohort: int
    min_survivors: int
    rotation_key: bytes = bytes(MASK_KEY_BYTES)

    @property
    def header_length(self) -> int:
        """Coordinates before those that carry noise."""
        return PRIVATE_HEADER

    @property
    def coordinates(self) -> int:
        """Coordinates that an update is rounded to."""
        return private_coordinates(self.terms, self.manifest.size)

    @property
    def length(self) -> int:
        """Coordinates of an upload."""
        return private_length(self.terms, self.manifest.size)

    def encode(
        self, update: FloatVector, weight: int, entropy: Entropy, noise_keys: Sequence[bytes] = ()
    ) -> RingVector:
        """Clip, rotate, scale and round one update; with distributed noise add this site's share.

        Args:
            update: (d,) float32, after - before, model units.
            weight: one: sites weigh the same.
            entropy: seeds of the rounding, and of noise without keys.
            noise_keys: of each part of the noise, 16 bytes; drawn here when there are none, and then nothing of this
                noise can be taken away again.

        Returns:
            (length,) in the lane of ring_bits.

        Raises:
            CodecError: the weight is not one, the update has another length, a coordinate is NaN or infinite, or
                there are keys for more or fewer parts than the noise has.
        """
        if weight != 1:
            raise CodecError("updates of a private attempt weigh the same", expected=1, got=weight)
        check_length(update, self.manifest)
        norm = l2_norm(update)
        out: RingVector = np.zeros(self.length, lane_dtype(self.ring_bits))
        out[:PRIVATE_HEADER] = 1
        body = out[PRIVATE_HEADER : PRIVATE_HEADER + self.coordinates]
        self._round(self._rotated(update), min(1.0, self.terms.clip / norm) if norm else 1.0, entropy, body)
        if self.terms.quantile:
            level = self.terms.quantile_level(self.coordinates)
            out[-1] = out.dtype.type((level if norm <= self.terms.clip else -level) % (1 << self.ring_bits))
        if self.terms.mechanism is Mechanism.DISTRIBUTED:
            self._add_share(out, noise_keys or [entropy(MASK_KEY_BYTES) for _ in self.parts])
        return out

    def add_noise(self, vector: RingVector, key: bytes) -> None:
        """Add one server's central noise to a whole vector of this attempt, in place; not to its header.

        Args:
            vector: (length,) in the lane of ring_bits: a combined mask or a sum.
            key: 16 fresh bytes.
        """
        add_noise(vector[PRIVATE_HEADER:], self.noise, key)
        reduce_ring(vector, self.ring_bits)

    def add_noise_to_part(self, part: RingVector, key: bytes, first: int) -> None:
        """As `add_noise`, to a part whose first coordinate is number `first` after the header."""
        add_noise(part, self.noise, key, first)
        reduce_ring(part, self.ring_bits)

    def add_parts(self, part: RingVector, keys: Sequence[Sequence[bytes]], first: int) -> None:
        """Add the last parts of some sites' distributed noise to a part of a vector, in place.

        Added to a mask that is taken off later, they are taken away from what the sites uploaded.

        Args:
            part: contiguous coordinates in the lane of ring_bits, none of them of the header.
            keys: of each site those of its last parts, 16 bytes each, as many as there are.
            first: which coordinate after the header is the first of them.
        """
        tables = self.parts
        draws = [
            NoiseDraw(table, key)
            for own in keys
            for table, key in zip(tables[len(tables) - len(own) :], own, strict=True)
        ]
        add_draws(part, draws, first)
        reduce_ring(part, self.ring_bits)

    @property
    def noise(self) -> NoiseTable:
        """The table of one server's central noise."""
        return noise_table(Noise.DISCRETE_GAUSSIAN, self.terms.variance(self.coordinates))

    @property
    def parts(self) -> tuple[NoiseTable, ...]:
        """The tables of all parts of a site's distributed noise: one for each tier, and none without such noise."""
        return _part_tables(self.terms, self.coordinates, self.cohort, self.min_survivors)

    def open_sum(self, header: RingVector, survivors: int) -> "PrivateSum":
        """Begin to decode a noised sum.

        Args:
            header: (2,) the first coordinates of the sum.
            survivors: sites in it.

        Raises:
            BadAggregate: the header does not count the survivors.
        """
        weight, count = (int(word) for word in header)
        if survivors < 1 or count != survivors or weight != survivors:
            raise BadAggregate(
                "the sum does not count its survivors",
                expected=f"{survivors} uploads of weight one",
                got=f"{count} uploads of weight {weight}",
                fix="the attempt is run again; if it happens twice, look for a site or service that misbehaves",
            )
        return PrivateSum(self, survivors)

    def _add_share(self, vector: RingVector, keys: Sequence[bytes]) -> None:
        if len(keys) != len(self.parts):
            raise CodecError("there is not one key for each part of the noise", expected=len(self.parts), got=len(keys))
        self.add_parts(vector[PRIVATE_HEADER:], [keys], 0)

    def _rotated(self, update: FloatVector) -> FloatVector:
        if self.terms.mechanism is not Mechanism.DISTRIBUTED:
            return update
        return rotate(update, self.rotation_key)

    def _round(self, update: FloatVector, scale: float, entropy: Entropy, out: RingVector) -> None:
        """Conditional stochastic rounding: the first rounding that is short enough."""
        factor = scale * self.terms.levels / self.terms.clip
        bound = norm_bound(self.terms.levels, self.coordinates)
        for _ in range(MOST_ROUNDINGS):
            squares = _round_once(update, factor, entropy(MASK_KEY_BYTES), out)
            if squares <= bound:
                reduce_ring(out, self.ring_bits)
                return
        raise CodecError("no rounding of an update is short enough", expected=f"a squared norm up to {bound}")


@dataclass(slots=True)
class PrivateSum:
    """A noised sum that is decoded: in order, as many coordinates as are asked for."""

    codec: PrivateCodec
    survivors: int
    _whole: FloatVector | None = field(default=None, repr=False)

    @property
    def total_weight(self) -> int:
        """Every site weighs one."""
        return self.survivors

    @property
    def keeps_order(self) -> bool:
        """Whether coordinate i after the header is coordinate i of the model."""
        return self.codec.terms.mechanism is not Mechanism.DISTRIBUTED

    @property
    def divisor(self) -> float:
        """What a sum is divided by: a number that does not depend on the draw where amplification is claimed."""
        return float(self.codec.terms.expected_sites or self.survivors)

    def decode(self, levels: RingVector) -> FloatVector:
        """The mean of some coordinates, as they travelled.

        Args:
            levels: (n,) in the lane of the ring: any part of the sum after its header.

        Returns:
            (n,) float32, model units.
        """
        return self.mean(self.centred(levels))

    def mean(self, totals: IntegerVector) -> FloatVector:
        """The same of integers around zero, which may be totals of several sums."""
        step = self.codec.terms.clip / self.codec.terms.levels
        return (totals * (step / self.divisor)).astype(np.float32)

    def centred(self, levels: RingVector) -> IntegerVector:
        """Ring elements as the integers around zero that they stand for."""
        half = np.int64(1) << (self.codec.ring_bits - 1)
        signed = levels.astype(np.int64)
        signed[signed >= half] -= 2 * half
        return signed

    def expand(self, travelled: FloatVector) -> FloatVector:
        """The mean update from all of its coordinates as they travelled."""
        if self.keeps_order:
            return travelled
        return unrotate(travelled, self.codec.rotation_key, self.codec.manifest.size)

    def next_clip(self, total: int) -> float:
        """The clip of the next round, from the coordinate that counts clipped updates, an integer around zero.

        Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, Differentially Private Learning with Adaptive Clipping.
        """
        terms = self.codec.terms
        balance = total / terms.quantile_level(self.codec.coordinates)
        below = min(1.0, max(0.0, (1 + balance / self.divisor) / 2))
        return float(min(1e30, max(1e-30, terms.clip * exp(-QUANTILE_STEP * (below - terms.quantile)))))


@lru_cache(maxsize=8)
def _part_tables(terms: PrivacyTerms, coordinates: int, cohort: int, min_survivors: int) -> tuple[NoiseTable, ...]:
    variances = terms.part_variances(coordinates, terms.noise_tiers(cohort, min_survivors))
    return tuple(noise_table(Noise.SKELLAM, variance) for variance in variances)


def _round_once(update: FloatVector, factor: float, coin_key: bytes, out: RingVector) -> int:
    """Round `factor * update` stochastically into `out`; returns the exact squared norm of what it wrote."""
    squares = 0
    coins = np.empty(min(_BLOCK, len(update)), np.uint32)
    for start in range(0, len(update), _BLOCK):
        part = update[start : start + _BLOCK]
        drawn = coins[: len(part)]
        drawn.fill(0)
        add_mask(drawn, coin_key, start)
        rounded = np.floor(part * np.float64(factor) + drawn * _COIN).astype(np.int64)
        squares += int(rounded @ rounded)
        out[start : start + len(part)] = rounded.astype(out.dtype)
    return squares
