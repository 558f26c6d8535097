"""Compiled twins of `kernels_hadamard_numpy`, where the docstrings are. Importing this module imports numba.

The butterflies are written for registers of sixteen floats: the four levels below sixteen by shuffles within a
register, the others between registers, three or four levels for each time that the data is loaded. A block is worked
on in pieces that stay in the first-level cache; only the levels above a piece pass over the whole block. LLVM makes
narrower instructions of the same registers on a processor that has none so wide.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit
from numba.core import cgutils, types

from fl_core.codec.kernels_hadamard_numpy import SignBytes
from fl_core.codec.kernels_numba import _compiled
from fl_core.codec.rotation_shape import HAND
from fl_core.codec.tensors import FloatVector

intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = extending.intrinsic

PIECE = 4096
"""Coordinates of a piece: 16 KiB."""

_I1, _I16, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_REGISTER = ir.VectorType(_F32, HAND)
_WORDS = ir.VectorType(_I32, HAND)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, kind: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data  # type: ignore[no-untyped-call]
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def _load(builder: Any, pointer: Any, align: int = 4) -> Any:
    value = builder.load(pointer)
    value.align = align
    return value


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, pointer).align = 4


def _within(builder: Any, register: Any) -> Any:
    """The four levels within a register."""
    for half in (1, 2, 4, 8):
        swap = ir.Constant(_WORDS, [lane ^ half for lane in range(HAND)])
        signs = ir.Constant(_REGISTER, [-1.0 if lane & half else 1.0 for lane in range(HAND)])
        swapped = builder.shuffle_vector(register, ir.Constant(_REGISTER, ir.Undefined), swap)
        # A product with one or minus one is exact, so that this is the sum in one lane and the difference in the other.
        register = builder.fadd(swapped, builder.fmul(register, signs))
    return register


def _between(builder: Any, registers: list[Any]) -> list[Any]:
    """All levels between registers."""
    half = 1
    while half < len(registers):
        for place in range(len(registers)):
            if not place & half:
                one, other = registers[place], registers[place | half]
                registers[place], registers[place | half] = builder.fadd(one, other), builder.fsub(one, other)
        half *= 2
    return registers


def _butterfly(radix: int, inside: bool) -> Any:
    """A function that transforms `radix` registers, `stride` floats apart, in place, and scales them."""

    @intrinsic
    def butterfly(_typing: Any, vector: Any, offset: Any, stride: Any, scale: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, start, step, factor = arguments
            places = [builder.add(start, builder.mul(step, ir.Constant(_I64, row))) for row in range(radix)]
            pointers = [_pointer(context, builder, signature.args[0], array, place, _REGISTER) for place in places]
            registers = [_load(builder, pointer) for pointer in pointers]
            if inside:
                registers = [_within(builder, register) for register in registers]
            registers = _between(builder, registers)
            lone = builder.insert_element(ir.Constant(_REGISTER, ir.Undefined), factor, ir.Constant(_I32, 0))
            spread = builder.shuffle_vector(lone, lone, ir.Constant(_WORDS, [0] * HAND))
            for pointer, register in zip(pointers, registers, strict=True):
                _store(builder, builder.fmul(register, spread), pointer)
            return context.get_dummy_value()

        return types.void(vector, types.int64, types.int64, types.float32), generate

    return butterfly


@intrinsic
def _flip(_typing: Any, vector: Any, offset: Any, signs: Any, place: Any) -> Any:  # noqa: ARG001
    """Sixteen coordinates from `offset` on change their signs by the two bytes from `place` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, bits, first = arguments
        pointer = _pointer(context, builder, signature.args[0], array, start, _WORDS)
        mask = _load(builder, _pointer(context, builder, signature.args[2], bits, first, _I16), align=1)
        flags = builder.bitcast(mask, ir.VectorType(_I1, HAND))
        flips = builder.shl(builder.zext(flags, _WORDS), ir.Constant(_WORDS, [31] * HAND))
        _store(builder, builder.xor(_load(builder, pointer), flips), pointer)
        return context.get_dummy_value()

    return types.void(vector, types.int64, signs, types.int64), generate


