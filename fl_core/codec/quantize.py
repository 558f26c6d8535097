"""Stochastic uniform quantisation: float coordinates onto integer levels, and sums of levels back."""

import numpy as np

from fl_core.codec.kernels import kernels_for
from fl_core.codec.kernels_numpy import COIN, Coins, Unit
from fl_core.codec.spec import BITS
from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import CodecError

SHORT_COINS = 16
"""Bits up to which coins of 16 bits do: they leave a bias of 2**-16 of a level at most, which is a part in 256 of the
noise of rounding in the mean of the largest cohort."""

_SHORT_UNIT = float(1 << SHORT_COINS)
_FLOAT32_BITS = 8
"""Bits of levels whose parts float32 counts."""
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def quantize(update: FloatVector, clip: float, bits: int, uniform: FloatVector) -> RingVector:
    """Round `update` stochastically onto 2**bits levels of [-clip, clip].

    Unbiased: over `uniform`, the mean of the result is the clipped input.

    Args:
        update: (d,) float32, model units.
        clip: largest magnitude kept, model units, > 0.
        bits: bits per coordinate, 1 to 24.
        uniform: (d,) float32, drawn from U[0, 1).

    Returns:
        (d,) uint32, each below 2**bits.

    Raises:
        CodecError: a coordinate is NaN or infinite, or the parts do not fit together.

    Source: Suresh et al. 2017, Distributed Mean Estimation (k-level stochastic quantization).
    """
    check_finite(update)
    out: RingVector = np.empty(len(update), np.uint32)
    # Exact: a float32 in [0, 1) is a multiple of 2**-32, or so small that a coin of zero stands for it.
    coins = (uniform.astype(np.float64) / COIN).astype(np.uint32)
    _check_numbers(clip, bits)
    quantize_into(update, 1.0, clip, clip, (1 << bits) - 1, coins, out, kernel_length=len(update))
    return out


def quantize_into(
    update: FloatVector,
    scale: float,
    clip: float,
    span: float,
    top: int,
    coins: Coins,
    out: RingVector,
    *,
    kernel_length: int,
) -> None:
    """Round `scale * clamp(update)` onto the levels 0 to top of [-span, span]; `update` is known to be finite.

    Args:
        update: (d,) float32, model units.
        scale: weight of this update, in [0, 1].
        clip: largest magnitude kept before it is scaled, model units, > 0.
        span: largest magnitude that a level stands for, model units, > 0.
        top: the highest level, 1 to 2**24 - 1.
        coins: (d,) uniform, uint32, or uint16 for levels of up to 16 bits.
        out: (d,) unsigned, wide enough for `top`.
        kernel_length: coordinates of the whole vector, which decides whether compiling pays.

    Raises:
        CodecError: a number is out of range or lengths differ.
    """
    _check_width("clip", clip)
    _check_levels(span, top)
    if not 0 <= scale <= 1:
        raise CodecError("the scale of an update is out of range", expected="0 to 1", got=scale)
    if not update.shape == coins.shape == out.shape:
        raise CodecError(
            "vectors of one quantisation differ in length", expected=update.shape, got=f"{coins.shape}, {out.shape}"
        )
    bound = min(float(clip) * float(scale), float(span))
    if coins.dtype == np.uint16 and top >> SHORT_COINS:
        raise CodecError("coins are too short for the levels", expected=f"top < 2**{SHORT_COINS}", got=top)
    kernels, flat, drawn = kernels_for(kernel_length), np.ascontiguousarray(update), np.ascontiguousarray(coins)
    if drawn.dtype == np.uint16:
        kernels.quantize_short(flat, *_units(scale, bound, span, top), drawn, out)
    else:
        kernels.quantize(flat, float(scale), bound, float(span), int(top), drawn, out)


def _units(scale: float, bound: float, span: float, top: int) -> tuple[Unit, Unit, Unit]:
    """What `quantize_short` counts in: step, half and bound."""
    step, half = scale * top / (2.0 * span) * _SHORT_UNIT, top * _SHORT_UNIT / 2
    most = min(float(np.rint(bound * top / (2.0 * span) * _SHORT_UNIT)), half)
    unit = np.float32 if top >> _FLOAT32_BITS == 0 and step <= _FLOAT32_MAX else np.float64
    return unit(step), unit(half), unit(most)


def dequantize_sum(levels: RingVector, count: int, clip: float, bits: int) -> FloatVector:
    """Turn sums of `count` vectors that `quantize` made into sums of values; as `dequantize_levels`."""
    _check_numbers(clip, bits)
    return dequantize_levels(levels, count, clip, (1 << bits) - 1)


def dequantize_levels(levels: RingVector, count: int, span: float, top: int, scale: float = 1.0) -> FloatVector:
    """Turn sums of `count` quantised vectors into sums of values.

    Args:
        levels: (d,) unsigned, sums of levels.
        count: vectors in the sum.
        span: as in `quantize_into`, model units.
        top: as in `quantize_into`.
        scale: what the sums are multiplied by.

    Returns:
        (d,) float32, model units; computed in float64.

    Raises:
        CodecError: a sum is larger than `count` vectors can give.
    """
    _check_levels(span, top)
    if len(levels) and int(levels.max()) > count * top:
        raise CodecError("a sum of levels is too large", expected=f"at most {count} * {top}", got=int(levels.max()))
    out: FloatVector = np.empty(len(levels), np.float32)
    offset, step = -float(count) * span * scale, 2.0 * span * scale / top
    kernels_for(len(levels)).dequantize_sum(np.ascontiguousarray(levels), offset, step, out)
    return out


def check_finite(update: FloatVector) -> None:
    """Check that a flat float vector has no NaN and nothing infinite.

    Raises:
        CodecError: it has.
    """
    if not np.isfinite(update).all():
        where = int(np.flatnonzero(~np.isfinite(update))[0])
        raise CodecError(
            "an update holds a NaN or infinite coordinate", expected="finite", got=f"{update[where]} at {where}"
        )


def _check_numbers(clip: float, bits: int) -> None:
    _check_width("clip", clip)
    if bits not in BITS:
        raise CodecError("the codec's bits are out of range", expected="1 to 24", got=bits)


def _check_levels(span: float, top: int) -> None:
    _check_width("span", span)
    if not 1 <= top < 1 << BITS[-1]:
        raise CodecError("the highest level is out of range", expected=f"1 to 2**{BITS[-1]} - 1", got=top)


def _check_width(name: str, width: float) -> None:
    if not (np.isfinite(width) and width > 0):
        raise CodecError(f"the {name} is out of range", expected="a finite number > 0", got=width)
