"""What the compiled kernels compute, in numpy: their definition, and what runs for small models.

Flat, contiguous arrays come in, `out` comes last and is filled. Every function here has a twin of the same name
in `kernels_numba` that gives the same bits.
"""

import numpy as np
import numpy.typing as npt

from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import RingVector

ByteVector = npt.NDArray[np.uint8]

Coins = npt.NDArray[np.unsignedinteger]
"""(d,) uint16 or uint32, uniform: the coins of stochastic rounding."""

Unit = np.float32 | np.float64
"""A number that counts parts of a level."""

COIN = 2.0**-32
"""What a coin of 32 bits is a multiple of, as a number in [0, 1)."""

MAGNITUDE = np.uint32(0x7FFF_FFFF)
"""The bits of a float32 without its sign."""

INFINITY = np.uint32(0x7F80_0000)
"""The bits of infinity."""

BLOCK = 1 << 16
"""Coordinates that are worked on at a time, so that no intermediate result is as large as a model. A multiple of 8."""


def quantize(
    update: FloatVector, scale: float, bound: float, span: float, top: int, coins: Coins, out: RingVector
) -> None:
    """Multiply by `scale`, clamp to [-bound, bound], round stochastically onto the levels 0 to top of [-span, span].

    Args:
        update: (d,) float32, finite, model units.
        scale: in [0, 1].
        bound: in [0, span], model units.
        span: > 0, model units.
        top: the highest level, 1 to 2**24 - 1.
        coins: (d,) uint32, each stands for coin * 2**-32 in [0, 1).
        out: (d,) unsigned, wide enough for `top`.
    """
    steps = top / (2.0 * span)
    for start in range(0, len(update), BLOCK):
        block = slice(start, start + BLOCK)
        clamped = np.minimum(np.maximum(update[block].astype(np.float64) * scale, -bound), bound)
        level = np.floor((clamped + span) * steps + coins[block].astype(np.float64) * COIN)
        out[block] = np.minimum(level, float(top)).astype(np.uint32)


def quantize_short(update: FloatVector, step: Unit, half: Unit, bound: Unit, coins: Coins, out: RingVector) -> None:
    """As `quantize`, in integers of 2**-16 of a level: a product, rounded to the nearest, and a coin of as many bits.

    Off by at most 2**-16 of a level: half a unit of rounding, and up to eight bits as much again of float32.

    Args:
        update: (d,) float32, finite, model units.
        step: units of 2**-16 of a level that a model unit has, as `update` counts. float32 for levels of up to 8 bits;
            float64 for up to 16.
        half: units from the middle to an end, top * 2**15, in the type of `step`.
        bound: largest magnitude in units, whole, 0 to `half`, in the type of `step`.
        coins: (d,) uint16.
        out: (d,) unsigned, wide enough for the highest level.
    """
    for start in range(0, len(update), BLOCK):
        block = slice(start, start + BLOCK)
        with np.errstate(over="ignore"):
            units = np.rint(np.minimum(np.maximum(update[block] * step, -bound), bound))
        out[block] = ((units + np.float64(half)).astype(np.uint32) + coins[block]) >> np.uint32(16)


def largest_magnitude(update: FloatVector) -> np.uint32:
    """The bits of the largest magnitude: as integers, floats of one sign are in their order, then infinity, then NaN.

    Args:
        update: (d,) float32.
    """
    bits: npt.NDArray[np.uint32] = update.view(np.uint32)
    blocks = range(0, len(bits), BLOCK)
    return max((np.max(bits[start : start + BLOCK] & MAGNITUDE) for start in blocks), default=np.uint32(0))


def dequantize_sum(levels: RingVector, offset: float, step: float, out: FloatVector) -> None:
    """Map sums of levels to `offset + step * level`, computed in float64.

    Args:
        levels: (d,) unsigned.
        offset: value of a sum of 0, model units.
        step: distance of two levels, model units.
        out: (d,) float32.
    """
    for start in range(0, len(levels), BLOCK):
        block = slice(start, start + BLOCK)
        out[block] = (offset + step * levels[block].astype(np.float64)).astype(np.float32)


def pack(vector: RingVector, bits: int, out: ByteVector) -> None:
    """Write the low `bits` bits of each coordinate one after the other into a little-endian bit stream.

    Coordinate i has the bits i*bits to (i+1)*bits - 1; bit k of the stream is bit k % 8 of byte k // 8. The bits
    after the last coordinate are 0.

    Args:
        vector: (d,) unsigned, each below 2**bits.
        bits: 1 to 32.
        out: (ceil(d * bits / 8),) uint8.
    """
    places = np.arange(bits, dtype=np.uint32)
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK].astype(np.uint32)
        packed = np.packbits(((block[:, None] >> places) & np.uint32(1)).astype(np.uint8), bitorder="little")
        first = start * bits // 8
        out[first : first + len(packed)] = packed


def unpack(data: ByteVector, bits: int, out: RingVector) -> None:
    """Read back what `pack` wrote.

    Args:
        data: (ceil(d * bits / 8),) uint8.
        bits: 1 to 32.
        out: (d,) unsigned, wide enough for `bits`.
    """
    places = np.arange(bits, dtype=np.uint32)
    for start in range(0, len(out), BLOCK):
        count = min(BLOCK, len(out) - start)
        first = start * bits // 8
        stream = np.unpackbits(data[first : first + (count * bits + 7) // 8], count=count * bits, bitorder="little")
        shifted = stream.reshape(count, bits).astype(np.uint32) << places
        out[start : start + count] = np.bitwise_or.reduce(shifted, axis=1)