@intrinsic
def _copy(_typing: Any, source: Any, place: Any, target: Any, offset: Any) -> Any:  # noqa: ARG001
    """One hand."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, out, into = arguments
        hand = _load(builder, _pointer(context, builder, signature.args[0], array, start, _REGISTER))
        _store(builder, hand, _pointer(context, builder, signature.args[2], out, into, _REGISTER))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


_first_1, _first_2, _first_4, _first_8 = (_butterfly(radix, inside=True) for radix in (1, 2, 4, 8))
_next_2, _next_4, _next_8, _next_16 = (_butterfly(radix, inside=False) for radix in (2, 4, 8, 16))


@njit(nogil=True, inline="always")
def _first_levels(vector: FloatVector, start: int, stop: int, radix: int, scale: np.float32) -> None:
    """The levels below 16 * radix."""
    for place in range(start, stop, HAND * radix):
        if radix == 8:
            _first_8(vector, place, HAND, scale)
        elif radix == 4:
            _first_4(vector, place, HAND, scale)
        elif radix == 2:
            _first_2(vector, place, HAND, scale)
        else:
            _first_1(vector, place, HAND, scale)


@njit(nogil=True, inline="always")
def _next_levels(vector: FloatVector, start: int, stop: int, half: int, radix: int, scale: np.float32) -> None:
    """The levels from `half` to below half * radix."""
    for first in range(start, stop, half * radix):
        for place in range(first, first + half, HAND):
            if radix == 16:
                _next_16(vector, place, half, scale)
            elif radix == 8:
                _next_8(vector, place, half, scale)
            elif radix == 4:
                _next_4(vector, place, half, scale)
            else:
                _next_2(vector, place, half, scale)


@njit(nogil=True, inline="always")
def _climb(vector: FloatVector, start: int, stop: int, half: int, top: int, scale: np.float32) -> None:
    """All levels from `half` to below `top`; the last of them scale."""
    while half < top:
        radix = min(top // half, 16)
        _next_levels(vector, start, stop, half, radix, scale if half * radix == top else np.float32(1))
        half *= radix


@_compiled
def hadamard(vector: FloatVector, block: int) -> None:
    scale = np.float32(1 / sqrt(block))
    piece = min(block, PIECE)
    radix = min(piece // HAND, 8)
    last = scale if piece == block else np.float32(1)
    for start in range(0, len(vector), piece):
        _first_levels(vector, start, start + piece, radix, last if HAND * radix == piece else np.float32(1))
        _climb(vector, start, start + piece, HAND * radix, piece, last)
    for start in range(0, len(vector), block):
        _climb(vector, start, start + block, piece, block, scale)


@_compiled
def flip_signs(vector: FloatVector, signs: SignBytes) -> None:
    for hand in range(len(vector) // HAND):
        _flip(vector, hand * HAND, signs, hand * 2)


@_compiled
def deal(vector: FloatVector, blocks: int, out: FloatVector) -> None:
    hands = len(out) // HAND
    whole = len(vector) // HAND
    block = hands // blocks
    for row in range(block):
        for number in range(blocks):
            hand, place = row * blocks + number, (number * block + row) * HAND
            if hand < whole:
                _copy(vector, hand * HAND, out, place)
            else:
                for lane in range(HAND):
                    at = hand * HAND + lane
                    out[place + lane] = vector[at] if at < len(vector) else np.float32(0)


@_compiled
def gather(dealt: FloatVector, blocks: int, out: FloatVector) -> None:
    hands = len(dealt) // HAND
    whole = len(out) // HAND
    block = hands // blocks
    for row in range(block):
        for number in range(blocks):
            hand, place = row * blocks + number, (number * block + row) * HAND
            if hand < whole:
                _copy(dealt, place, out, hand * HAND)
            else:
                for at in range(hand * HAND, min(hand * HAND + HAND, len(out))):
                    out[at] = dealt[place + at - hand * HAND]
