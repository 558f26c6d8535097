"""One site's update as coordinates of the ring, and the sum over the survivors back as a mean update.

An upload is [weight, 1, level, level, ...]. The weight hides under the mask like every other coordinate, and the
ones count the survivors, so that a wrong mask is seen before anything is released.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fl_core.codec.kernels_numpy import BLOCK
from fl_core.codec.quantize import dequantize_sum, quantize_into
from fl_core.codec.spec import HEADER_COORDINATES, CodecSpec
from fl_core.codec.tensors import FloatVector, TensorManifest, check_length
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import BadAggregate, CodecError

Entropy = Callable[[int], bytes]
"""Gives that many bytes: `os.urandom` in a site, a seeded generator in a simulation."""


@dataclass(frozen=True, slots=True)
class DecodedSum:
    """What one attempt releases: the weighted mean of the clipped updates, and the sum of the weights."""

    mean_update: FloatVector = field(repr=False)
    total_weight: int


@dataclass(frozen=True, slots=True)
class UpdateCodec:
    """Encodes updates and decodes their sum, by the plan's codec and manifest.

    Args:
        spec: clip, bits and ring_bits.
        manifest: names and shapes; names appear in errors.
        max_weight: largest weight of one site, below 2**bits.

    Raises:
        CodecError: max_weight does not fit the bits, or the bits do not fit the ring.
    """

    spec: CodecSpec
    manifest: TensorManifest
    max_weight: int

    def __post_init__(self) -> None:
        if self.spec.bits > self.spec.ring_bits:
            raise CodecError(
                "a level does not fit the ring", expected=f"bits <= {self.spec.ring_bits}", got=self.spec.bits
            )
        if not 0 < self.max_weight < 1 << self.spec.bits:
            raise CodecError(
                "max_weight does not fit the codec", expected=f"1 to 2**{self.spec.bits} - 1", got=self.max_weight
            )

    @property
    def length(self) -> int:
        """Coordinates of an upload."""
        return HEADER_COORDINATES + self.manifest.size

    def encode(self, update: FloatVector, weight: int, entropy: Entropy) -> RingVector:
        """Clip, weigh and quantise one update.

        Args:
            update: (d,) float32, after - before, model units; see `tensors.difference`.
            weight: the site's sample count, 1 to max_weight.
            entropy: seed of the stochastic rounding.

        Returns:
            (d + 2,) in the lane of ring_bits: the weight, a one, and the levels of (weight / max_weight) * update.

        Raises:
            CodecError: the weight is out of range, the update has another length, or a coordinate is NaN or
                infinite; the message names the tensor.
        """
        self._check_weight(weight)
        check_length(update, self.manifest)
        self._check_finite(update)
        # Rounding needs fair coins, not secret ones: a counter-based generator under a fresh key is enough.
        coins = np.random.Generator(np.random.Philox(key=int.from_bytes(entropy(16), "little")))
        out: RingVector = np.empty(self.length, lane_dtype(self.spec.ring_bits))
        out[0], out[1] = weight, 1
        levels = out[HEADER_COORDINATES:]
        for start in range(0, len(update), BLOCK):
            block = slice(start, min(start + BLOCK, len(update)))
            uniform = coins.random(block.stop - block.start, dtype=np.float32)
            quantize_into(
                update[block],
                weight / self.max_weight,
                self.spec.clip,
                self.spec.bits,
                uniform,
                levels[block],
                kernel_length=len(update),
            )
        return out

    def decode_sum(self, total: RingVector, survivors: int) -> DecodedSum:
        """Turn the unmasked sum over the survivors into the weighted mean of their updates.

        Args:
            total: (d + 2,) unsigned, below 2**ring_bits.
            survivors: sites in the sum.

        Returns:
            The mean update (d,) float32 in model units, and the sum of the weights.

        Raises:
            BadAggregate: the sum cannot be one of that many uploads.
        """
        if total.shape != (self.length,):
            raise BadAggregate("the sum has the wrong length", expected=f"({self.length},)", got=total.shape)
        decoder = self.open_sum(total[:HEADER_COORDINATES], survivors)
        return DecodedSum(decoder.decode(total[HEADER_COORDINATES:]), decoder.total_weight)

    def open_sum(self, header: RingVector, survivors: int) -> "SumDecoder":
        """Begin to decode a sum that is read in parts.

        Args:
            header: (2,) the first coordinates of the sum: total weight and count.
            survivors: sites in the sum.

        Raises:
            BadAggregate: the sum cannot be one of that many uploads.
        """
        total_weight, counted = (int(word) for word in header)
        if survivors < 1 or counted != survivors:
            raise BadAggregate(
                "the sum does not count its survivors",
                expected=f"{survivors} uploads",
                got=counted,
                fix="the attempt is run again; if it happens twice, look for a site or service that misbehaves",
            )
        if not survivors <= total_weight <= survivors * self.max_weight:
            raise BadAggregate(
                "the total weight is impossible",
                expected=f"{survivors} to {survivors * self.max_weight}",
                got=total_weight,
            )
        return SumDecoder(self.spec, survivors, total_weight, self.max_weight / total_weight)

    def _check_weight(self, weight: int) -> None:
        if not 1 <= weight <= self.max_weight:
            raise CodecError(
                "the weight of an update is out of range",
                expected=f"1 to {self.max_weight} samples",
                got=weight,
                fix="raise max_weight in the job, or train on a part of the data",
            )

    def _check_finite(self, update: FloatVector) -> None:
        for start in range(0, len(update), BLOCK):
            wrong = ~np.isfinite(update[start : start + BLOCK])
            if not wrong.any():
                continue
            where = start + int(np.flatnonzero(wrong)[0])
            raise CodecError(
                f"the update of tensor {self.manifest.name_at(where)!r} is NaN or infinite",
                expected="finite coordinates",
                got=f"{update[where]} at coordinate {where}",
                fix="lower the learning rate or look at the data",
            )


@dataclass(frozen=True, slots=True)
class SumDecoder:
    """Turns levels of one sum into the weighted mean of the updates, part by part."""

    spec: CodecSpec
    survivors: int
    total_weight: int
    scale: float

    def decode(self, levels: RingVector) -> FloatVector:
        """The mean of some coordinates.

        Args:
            levels: (n,) unsigned, any part of the sum after its header.

        Returns:
            (n,) float32, model units.

        Raises:
            BadAggregate: a level is larger than that many uploads can give.
        """
        try:
            mean = dequantize_sum(levels, self.survivors, self.spec.clip, self.spec.bits)
        except CodecError as error:
            raise BadAggregate("the sum fails its own check", expected=error.expected, got=error.got) from error
        mean *= np.float32(self.scale)
        return mean
