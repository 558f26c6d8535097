"""Products modulo the square of a number, eight at once, by the 52-bit multiplications of AVX-512 (IFMA), by numba.

A number modulo m**2 is held as its two digits to the base m: (a, b) stands for a + b m. With R = 2**(52 limbs) the
product of Montgomery needs five products of single length instead of the eight of a modulus of double length:

    a c = U R - k m        (k is what the reduction modulo m adds up, limb by limb)
    (a + b m)(c + d m) / R = U + ((a d + b c - k) / R) m   modulo m**2

and a square, of which a d + b c is 2 a b, needs four. Digits are below 2 m between two operations and never reduced
before the end: R is at least 2**8 m, so that the bounds hold.

One register holds the same limb of eight numbers. No branch and no memory access depends on a number; where a table
is read at a secret place, `select_row` reads all of it.

Nothing here is compiled before it is called: on a processor without these instructions it never may be.

Source: Montgomery 1985, Modular multiplication without trial division; the digits to the base m are the p-adic ones.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8
LIMB_BITS = 52

# Rows of the constants, of `limbs` vectors each.
MODULUS, MULTIPLE, ONE, FACTORS = range(4)
"""m; a multiple of m with every limb at least 2**52, from which k can be taken; 1; and -1/m modulo 2**52 in limb 0."""
CONSTANTS = 4

_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)
_MASK = (1 << LIMB_BITS) - 1


def _constant(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


class _Emitter:
    """Emits the operations of the kernels; positions count vectors of eight words."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        signature = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        names = ("llvm.x86.avx512.vpmadd52l.uq.512", "llvm.x86.avx512.vpmadd52h.uq.512")
        self._low, self._high = (
            cgutils.get_or_insert_function(builder.module, signature, name)  # type: ignore[no-untyped-call]
            for name in names
        )

    def low(self, total: Any, left: Any, right: Any) -> Any:
        return self._builder.call(self._low, [total, left, right])

    def high(self, total: Any, left: Any, right: Any) -> Any:
        return self._builder.call(self._high, [total, left, right])

    def load(self, base: Any, place: Any) -> Any:
        loaded = self._builder.load(self._builder.gep(base, [place]))
        loaded.align = 8
        return loaded

    def store(self, base: Any, place: Any, value: Any) -> None:
        stored = self._builder.store(value, self._builder.gep(base, [place]))
        stored.align = 8

    def row(self, base: Any, number: Any, limbs: Any) -> Any:
        return self._builder.gep(base, [self._builder.mul(number, limbs)])


def _pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data  # type: ignore[no-untyped-call]
    return builder.bitcast(data, _VECTOR.as_pointer())


def _index(value: int) -> Any:
    return ir.Constant(_I64, value)


