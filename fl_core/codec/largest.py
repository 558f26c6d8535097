"""The places of the largest coordinates of an update.

A sample tells where the threshold must lie; one pass collects what is above it, a few per cent of the vector; the exact
threshold is searched among those.
"""

import numpy as np
import numpy.typing as npt

from fl_core.codec.kernels import COMPILED_FROM
from fl_core.codec.kernels_numpy import MAGNITUDE
from fl_core.codec.tensors import FloatVector
from fl_core.errors import CodecError

Places = npt.NDArray[np.int64]

SAMPLE_STEP = 61
"""Every so many coordinates one is in the sample; a prime, so that it follows no shape of a tensor."""


def largest_places(vector: FloatVector, count: int) -> Places:
    """Where the `count` coordinates of largest magnitude are; of equal ones the first.

    Args:
        vector: (d,) float32, finite.
        count: 0 to d.

    Returns:
        (count,) int64, ascending.

    Raises:
        CodecError: there are not so many coordinates, or the vector is not flat float32.
    """
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise CodecError(
            "a vector has the wrong form", expected="one dimension of float32", got=f"{vector.ndim} of {vector.dtype}"
        )
    if not 0 <= count <= len(vector):
        raise CodecError("so many coordinates cannot be chosen", expected=f"0 to {len(vector)}", got=count)
    # The bits of two floats of one sign are ordered as the floats are.
    bits = np.ascontiguousarray(vector).view(np.uint32)
    places = _above(bits, _guess(bits, count))
    if len(places) < count:
        places = np.arange(len(bits))
    return _exactly(bits, places, count)


def _guess(bits: npt.NDArray[np.uint32], count: int) -> np.uint32:
    """A magnitude that is very likely exceeded `count` times, and not very much more often."""
    sample = bits[::SAMPLE_STEP] & MAGNITUDE
    expected = count * len(sample) / max(len(bits), 1)
    # Four standard deviations of what the sample holds of them.
    rank = int(expected + 4 * expected**0.5) + 4
    if rank >= len(sample):
        return np.uint32(0)
    guess: np.uint32 = np.partition(sample, len(sample) - rank)[len(sample) - rank]
    return guess


def _above(bits: npt.NDArray[np.uint32], least: np.uint32) -> Places:
    if len(bits) < COMPILED_FROM:
        return np.flatnonzero((bits & MAGNITUDE) >= least)
    from fl_core.codec.kernels_numba import places_above

    # Room for what is expected; when the sample was misleading there is more, and the kernel says how much.
    places: Places = np.empty(len(bits) // 8, np.int64)
    found = places_above(bits, least, places)
    if found > len(places):
        places = np.empty(found, np.int64)
        places_above(bits, least, places)
    return places[:found]


def _exactly(bits: npt.NDArray[np.uint32], places: Places, count: int) -> Places:
    """Of these places the `count` largest, ascending."""
    if count == 0:
        return places[:0]
    magnitudes = bits[places] & MAGNITUDE
    least = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    kept = magnitudes > least
    kept[np.flatnonzero(magnitudes == least)[: count - int(kept.sum())]] = True
    largest: Places = places[kept]
    return largest
