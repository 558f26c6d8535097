"""Bounds on what one site can contribute: the L2 norm of its update, or the magnitude of each coordinate."""

from math import isfinite, sqrt

import numpy as np
import numpy.typing as npt

from fl_core.errors import CodecError

FloatVector = npt.NDArray[np.float32]

_BLOCK = 1 << 16


def l2_norm(update: FloatVector) -> float:
    """Euclidean length of an update, summed in float64.

    Raises:
        CodecError: a coordinate is NaN or infinite.
    """
    squares = 0.0
    for start in range(0, len(update), _BLOCK):
        # A float32 squared fits float64 by far, and so does the sum: only NaN and infinity are not finite here.
        block = update[start : start + _BLOCK].astype(np.float64)
        squares += float(block @ block)
    if not isfinite(squares):
        raise CodecError("an update holds a NaN or infinite coordinate", expected="finite", got="neither")
    return sqrt(squares)


def clip_l2(update: FloatVector, norm: float) -> FloatVector:
    """Scale an update down to at most `norm`; its direction stays.

    Args:
        update: (d,) float32, model units.
        norm: largest L2 norm, model units, > 0.

    Returns:
        (d,) float32, a new array whose norm is at most `norm`, up to the rounding of float64.

    Raises:
        CodecError: a coordinate is NaN or infinite, or norm is out of range.

    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1.
    """
    _check_bound("norm", norm)
    length = l2_norm(update)
    if length <= norm:
        return update.copy()
    # Rounded towards zero, so that rounding cannot push the norm, which privacy rests on, above its bound.
    scaled = update.astype(np.float64) * (norm / length)
    clipped = scaled.astype(np.float32)
    above = np.abs(clipped.astype(np.float64)) > np.abs(scaled)
    clipped[above] = np.nextafter(clipped[above], np.float32(0))
    return clipped


def clip_coordinates(update: FloatVector, bound: float) -> FloatVector:
    """Clamp each coordinate to [-bound, bound].

    Args:
        update: (d,) float32, model units.
        bound: largest magnitude, model units, > 0.

    Returns:
        (d,) float32, a new array.

    Raises:
        CodecError: a coordinate is NaN or infinite, or bound is out of range.
    """
    _check_bound("bound", bound)
    if not np.isfinite(update).all():
        raise CodecError("an update holds a NaN or infinite coordinate", expected="finite", got="neither")
    largest = np.float32(min(bound, float(np.finfo(np.float32).max)))
    return np.clip(update, -largest, largest)


def _check_bound(name: str, bound: float) -> None:
    if not (isfinite(bound) and bound > 0):
        raise CodecError(f"the {name} of a clip is out of range", expected="a finite number > 0", got=bound)
