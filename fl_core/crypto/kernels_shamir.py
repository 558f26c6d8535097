"""Arithmetic of the field of 2**61 - 1 elements, over whole arrays. Every loop of `shamir` runs here.

No branch and no memory access depends on a secret: a product is folded at bit 61 and reduced by masks, and the sizes of
all loops are public. `tests/crypto/test_shamir.py` holds every kernel against Python's integers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Words = npt.NDArray[np.uint64]

_BITS = np.uint64(61)
_PRIME = np.uint64((1 << 61) - 1)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_WORD_BITS = np.uint64(64)


@intrinsic
def _high_product(_typing_context: Any, left: Any, right: Any) -> Any:  # noqa: ARG001 - numba passes types
    """The upper 64 bits of the 128-bit product of two 64-bit words."""
    signature = types.uint64(types.uint64, types.uint64)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word, double = ir.IntType(64), ir.IntType(128)
        factors = [builder.zext(argument, double) for argument in arguments]
        return builder.trunc(builder.lshr(builder.mul(*factors), ir.Constant(double, 64)), word)

    return signature, generate


@njit("uint64(uint64, uint64)", inline="always", nogil=True, cache=True)
def _multiply(left: np.uint64, right: np.uint64) -> np.uint64:
    """A product modulo the prime, at most one above it. Factors may be at most two above it."""
    low = left * right
    high: np.uint64 = _high_product(left, right)  # type: ignore[call-arg]
    folded = (low & _PRIME) + ((low >> _BITS) | (high << (_WORD_BITS - _BITS)))
    return (folded & _PRIME) + (folded >> _BITS)


@njit("uint64(uint64)", inline="always", nogil=True, cache=True)
def _reduce(value: np.uint64) -> np.uint64:
    """The one residue below the prime of any 64-bit word, without a branch."""
    folded = (value & _PRIME) + (value >> _BITS)
    wrapped = folded - _PRIME
    # All ones when the subtraction went below zero, so that the difference is given up.
    keep = _ZERO - (wrapped >> (_WORD_BITS - _ONE))
    return (folded & keep) | (wrapped & ~keep)


@njit("void(uint64[:, ::1], uint64[::1], uint64[:, ::1])", nogil=True, cache=True)
def evaluate(coefficients: Words, points: Words, out: Words) -> None:
    """Evaluate polynomials at points by Horner's rule.

    Args:
        coefficients: (t, k) of k polynomials, row j belongs to x**j, below the prime.
        points: (n,) below the prime.
        out: (n, k), written, below the prime.
    """
    degree_bound, columns = coefficients.shape
    for place in range(points.size):
        point = points[place]
        for column in range(columns):
            out[place, column] = _ZERO
        for power in range(degree_bound - 1, -1, -1):
            for column in range(columns):
                value = _multiply(out[place, column], point) + coefficients[power, column]
                out[place, column] = (value & _PRIME) + (value >> _BITS)
        for column in range(columns):
            out[place, column] = _reduce(out[place, column])


@njit("void(uint64[:, ::1], uint64[:, ::1], uint64[:, ::1])", nogil=True, cache=True)
def lagrange_fractions(points: Words, numerators: Words, denominators: Words) -> None:
    """Numerator and denominator of each Lagrange coefficient at zero, for several sets of points.

    Args:
        points: (g, m), in each row distinct, not zero, below the prime.
        numerators: (g, m) written: the product of all other points of the row.
        denominators: (g, m) written: the product of all other points of the row less this one.
    """
    rows, count = points.shape
    for row in range(rows):
        for place in range(count):
            numerator, denominator = _ONE, _ONE
            for other in range(count):
                if other != place:
                    numerator = _multiply(numerator, points[row, other])
                    denominator = _multiply(denominator, _reduce(points[row, other] + _PRIME - points[row, place]))
            numerators[row, place] = _reduce(numerator)
            denominators[row, place] = _reduce(denominator)


@njit("void(uint64[::1], uint64[::1], uint64[::1])", nogil=True, cache=True)
def divide(numerators: Words, denominators: Words, out: Words) -> None:
    """Quotients of public numbers, at the cost of one inversion (Montgomery's trick).

    Args:
        numerators: (k,) below the prime.
        denominators: (k,) below the prime, not zero.
        out: (k,) written, below the prime.
    """
    running = _ONE
    for place in range(out.size):
        out[place] = running
        running = _multiply(running, denominators[place])
    # The inverse is the power p - 2 (Fermat), of whose 61 bits all but bit 1 are set.
    inverse = _ONE
    for bit in range(60, -1, -1):
        inverse = _multiply(inverse, inverse)
        if bit != 1:
            inverse = _multiply(inverse, running)
    for place in range(out.size - 1, -1, -1):
        out[place] = _reduce(_multiply(_multiply(inverse, out[place]), numerators[place]))
        inverse = _multiply(inverse, denominators[place])


@njit("void(uint64[:, ::1], uint64[:, :, ::1], uint64[:, ::1])", nogil=True, cache=True)
def weighted_sums(weights: Words, rows: Words, out: Words) -> None:
    """In each group, add up rows, each times its weight.

    Args:
        weights: (g, m) below the prime.
        rows: (g, m, k) below the prime.
        out: (g, k) written, below the prime.
    """
    groups, columns = out.shape
    for group in range(groups):
        for column in range(columns):
            out[group, column] = _ZERO
        for row in range(weights.shape[1]):
            for column in range(columns):
                value = out[group, column] + _multiply(weights[group, row], rows[group, row, column])
                out[group, column] = (value & _PRIME) + (value >> _BITS)
        for column in range(columns):
            out[group, column] = _reduce(out[group, column])