def _montgomery(is_square: bool) -> Any:
    """One Montgomery product, or square, of the digit pairs at two places of the workspace."""

    def operate(_typing: Any, work: Any, constants: Any, sums: Any, out: Any, left: Any, right: Any, limbs: Any) -> Any:  # noqa: ARG001
        signature = types.void(work, constants, sums, types.int64, types.int64, types.int64, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit = _Emitter(builder)
            work_at, constants_at, sums_at = (
                _pointer(context, builder, signature.args[place], arguments[place]) for place in range(3)
            )
            limbs = arguments[6]
            pairs = [builder.mul(arguments[place], _index(2)) for place in (3, 4, 5)]
            out_at, left_at, right_at = (emit.row(work_at, pair, limbs) for pair in pairs)
            a, b = left_at, emit.row(left_at, _index(1), limbs)
            c, d = right_at, emit.row(right_at, _index(1), limbs)
            modulus = emit.row(constants_at, _index(MODULUS), limbs)
            factor = emit.load(emit.row(constants_at, _index(FACTORS), limbs), _index(0))
            first, second = sums_at, emit.row(sums_at, _index(1), limbs)
            _clear(emit, builder, constants_at, first, second, limbs)
            with cgutils.for_range(builder, limbs) as outer:
                limb = emit.load(c, outer.index), emit.load(d, outer.index)
                _add_row(_Row(emit, builder, is_square, (a, b, modulus), limb, (first, second)), factor, limbs)
            _carry(emit, builder, first, out_at, limbs)
            _carry(emit, builder, second, emit.row(out_at, _index(1), limbs), limbs)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(operate)


def _clear(emit: _Emitter, builder: Any, constants_at: Any, first: Any, second: Any, limbs: Any) -> None:
    """The first digit's sum begins at zero, the second one's at the multiple of m that k is taken from."""
    multiple = emit.row(constants_at, _index(MULTIPLE), limbs)
    with cgutils.for_range(builder, limbs) as loop:
        emit.store(first, loop.index, _constant(0))
        emit.store(second, loop.index, emit.load(multiple, loop.index))


@dataclass(frozen=True, slots=True)
class _Row:
    """Adds one limb of the right factor times the left one, reduces both sums by a limb, and moves them down by it.

    For a square, digit d is 2 b, so that a d alone is a d + b c.

    Args:
        emit: writes the operations.
        builder: of the function that is written.
        is_square: whether b c is left out.
        left: where the left factor's digits a and b, and m, begin.
        right: this limb of the right factor's digits c and d.
        sums: where the two sums begin.
    """

    emit: _Emitter
    builder: Any
    is_square: bool
    left: tuple[Any, Any, Any]
    right: tuple[Any, Any]
    sums: tuple[Any, Any]

    def lowest(self, factor: Any) -> tuple[tuple[Any, Any], list[Any]]:
        """What both sums are reduced by, and what the next limb needs of this one: a, b, m and two carries."""
        emit, builder, (c, d) = self.emit, self.builder, self.right
        a, b, m = (emit.load(at, _index(0)) for at in self.left)
        total = emit.low(emit.load(self.sums[0], _index(0)), a, c)
        k = emit.low(_constant(0), total, factor)
        total = emit.low(total, m, k)
        other = emit.low(emit.load(self.sums[1], _index(0)), a, d)
        if not self.is_square:
            other = emit.low(other, b, c)
        other = builder.sub(other, k)
        k_second = emit.low(_constant(0), other, factor)
        other = emit.low(other, m, k_second)
        bits = _constant(LIMB_BITS)
        return (k, k_second), [a, b, m, builder.lshr(total, bits), builder.lshr(other, bits)]

    def limb(self, place: Any, multiples: tuple[Any, Any], below: list[Any]) -> list[Any]:
        """The limb at `place` of both sums, moved down by one; what the next limb needs of it."""
        emit, builder, (c, d), (k, k_second) = self.emit, self.builder, self.right, multiples
        a_below, b_below, m_below, carry, other_carry = below
        a, b, m = (emit.load(at, place) for at in self.left)
        total = builder.add(emit.load(self.sums[0], place), carry)
        other = builder.add(emit.load(self.sums[1], place), other_carry)
        # The two sums by turns: each operation waits for the one before it on the same sum.
        total = emit.low(total, a, c)
        other = emit.low(other, a, d)
        total = emit.high(total, a_below, c)
        other = emit.high(other, a_below, d)
        if not self.is_square:
            other = emit.low(other, b, c)
            other = emit.high(other, b_below, c)
        total = emit.low(total, m, k)
        other = emit.low(other, m, k_second)
        total = emit.high(total, m_below, k)
        other = emit.high(other, m_below, k_second)
        self._store(builder.sub(place, _index(1)), total, other)
        return [a, b, m, _constant(0), _constant(0)]

    def highest(self, place: Any, multiples: tuple[Any, Any], below: list[Any]) -> None:
        """The limb above the last one, which has only what came up from there."""
        emit, (c, d), (k, k_second) = self.emit, self.right, multiples
        a, b, m, total, other = below
        total = emit.high(emit.high(total, a, c), m, k)
        other = emit.high(emit.high(other, a, d), m, k_second)
        if not self.is_square:
            other = emit.high(other, b, c)
        self._store(place, total, other)

    def _store(self, place: Any, total: Any, other: Any) -> None:
        self.emit.store(self.sums[0], place, total)
        self.emit.store(self.sums[1], place, other)


def _add_row(row: _Row, factor: Any, limbs: Any) -> None:
    """All limbs of one row, from the lowest up."""
    builder = row.builder
    multiples, first = row.lowest(factor)
    held = [cgutils.alloca_once(builder, _VECTOR) for _ in first]  # type: ignore[no-untyped-call]
    for value, at in zip(first, held, strict=True):
        builder.store(value, at).align = 64
    with cgutils.for_range(builder, limbs, start=_index(1)) as loop:
        below = [builder.load(at) for at in held]
        for value, at in zip(row.limb(loop.index, multiples, below), held, strict=True):
            builder.store(value, at)
    row.highest(builder.sub(limbs, _index(1)), multiples, [builder.load(at) for at in held])


def _carry(emit: _Emitter, builder: Any, sums: Any, out: Any, limbs: Any) -> None:
    """Limbs below 2**52 of a sum whose limbs are below 2**63; the sum itself is below R."""
    carry = cgutils.alloca_once(builder, _VECTOR)  # type: ignore[no-untyped-call]
    builder.store(_constant(0), carry)
    with cgutils.for_range(builder, limbs) as loop:
        value = builder.add(emit.load(sums, loop.index), builder.load(carry))
        emit.store(out, loop.index, builder.and_(value, _constant(_MASK)))
        builder.store(builder.lshr(value, _constant(LIMB_BITS)), carry)


_multiply = _montgomery(is_square=False)
_multiply_first_digit = _montgomery(is_square=True)


@njit(nogil=True, cache=True)
def _square(work: Any, constants: Any, sums: Any, out: Any, place: Any, spare: Any, limbs: Any) -> None:
    """out = place**2 on the workspace, whose place `spare` is used for (a, 2 b)."""
    width = limbs * LANES
    mask, bits = np.uint64(_MASK), np.uint64(LIMB_BITS)
    for word in range(width):
        work[spare, word] = work[place, word]
    for lane in range(LANES):
        carry = np.uint64(0)
        for word in range(width + lane, 2 * width, LANES):
            doubled = (work[place, word] << np.uint64(1)) + carry
            work[spare, word] = doubled & mask
            carry = doubled >> bits
    _multiply_first_digit(work, constants, sums, out, place, spare, limbs)


@njit(nogil=True, cache=True)
def _put_one(work: Any, constants: Any, place: Any, limbs: Any) -> None:
    """The digits (1, 0), by which a product of Montgomery form loses that form."""
    for limb in range(limbs):
        for lane in range(LANES):
            work[place, limb * LANES + lane] = constants[ONE, limb, lane]
            work[place, (limbs + limb) * LANES + lane] = np.uint64(0)


@njit(nogil=True, cache=True)
def _load_lane(work: Any, place: Any, lane: Any, digits: Any) -> None:
    for limb in range(len(digits)):
        work[place, limb * LANES + lane] = digits[limb]


@njit(nogil=True, cache=True)
def _store_lane(work: Any, place: Any, lane: Any, digits: Any) -> None:
    for limb in range(len(digits)):
        digits[limb] = work[place, limb * LANES + lane]


@njit(nogil=True, cache=True)
def _window(exponent: Any, first: Any, width: Any) -> Any:
    """Bits `first` to `first + width - 1` of a little-endian exponent with a byte of zeros at the end."""
    pair = np.uint64(exponent[first // 8]) | (np.uint64(exponent[first // 8 + 1]) << np.uint64(8))
    return (pair >> np.uint64(first % 8)) & ((np.uint64(1) << np.uint64(width)) - np.uint64(1))


@njit(nogil=True, cache=True)
def fill_table(constants: Any, bases: Any, table: Any) -> None:
    """Powers of the base of each place of an exponent.

    Args:
        constants: (4, limbs, 8) uint64.
        bases: (rows, 2 limbs) uint64, the base of each place in Montgomery form. rows is a multiple of 8.
        table: (rows, 2**width, 2 limbs) uint64, written from entry 2 on; entry 0 is one and entry 1 the base.
    """
    limbs = constants.shape[1]
    work = np.empty((2, 2 * limbs * LANES), np.uint64)
    sums = np.empty((2, limbs, LANES), np.uint64)
    for first in range(0, bases.shape[0], LANES):
        for lane in range(LANES):
            _load_lane(work, 0, lane, bases[first + lane])
            _load_lane(work, 1, lane, bases[first + lane])
        for entry in range(2, table.shape[1]):
            _multiply(work, constants, sums, 0, 0, 1, limbs)
            for lane in range(LANES):
                _store_lane(work, 0, lane, table[first + lane, entry])


@njit(nogil=True, cache=True)
def table_powers(constants: Any, table: Any, width: Any, exponents: Any, out: Any) -> None:
    """Powers of a fixed base: one product per place of the exponent.

    Which entries are read depends on the exponents, as in every implementation with a table.

    Args:
        constants: (4, limbs, 8) uint64.
        table: (rows, 2**width, 2 limbs) uint64, see `fill_table`.
        width: bits of a place.
        exponents: (n, bytes) uint8, little-endian, a byte of zeros at the end. n is a multiple of 8.
        out: (n, 2 limbs) uint64, written: digits below 2 m.
    """
    limbs = constants.shape[1]
    work = np.empty((3, 2 * limbs * LANES), np.uint64)
    sums = np.empty((2, limbs, LANES), np.uint64)
    _put_one(work, constants, 2, limbs)
    for first in range(0, exponents.shape[0], LANES):
        for lane in range(LANES):
            _load_lane(work, 0, lane, table[0, _window(exponents[first + lane], 0, width)])
        for row in range(1, table.shape[0]):
            for lane in range(LANES):
                _load_lane(work, 1, lane, table[row, _window(exponents[first + lane], row * width, width)])
            _multiply(work, constants, sums, 0, 0, 1, limbs)
        _multiply(work, constants, sums, 0, 0, 2, limbs)
        for lane in range(LANES):
            _store_lane(work, 0, lane, out[first + lane])


@njit(nogil=True, cache=True)
def _select(work: Any, out: Any, first: Any, masks: Any) -> None:
    """Copy the one place, of those from `first` on, whose mask is all ones. All of them are read."""
    for group in range(0, work.shape[1], LANES):
        for lane in range(LANES):
            word = np.uint64(0)
            for entry in range(len(masks)):
                word |= work[first + entry, group + lane] & masks[entry]
            work[out, group + lane] = word


@njit(nogil=True, cache=True)
def secret_powers(constants: Any, one: Any, bases: Any, exponent: Any, places: Any, width: Any, out: Any) -> None:
    """Powers of many bases with one secret exponent, by windows of a fixed width.

    Which operations are done and which memory is read depends on the sizes alone.

    Args:
        constants: (4, limbs, 8) uint64.
        one: (2 limbs,) uint64, one in Montgomery form.
        bases: (n, 2 limbs) uint64 in Montgomery form. n is a multiple of 8.
        exponent: (bytes,) uint8, little-endian, a byte of zeros at the end.
        places: windows of the exponent.
        width: bits of a window.
        out: (n, 2 limbs) uint64, written: digits below 2 m.
    """
    limbs, entries = constants.shape[1], 1 << width
    spare, chosen, table = 1, 2, 3
    work = np.empty((table + entries, 2 * limbs * LANES), np.uint64)
    sums = np.empty((2, limbs, LANES), np.uint64)
    masks = np.empty(entries, np.uint64)
    for first in range(0, bases.shape[0], LANES):
        for lane in range(LANES):
            _load_lane(work, 0, lane, one)
            _load_lane(work, table, lane, one)
            _load_lane(work, table + 1, lane, bases[first + lane])
        for entry in range(2, entries):
            _multiply(work, constants, sums, table + entry, table + entry - 1, table + 1, limbs)
        for place in range(places - 1, -1, -1):
            for _ in range(width):
                _square(work, constants, sums, 0, 0, spare, limbs)
            wanted = _window(exponent, place * width, width)
            for entry in range(entries):
                differs = np.uint64(entry) ^ wanted
                # The top bit of x | -x is set unless x is zero.
                masks[entry] = ((differs | (np.uint64(0) - differs)) >> np.uint64(63)) - np.uint64(1)
            _select(work, chosen, table, masks)
            _multiply(work, constants, sums, 0, 0, chosen, limbs)
        _put_one(work, constants, spare, limbs)
        _multiply(work, constants, sums, 0, 0, spare, limbs)
        for lane in range(LANES):
            _store_lane(work, 0, lane, out[first + lane])
