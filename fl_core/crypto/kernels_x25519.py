"""X25519 of eight pairs of keys at once, by the 52-bit multiplications of AVX-512 (IFMA), through numba.

A field element is five limbs of 51 bits, and one register holds the same limb of eight elements. No branch and no
memory access depends on a secret: the ladder has 255 equal steps, and its swaps are masks. `agreement` holds this code
against libsodium before it is used.

Nothing here is compiled before it is called: on a processor without these instructions it never may be.

Source: RFC 7748, section 5 (the ladder and its constant 121665); Bernstein et al. 2012 (limbs of 51 bits).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8
LIMBS = 5
LIMB_BITS = 51

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)
_LIMB = (1 << LIMB_BITS) - 1
# Four times the prime, limb by limb: what keeps a difference of two elements from going below zero.
_FOUR_PRIMES = [4 * (_LIMB - 18), *[4 * _LIMB] * (LIMBS - 1)]
_A24 = 121665
_X1, _X2, _Z2, _X3, _Z3, _T0, _T1, _T2 = range(8)
ELEMENTS = 8
"""Rows of the workspace: the ladder's five and three for the inversion, of LIMBS x LANES words each."""

Words = npt.NDArray[np.uint64]
Element = list[Any]


class _Field:
    """Emits arithmetic modulo 2**255 - 19 on eight elements, whose limbs are below 2**52 between two operations."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        signature = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        names = ("llvm.x86.avx512.vpmadd52l.uq.512", "llvm.x86.avx512.vpmadd52h.uq.512")
        self._low, self._high = (
            cgutils.get_or_insert_function(builder.module, signature, name)  # type: ignore[no-untyped-call]
            for name in names
        )
        self._zero = _constant(0)

    def multiply(self, left: Element, right: Element) -> Element:
        low, high = [self._zero] * 9, [self._zero] * 9
        for i in range(LIMBS):
            for j in range(LIMBS):
                low[i + j] = self._builder.call(self._low, [low[i + j], left[i], right[j]])
                high[i + j] = self._builder.call(self._high, [high[i + j], left[i], right[j]])
        return self._fold(low, high)

    def square(self, value: Element) -> Element:
        low, high = [self._zero] * 9, [self._zero] * 9
        for i in range(LIMBS):
            for j in range(i + 1, LIMBS):
                low[i + j] = self._builder.call(self._low, [low[i + j], value[i], value[j]])
                high[i + j] = self._builder.call(self._high, [high[i + j], value[i], value[j]])
        low, high = ([self._double(part) for part in parts] for parts in (low, high))
        for i in range(LIMBS):
            low[2 * i] = self._builder.call(self._low, [low[2 * i], value[i], value[i]])
            high[2 * i] = self._builder.call(self._high, [high[2 * i], value[i], value[i]])
        return self._fold(low, high)

    def scale(self, value: Element, factor: int) -> Element:
        """A product with a small constant."""
        by = _constant(factor)
        low = [self._builder.call(self._low, [self._zero, limb, by]) for limb in value]
        high = [self._builder.call(self._high, [self._zero, limb, by]) for limb in value]
        return self._fold([*low, *[self._zero] * 4], [*high, *[self._zero] * 4])

    def add(self, left: Element, right: Element) -> Element:
        return self._carry([self._builder.add(a, b) for a, b in zip(left, right, strict=True)])

    def subtract(self, left: Element, right: Element) -> Element:
        lifted = [self._builder.add(a, _constant(p)) for a, p in zip(left, _FOUR_PRIMES, strict=True)]
        return self._carry([self._builder.sub(a, b) for a, b in zip(lifted, right, strict=True)])

    def swap(self, mask: Any, left: Element, right: Element) -> tuple[Element, Element]:
        """Exchange two elements in the lanes in which the mask is all ones."""
        change = [self._builder.and_(mask, self._builder.xor(a, b)) for a, b in zip(left, right, strict=True)]
        return (
            [self._builder.xor(a, c) for a, c in zip(left, change, strict=True)],
            [self._builder.xor(b, c) for b, c in zip(right, change, strict=True)],
        )

    def _fold(self, low: Element, high: Element) -> Element:
        """Ten limbs of a product to five: 2**52 is two units of the next limb, 2**255 is 19."""
        wide = [low[0]]
        wide += [self._builder.add(low[place], self._double(high[place - 1])) for place in range(1, 9)]
        wide.append(self._double(high[8]))
        limbs = [self._builder.add(wide[i], self._times_19(wide[i + LIMBS])) for i in range(LIMBS)]
        # Limbs are below 2**61 here: carried once around, one after the other, they are below 2**51 and a little.
        for place in range(LIMBS - 1):
            carry, limbs[place] = self._split(limbs[place])
            limbs[place + 1] = self._builder.add(limbs[place + 1], carry)
        carry, limbs[-1] = self._split(limbs[-1])
        limbs[0] = self._builder.add(limbs[0], self._times_19(carry))
        return limbs

    def _carry(self, limbs: Element) -> Element:
        """Limbs below 2**55, all carried at once."""
        split = [self._split(limb) for limb in limbs]
        carries = [self._times_19(split[-1][0]), *[carry for carry, _ in split[:-1]]]
        return [self._builder.add(rest, carry) for (_, rest), carry in zip(split, carries, strict=True)]

    def _split(self, limb: Any) -> tuple[Any, Any]:
        return self._builder.lshr(limb, _constant(LIMB_BITS)), self._builder.and_(limb, _constant(_LIMB))

    def _double(self, value: Any) -> Any:
        return self._builder.add(value, value)

    def _times_19(self, value: Any) -> Any:
        high, low = self._builder.shl(value, _constant(4)), self._builder.shl(value, _constant(1))
        return self._builder.add(value, self._builder.add(high, low))


def _constant(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data  # type: ignore[no-untyped-call]
    return builder.bitcast(data, _VECTOR.as_pointer())


def _load(builder: Any, base: Any, first: Any) -> Element:
    limbs = []
    for limb in range(LIMBS):
        loaded = builder.load(builder.gep(base, [builder.add(first, ir.Constant(_I64, limb))]))
        loaded.align = 8
        limbs.append(loaded)
    return limbs


def _store(builder: Any, base: Any, first: Any, element: Element) -> None:
    for limb, value in enumerate(element):
        stored = builder.store(value, builder.gep(base, [builder.add(first, ir.Constant(_I64, limb))]))
        stored.align = 8


def _row(number: int) -> Any:
    return ir.Constant(_I64, number * LIMBS)


@intrinsic
def _ladder_step(_typing: Any, work: Any, mask: Any) -> Any:
    """One step of the ladder on all lanes, after the swap that `mask` (8,) asks for."""
    signature = types.void(work, mask)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = _pointer(context, builder, signature.args[0], arguments[0])
        swap = builder.load(_pointer(context, builder, signature.args[1], arguments[1]))
        swap.align = 8
        field = _Field(builder)
        x1, x2, z2, x3, z3 = (_load(builder, base, _row(number)) for number in (_X1, _X2, _Z2, _X3, _Z3))
        (x2, x3), (z2, z3) = field.swap(swap, x2, x3), field.swap(swap, z2, z3)
        total, difference = field.add(x2, z2), field.subtract(x2, z2)
        crossed = field.multiply(field.subtract(x3, z3), total)
        across = field.multiply(field.add(x3, z3), difference)
        _store(builder, base, _row(_X3), field.square(field.add(crossed, across)))
        _store(builder, base, _row(_Z3), field.multiply(x1, field.square(field.subtract(crossed, across))))
        total, difference = field.square(total), field.square(difference)
        _store(builder, base, _row(_X2), field.multiply(total, difference))
        gap = field.subtract(total, difference)
        _store(builder, base, _row(_Z2), field.multiply(gap, field.add(total, field.scale(gap, _A24))))
        return context.get_dummy_value()

    return signature, codegen


def _row_intrinsic(is_square: bool) -> Any:
    """out = left * right, or out = left**2, on rows of the workspace."""

    def operate(_typing: Any, work: Any, out: Any, left: Any, right: Any) -> Any:  # noqa: ARG001
        signature = types.void(work, types.int64, types.int64, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base = _pointer(context, builder, signature.args[0], arguments[0])
            places = [builder.mul(argument, ir.Constant(_I64, LIMBS)) for argument in arguments[1:]]
            field = _Field(builder)
            first = _load(builder, base, places[1])
            product = field.square(first) if is_square else field.multiply(first, _load(builder, base, places[2]))
            _store(builder, base, places[0], product)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(operate)


_multiply_rows = _row_intrinsic(is_square=False)
_square_row = _row_intrinsic(is_square=True)


@njit(nogil=True, cache=True)
def scalar_multiply(scalars: Any, points: Any, out: Any) -> None:
    """X25519 of pairs of a scalar and a point.

    Args:
        scalars: (n, 32) uint8, as they are drawn: they are clamped here. n is a multiple of 8.
        points: (n, 4) uint64, u-coordinates as little-endian words; the top bit does not count.
        out: (n, 4) uint64, written: u-coordinates below the prime; zero where a point has a low order.
    """
    work = np.empty((ELEMENTS * LIMBS, LANES), np.uint64)
    mask = np.empty(LANES, np.uint64)
    before = np.empty(LANES, np.uint64)
    for first in range(0, scalars.shape[0], LANES):
        _begin(work, points, first)
        before[:] = np.uint64(0)
        for place in range(254, -1, -1):
            for lane in range(LANES):
                bit = _clamped_bit(scalars, first + lane, place)
                mask[lane] = np.uint64(0) - (bit ^ before[lane])
                before[lane] = bit
            _ladder_step(work, mask)  # type: ignore[call-arg]
        # The lowest bit of a clamped scalar is zero: no swap is left to be done.
        _invert(work)
        _multiply_rows(work, _X2, _X2, _Z2)
        _end(work, out, first)


@njit(nogil=True, cache=True)
def _clamped_bit(scalars: Any, row: Any, place: Any) -> Any:
    if place < 3:
        return np.uint64(0)
    if place == 254:
        return np.uint64(1)
    return (np.uint64(scalars[row, place // 8]) >> np.uint64(place % 8)) & np.uint64(1)


@njit(nogil=True, cache=True)
def _begin(work: Any, points: Any, first: Any) -> None:
    """x1 = x3 = u, x2 = z3 = 1, z2 = 0."""
    limb = np.uint64(_LIMB)
    work[:] = np.uint64(0)
    for lane in range(LANES):
        w0, w1, w2, w3 = points[first + lane]
        for row in (_X1 * LIMBS, _X3 * LIMBS):
            work[row, lane] = w0 & limb
            work[row + 1, lane] = ((w0 >> np.uint64(51)) | (w1 << np.uint64(13))) & limb
            work[row + 2, lane] = ((w1 >> np.uint64(38)) | (w2 << np.uint64(26))) & limb
            work[row + 3, lane] = ((w2 >> np.uint64(25)) | (w3 << np.uint64(39))) & limb
            work[row + 4, lane] = (w3 >> np.uint64(12)) & limb
        work[_X2 * LIMBS, lane] = np.uint64(1)
        work[_Z3 * LIMBS, lane] = np.uint64(1)


@njit(nogil=True, cache=True)
def _square_times(work: Any, out: Any, value: Any, times: Any) -> None:
    _square_row(work, out, value, value)
    for _ in range(times - 1):
        _square_row(work, out, out, out)


@njit(nogil=True, cache=True)
def _invert(work: Any) -> None:
    """z2 becomes z2**(p - 2), its inverse, or zero where it is zero. The names say which power of z2 a row holds."""
    z, z9, z11, power = _Z2, _X3, _Z3, _T0
    _square_times(work, power, z, 1)
    _square_times(work, _T1, power, 2)
    _multiply_rows(work, z9, _T1, z)
    _multiply_rows(work, z11, z9, power)
    _square_times(work, _T1, z11, 1)
    _multiply_rows(work, power, _T1, z9)  # 2**5 - 1
    _square_times(work, _T1, power, 5)
    _multiply_rows(work, power, _T1, power)  # 2**10 - 1
    _square_times(work, _T1, power, 10)
    _multiply_rows(work, _T2, _T1, power)  # 2**20 - 1
    _square_times(work, _T1, _T2, 20)
    _multiply_rows(work, _T1, _T1, _T2)  # 2**40 - 1
    _square_times(work, _T1, _T1, 10)
    _multiply_rows(work, power, _T1, power)  # 2**50 - 1
    _square_times(work, _T1, power, 50)
    _multiply_rows(work, _T2, _T1, power)  # 2**100 - 1
    _square_times(work, _T1, _T2, 100)
    _multiply_rows(work, _T1, _T1, _T2)  # 2**200 - 1
    _square_times(work, _T1, _T1, 50)
    _multiply_rows(work, power, _T1, power)  # 2**250 - 1
    _square_times(work, power, power, 5)
    _multiply_rows(work, _Z2, power, z11)  # 2**255 - 21


@njit(nogil=True, cache=True)
def _end(work: Any, out: Any, first: Any) -> None:
    """Row x2 as words, reduced below the prime without a branch."""
    limb, bits = np.uint64(_LIMB), np.uint64(LIMB_BITS)
    value = np.empty(LIMBS, np.uint64)
    for lane in range(LANES):
        for place in range(LIMBS):
            value[place] = work[_X2 * LIMBS + place, lane]
        for _ in range(2):
            _carry_around(value)
        # 19 more overflows exactly when the value is not below the prime; the overflow then is what is taken off.
        carry = np.uint64(19)
        for place in range(LIMBS):
            carry = (value[place] + carry) >> bits
        value[0] += np.uint64(19) * carry
        for place in range(LIMBS - 1):
            value[place + 1] += value[place] >> bits
            value[place] &= limb
        value[LIMBS - 1] &= limb
        out[first + lane, 0] = value[0] | (value[1] << np.uint64(51))
        out[first + lane, 1] = (value[1] >> np.uint64(13)) | (value[2] << np.uint64(38))
        out[first + lane, 2] = (value[2] >> np.uint64(26)) | (value[3] << np.uint64(25))
        out[first + lane, 3] = (value[3] >> np.uint64(39)) | (value[4] << np.uint64(12))


@njit(nogil=True, cache=True)
def _carry_around(value: Any) -> None:
    limb, bits = np.uint64(_LIMB), np.uint64(LIMB_BITS)
    for place in range(LIMBS - 1):
        value[place + 1] += value[place] >> bits
        value[place] &= limb
    value[0] += np.uint64(19) * (value[LIMBS - 1] >> bits)
    value[LIMBS - 1] &= limb
