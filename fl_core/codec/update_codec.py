"""One site's update as coordinates of the ring, and the sum over the survivors back as a mean update.

An upload is a header, in which weight and count hide under the mask like every other coordinate, and the levels of what
travels. `fl_core.codec.spec` says which stages there are, this module puts them in a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fl_core.codec.header import UploadHeader, check_sum, read_header, write_header
from fl_core.codec.kernels import kernels_for
from fl_core.codec.kernels_numpy import BLOCK, INFINITY
from fl_core.codec.largest import largest_places
from fl_core.codec.quantize import SHORT_COINS, dequantize_levels, quantize_into
from fl_core.codec.rotation import rotate, unrotate
from fl_core.codec.span import reach_of
from fl_core.codec.spec import CLIP_MAX, CodecSpec, Levels, Selection
from fl_core.codec.support import Support, shared_support
from fl_core.codec.tensors import FloatVector, TensorManifest, check_length
from fl_core.crypto import labels
from fl_core.crypto.mask_prg import MASK_KEY_BYTES, RingVector, add_mask, lane_dtype
from fl_core.errors import BadAggregate, CodecError

COIN_BLOCK = 1 << 18
"""Coordinates whose coins are drawn at a time: they fit the second-level cache."""

RELEVANT = 400
"""Directions of a model in which a step changes its loss much, for `SumDecoder.expand`: networks have few, whatever
their size. Measured by how far steps may go on networks of 10,026 and 587,392 parameters."""

SEED_BYTES = 32

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
        spec: the stages.
        manifest: names and shapes; names appear in errors.
        max_weight: largest weight of one site, >= 1.
        seed: 32 public bytes that all sites of a round share: rotation and support come from it.

    Raises:
        CodecError: a number is out of range, or the bits do not fit the ring.
    """

    spec: CodecSpec
    manifest: TensorManifest
    max_weight: int
    seed: bytes = bytes(SEED_BYTES)

    def __post_init__(self) -> None:
        if self.spec.bits > self.spec.ring_bits:
            raise CodecError(
                "a level does not fit the ring", expected=f"bits <= {self.spec.ring_bits}", got=self.spec.bits
            )
        if self.max_weight < 1:
            raise CodecError("max_weight is out of range", expected=">= 1", got=self.max_weight)
        if len(self.seed) != SEED_BYTES:
            raise CodecError(
                "the codec's seed has the wrong length", expected=f"{SEED_BYTES} bytes", got=len(self.seed)
            )

    @property
    def header_length(self) -> int:
        """Coordinates before the levels."""
        return self.spec.header(self.max_weight)

    @property
    def length(self) -> int:
        """Coordinates of an upload."""
        return self.spec.length(self.manifest.size, self.max_weight)

    def encode(self, update: FloatVector, weight: int, entropy: Entropy) -> RingVector:
        """Clip, select, rotate, weigh and quantise one update.

        Args:
            update: (d,) float32, after - before, model units; see `tensors.difference`.
            weight: the site's sample count, 1 to max_weight.
            entropy: seed of the stochastic rounding.

        Returns:
            (length,) in the lane of ring_bits: the header, and the levels of (weight / max_weight) * update.

        Raises:
            CodecError: the weight is out of range, the update has another length, or a coordinate is NaN or
                infinite; the message names the tensor.
        """
        self._check_weight(weight)
        check_length(update, self.manifest)
        self._check_finite(update)
        out: RingVector = np.empty(self.length, lane_dtype(self.spec.ring_bits))
        coordinates, clip = self._travelling(update)
        scale = weight / self.max_weight
        header = self._describe(coordinates, weight, clip)
        write_header(self.spec, self.max_weight, header, out[: self.header_length])
        self._fill(coordinates, scale, clip, entropy(MASK_KEY_BYTES), out[self.header_length :])
        return out

    def rest_of(self, update: FloatVector, upload: RingVector) -> FloatVector:
        """What of an update did not travel in its upload: what error feedback keeps.

        Args:
            update: (d,) float32, as it was encoded.
            upload: (length,) what `encode` gave for it.

        Returns:
            (d,) float32, model units, a new array: the update less what the upload alone decodes to.
        """
        decoder = self.open_sum(upload[: self.header_length], 1)
        rest: FloatVector = update - decoder.restore(decoder.decode(upload[self.header_length :]))
        return rest

    def decode_sum(self, total: RingVector, survivors: int) -> DecodedSum:
        """Turn the unmasked sum over the survivors into the weighted mean of their updates.

        Args:
            total: (length,) unsigned, below 2**ring_bits.
            survivors: sites in the sum.

        Returns:
            The mean update (d,) float32 in model units, and the sum of the weights.

        Raises:
            BadAggregate: the sum cannot be one of that many uploads.
        """
        if total.shape != (self.length,):
            raise BadAggregate("the sum has the wrong length", expected=f"({self.length},)", got=total.shape)
        decoder = self.open_sum(total[: self.header_length], survivors)
        return DecodedSum(decoder.expand(decoder.decode(total[self.header_length :])), decoder.total_weight)

    def open_sum(self, header: RingVector, survivors: int) -> "SumDecoder":
        """Begin to decode a sum that is read in parts.

        Args:
            header: (header_length,) the first coordinates of the sum, also of several sums that were added.
            survivors: sites in the sum.

        Raises:
            BadAggregate: the sum cannot be one of that many uploads.
        """
        try:
            told = read_header(self.spec, self.max_weight, header)
        except CodecError as error:
            raise BadAggregate("the sum has no header", expected=error.expected, got=error.got) from error
        check_sum(told, survivors, self.max_weight)
        return SumDecoder(self, survivors, told)

    def support(self) -> Support:
        """The coordinates that travel when a part does, the same for all sites."""
        return shared_support(self.spec, self.spec.turned(self.manifest.size), self._key(labels.SUPPORT))

    def rotation_key(self) -> bytes:
        """The key of the rotation, the same for all sites."""
        return self._key(labels.ROTATION)

    def _key(self, label: bytes) -> bytes:
        return labels.digest_fields(label, self.seed)[:MASK_KEY_BYTES]

    def _travelling(self, update: FloatVector) -> tuple[FloatVector, float]:
        """What is rounded, and the clip that is still to be applied to it."""
        spec, clip = self.spec, self.spec.clip
        if spec.rotation:
            # Clipped before the rotation, which leaves no coordinate where it was.
            limit = np.float32(min(clip, float(np.finfo(np.float32).max)))
            update, clip = rotate(np.clip(update, -limit, limit), self.rotation_key()), CLIP_MAX
        if spec.shares_support:
            update = update[self.support().places]
        return update, clip

    def _describe(self, coordinates: FloatVector, weight: int, clip: float) -> UploadHeader:
        if not self.spec.adaptive:
            return UploadHeader(weight)
        largest = max(float(coordinates.max(initial=0)), -float(coordinates.min(initial=0)))
        wanted = min(largest, clip) * weight / self.max_weight
        return UploadHeader(weight, 1, reach_of(wanted, self.spec.clip), int(wanted > self.spec.width))

    def _fill(self, coordinates: FloatVector, scale: float, clip: float, coin_key: bytes, levels: RingVector) -> None:
        if self.spec.levels is Levels.SIGN:
            self._round_signs(coordinates, scale, coin_key, levels)
        elif self.spec.selection is Selection.TOP:
            places = largest_places(coordinates, self.spec.kept(len(coordinates)))
            chosen: RingVector = np.empty(len(places), levels.dtype)
            self._quantize(coordinates[places], scale, clip, coin_key, chosen)
            levels.fill(self.spec.top // 2)
            levels[places] = chosen
        else:
            self._quantize(coordinates, scale, clip, coin_key, levels)

    def _quantize(
        self, coordinates: FloatVector, scale: float, clip: float, coin_key: bytes, levels: RingVector
    ) -> None:
        """Round onto levels, block by block. The coins are the keystream of a fresh key, as those of a mask are."""
        spec, length = self.spec, len(coordinates)
        coin_bits = 16 if spec.bits <= SHORT_COINS else 32
        drawn: RingVector = np.empty(min(COIN_BLOCK, length), lane_dtype(coin_bits))
        for start in range(0, length, COIN_BLOCK):
            part = coordinates[start : start + COIN_BLOCK]
            coins = drawn[: len(part)]
            coins.fill(0)
            add_mask(coins, coin_key, start)
            into = levels[start : start + len(part)]
            quantize_into(part, scale, clip, spec.width, spec.top, coins, into, kernel_length=length)

    def _round_signs(self, coordinates: FloatVector, scale: float, coin_key: bytes, levels: RingVector) -> None:
        """Every coordinate as plus or minus one magnitude: the one that leaves the update its length along itself.

        Source: Vargaftik et al. 2021, DRIVE: One-bit Distributed Mean Estimation, theorem 2 (the unbiased scale).
        """
        wide = coordinates.astype(np.float64)
        total = float(np.abs(wide).sum())
        magnitude: FloatVector = np.array([float(wide @ wide) / total if total else 0.0], np.float32)
        level: RingVector = np.empty(1, levels.dtype)
        self._quantize(magnitude, scale, CLIP_MAX, coin_key, level)
        high = max(int(level[0]), self.spec.top - int(level[0]))
        levels[:] = np.where(np.signbit(coordinates), self.spec.top - high, high)

    def _check_weight(self, weight: int) -> None:
        if not 1 <= weight <= self.max_weight:
            raise CodecError(
                "the weight of an update is out of range",
                expected=f"1 to {self.max_weight} samples",
                got=weight,
                fix="raise max_weight in the job, or train on a part of the data",
            )

    def _check_finite(self, update: FloatVector) -> None:
        if kernels_for(len(update)).largest_magnitude(np.ascontiguousarray(update)) < INFINITY:
            return
        for start in range(0, len(update), BLOCK):
            finite = np.isfinite(update[start : start + BLOCK])
            if finite.all():
                continue
            where = start + int(np.flatnonzero(~finite)[0])
            raise CodecError(
                f"the update of tensor {self.manifest.name_at(where)!r} is NaN or infinite",
                expected="finite coordinates",
                got=f"{update[where]} at coordinate {where}",
                fix="lower the learning rate or look at the data",
            )


@dataclass(frozen=True, slots=True)
class SumDecoder:
    """Turns levels of one sum into the weighted mean of the updates: part by part as far as the codec allows it."""

    codec: UpdateCodec
    survivors: int
    header: UploadHeader

    @property
    def total_weight(self) -> int:
        """Sum of the weights of the survivors."""
        return self.header.weight

    def check(self, levels: RingVector) -> None:
        """Check that the survivors can give these levels, before they are added to those of another sum.

        Args:
            levels: (n,) unsigned, any part of the sum after its header.

        Raises:
            BadAggregate: one is larger than that many uploads can give.
        """
        most = self.survivors * self.codec.spec.top
        if len(levels) and int(levels.max()) > most:
            raise BadAggregate("the sum fails its own check", expected=f"at most {most}", got=int(levels.max()))

    def decode(self, levels: RingVector) -> FloatVector:
        """The mean of some coordinates, as they travelled.

        Args:
            levels: (n,) unsigned, any part of the sum after its header.

        Returns:
            (n,) float32, model units.

        Raises:
            BadAggregate: a level is larger than that many uploads can give.
        """
        spec, scale = self.codec.spec, self.codec.max_weight / self.total_weight
        try:
            return dequantize_levels(levels, self.survivors, spec.width, spec.top, scale)
        except CodecError as error:
            raise BadAggregate("the sum fails its own check", expected=error.expected, got=error.got) from error

    def expand(self, travelled: FloatVector) -> FloatVector:
        """The mean update from what travelled of it: a part is made larger for what it stands for, then `restore`.

        Without error feedback a coordinate counts as often as it is rare, which makes the mean over the seeds that of
        the whole update. With it what is left out comes later, and few coordinates count for less: k of them see the
        directions that matter, about `RELEVANT`, enlarged by up to 1 + RELEVANT / k, and a step must not overshoot
        those. Many coordinates count as without it.

        Args:
            travelled: what `decode` gave for all levels of the sum. It is used up.

        Returns:
            (d,) float32, model units.
        """
        if not self.codec.spec.shares_support:
            return self.restore(travelled)
        factors = self.codec.support().rarity
        if self.codec.spec.feedback:
            factors = np.maximum(factors * np.float32(len(factors) / (len(factors) + RELEVANT)), np.float32(1))
        return self.restore(travelled * factors)

    def restore(self, travelled: FloatVector) -> FloatVector:
        """What travelled, put in its places and rotated back; what did not is zero.

        Args:
            travelled: as in `expand`.

        Returns:
            (d,) float32, model units.
        """
        spec, size = self.codec.spec, self.codec.manifest.size
        if spec.shares_support:
            whole: FloatVector = np.zeros(spec.turned(size), np.float32)
            whole[self.codec.support().places] = travelled
            travelled = whole
        return unrotate(travelled, self.codec.rotation_key(), size) if spec.rotation else travelled


class MeanReader:
    """Hands out the mean update in order, as many coordinates as are asked for.

    A codec that keeps the order of the coordinates is decoded as it is read; any other as a whole, at the first read.

    Args:
        decoder: of the sum.
        take: gives the next levels of the sum, as many as it is asked for.
    """

    def __init__(self, decoder: SumDecoder, take: Callable[[int], RingVector]) -> None:
        self._decoder = decoder
        self._take = take
        self._whole: FloatVector | None = None
        self._given = 0

    def take(self, count: int) -> FloatVector:
        """The next `count` coordinates, float32, model units.

        Raises:
            BadAggregate: a level is larger than that many uploads can give.
        """
        spec = self._decoder.codec.spec
        if spec.keeps_order:
            return self._decoder.decode(self._take(count))
        if self._whole is None:
            levels = self._take(spec.body(self._decoder.codec.manifest.size))
            self._whole = self._decoder.expand(self._decoder.decode(levels))
        start, self._given = self._given, self._given + count
        return self._whole[start : self._given]
