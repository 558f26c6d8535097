"""Compiled twins of `kernels_numpy`, where the docstrings are. Importing this module imports numba."""

from collections.abc import Callable
from typing import ParamSpec

import numba
import numpy as np
import numpy.typing as npt

from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import RingVector

ByteVector = npt.NDArray[np.uint8]

P = ParamSpec("P")


def _compiled(kernel: Callable[P, None]) -> Callable[P, None]:
    try:
        compiled: Callable[P, None] = numba.njit(nogil=True, cache=True)(kernel)
    except RuntimeError:
        # An installation that cannot be written to and a user without a cache folder: compile in each process.
        compiled = numba.njit(nogil=True)(kernel)
    return compiled


@_compiled
def quantize(update: FloatVector, scale: float, clip: float, bits: int, uniform: FloatVector, out: RingVector) -> None:
    top = float((1 << bits) - 1)
    steps = top / (2.0 * clip)
    for i in range(len(update)):
        clamped = min(max(np.float64(update[i]), -clip), clip)
        level = np.floor((clamped * scale + clip) * steps + np.float64(uniform[i]))
        out[i] = np.uint32(min(level, top))


@_compiled
def dequantize_sum(levels: RingVector, offset: float, step: float, out: FloatVector) -> None:
    for i in range(len(levels)):
        out[i] = np.float32(offset + step * np.float64(levels[i]))


@_compiled
def pack(vector: RingVector, bits: int, out: ByteVector) -> None:
    width = np.uint64(bits)
    eight = np.uint64(8)
    held = np.uint64(0)
    filled = np.uint64(0)
    place = 0
    for i in range(len(vector)):
        held |= np.uint64(vector[i]) << filled
        filled += width
        while filled >= eight:
            out[place] = np.uint8(held & np.uint64(255))
            held >>= eight
            filled -= eight
            place += 1
    if filled > np.uint64(0):
        out[place] = np.uint8(held & np.uint64(255))


@_compiled
def unpack(data: ByteVector, bits: int, out: RingVector) -> None:
    width = np.uint64(bits)
    mask = (np.uint64(1) << width) - np.uint64(1)
    held = np.uint64(0)
    filled = np.uint64(0)
    place = 0
    for i in range(len(out)):
        while filled < width:
            held |= np.uint64(data[place]) << filled
            filled += np.uint64(8)
            place += 1
        out[i] = np.uint32(held & mask)
        held >>= width
        filled -= width
