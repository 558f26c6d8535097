"""Compiled twins of `kernels_numpy`, where the docstrings are. Importing this module imports numba."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from fl_core.codec.kernels_numpy import COIN, MAGNITUDE, Coins, Unit
from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import RingVector

ByteVector = npt.NDArray[np.uint8]

intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = extending.intrinsic

P = ParamSpec("P")
R = TypeVar("R")


def _compiled(kernel: Callable[P, R]) -> Callable[P, R]:
    try:
        compiled: Callable[P, R] = numba.njit(nogil=True, cache=True)(kernel)
    except RuntimeError:
        # An installation that cannot be written to and a user without a cache folder: compile in each process.
        compiled = numba.njit(nogil=True)(kernel)
    return compiled


@_compiled
def quantize(
    update: FloatVector, scale: float, bound: float, span: float, top: int, coins: Coins, out: RingVector
) -> None:
    highest = float(top)
    steps = highest / (2.0 * span)
    for i in range(len(update)):
        clamped = min(max(np.float64(update[i]) * scale, -bound), bound)
        level = (clamped + span) * steps + np.float64(coins[i]) * COIN
        # No level is negative or above 2**24, so that cutting the fraction off is what floor does.
        out[i] = np.int32(min(level, highest))


@intrinsic
def _nearest(_typing: Any, value: Any) -> Any:
    """The nearest whole number, to even between two."""

    def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FloatType() if signature.return_type == types.float32 else ir.DoubleType()
        name = f"llvm.rint.f{signature.return_type.bitwidth}"
        rint = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, ir.FunctionType(kind, [kind]), name
        )
        return builder.call(rint, arguments)

    return value(value), generate


@_compiled
def quantize_short(update: FloatVector, step: Unit, half: Unit, bound: Unit, coins: Coins, out: RingVector) -> None:
    middle = np.uint32(half)
    for i in range(len(update)):
        units = _nearest(min(max(update[i] * step, -bound), bound))
        # By way of 16 bits, which LLVM makes better instructions of.
        out[i] = np.uint16((np.uint32(np.int32(units)) + middle + np.uint32(coins[i])) >> np.uint32(16))


@_compiled
def largest_magnitude(update: FloatVector) -> np.uint32:
    bits = update.view(np.uint32)
    largest = np.uint32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & MAGNITUDE)
    return largest


@_compiled
def dequantize_sum(levels: RingVector, offset: float, step: float, out: FloatVector) -> None:
    for i in range(len(levels)):
        out[i] = np.float32(offset + step * np.float64(levels[i]))


@_compiled
def pack(vector: RingVector, bits: int, out: ByteVector) -> None:
    width, word_bits, byte_bits = np.uint64(bits), np.uint64(64), np.uint64(8)
    words = out[: len(out) // 8 * 8].view(np.uint64)
    held, filled = np.uint64(0), np.uint64(0)
    place = 0
    for i in range(len(vector)):
        value = np.uint64(vector[i])
        held |= value << filled
        filled += width
        if filled >= word_bits:
            words[place] = held
            place += 1
            filled -= word_bits
            held = value >> (width - filled)
    for last in range(8 * place, len(out)):
        out[last] = np.uint8(held & np.uint64(255))
        held >>= byte_bits


@_compiled
def _last_word(data: ByteVector, start: int) -> np.uint64:
    """The bytes from `start` on, which fill no whole word."""
    word = np.uint64(0)
    for place in range(start, len(data)):
        word |= np.uint64(data[place]) << np.uint64(8 * (place - start))
    return word


@_compiled
def unpack(data: ByteVector, bits: int, out: RingVector) -> None:
    width, word_bits = np.uint64(bits), np.uint64(64)
    mask = (np.uint64(1) << width) - np.uint64(1)
    words = data[: len(data) // 8 * 8].view(np.uint64)
    held, filled = np.uint64(0), np.uint64(0)
    place = 0
    for i in range(len(out)):
        if filled < width:
            word = words[place] if place < len(words) else _last_word(data, 8 * place)
            place += 1
            out[i] = np.uint32((held | (word << filled)) & mask)
            held = word >> (width - filled)
            filled += word_bits - width
        else:
            out[i] = np.uint32(held & mask)
            held >>= width
            filled -= width


@_compiled
def places_above(bits: npt.NDArray[np.uint32], least: np.uint32, out: npt.NDArray[np.int64]) -> int:
    """Where the magnitude of a float32, given by its bits, is at least `least`; returns how many there are.

    Those that have no room in `out` are only counted.
    """
    found = 0
    whole = len(bits) // 32 * 32
    for start in range(0, whole, 32):
        # Most hands hold none, and to see that takes no branch for each coordinate.
        any_above = False
        for lane in range(32):
            any_above |= (bits[start + lane] & MAGNITUDE) >= least
        if any_above:
            for place in range(start, start + 32):
                if (bits[place] & MAGNITUDE) >= least:
                    if found < len(out):
                        out[found] = place
                    found += 1
    for place in range(whole, len(bits)):
        if (bits[place] & MAGNITUDE) >= least:
            if found < len(out):
                out[found] = place
            found += 1
    return found
