"""The field of 2**61 - 1 elements in numpy: the same results as `kernels_shamir`, without the second that numba takes.

For the few shares of a small cohort. No branch and no memory access depends on a secret here either: products are put
together from 32-bit halves and reduced by masks.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_BITS = np.uint64(61)
_PRIME = np.uint64((1 << 61) - 1)
_HALF_BITS = np.uint64(32)
_HALF = np.uint64((1 << 32) - 1)
_MIDDLE_BITS = np.uint64(29)
_MIDDLE = np.uint64((1 << 29) - 1)
_THREE = np.uint64(3)
_SIGN = np.uint64(63)
_ZERO = np.uint64(0)


def evaluate(coefficients: Words, points: Words, out: Words) -> None:
    """Evaluate polynomials at points; as `kernels_shamir.evaluate`."""
    out[:] = _ZERO
    for row in coefficients[::-1]:
        out[:] = _reduce(_multiply(out, points[:, np.newaxis]) + row)


def lagrange_fractions(points: Words, numerators: Words, denominators: Words) -> None:
    """Numerator and denominator of each Lagrange coefficient at zero; as `kernels_shamir.lagrange_fractions`."""
    numerators[:] = denominators[:] = 1
    for shift in range(1, points.shape[1]):
        others = np.roll(points, -shift, axis=1)
        numerators[:] = _multiply(numerators, others)
        denominators[:] = _multiply(denominators, _reduce(others + _PRIME - points))


def divide(numerators: Words, denominators: Words, out: Words) -> None:
    """Quotients of public numbers, in Python's integers; as `kernels_shamir.divide`."""
    prime, values = int(_PRIME), denominators.tolist()
    products = [1]
    for value in values:
        products.append(products[-1] * value % prime)
    running = pow(products.pop(), -1, prime)
    for place in range(len(values) - 1, -1, -1):
        out[place] = running * products[place] * int(numerators[place]) % prime
        running = running * values[place] % prime


def weighted_sums(weights: Words, rows: Words, out: Words) -> None:
    """In each group, add up rows, each times its weight; as `kernels_shamir.weighted_sums`."""
    out[:] = _ZERO
    for row in range(weights.shape[1]):
        out[:] = _reduce(out + _multiply(rows[:, row], weights[:, row, np.newaxis]))


def _multiply(left: Words, right: Words) -> Words:
    """A product modulo the prime, below the prime. Factors are below the prime."""
    left_high, left_low = left >> _HALF_BITS, left & _HALF
    right_high, right_low = right >> _HALF_BITS, right & _HALF
    middle = left_high * right_low + left_low * right_high
    low = left_low * right_low
    # 2**64 is 8 and 2**61 is 1 modulo the prime; each of the five terms stays below 2**61, their sum below 2**64.
    return _reduce(
        ((left_high * right_high) << _THREE)
        + (middle >> _MIDDLE_BITS)
        + ((middle & _MIDDLE) << _HALF_BITS)
        + (low >> _BITS)
        + (low & _PRIME)
    )


def _reduce(value: Words) -> Words:
    """The one residue below the prime of any 64-bit words, without a branch."""
    folded = (value & _PRIME) + (value >> _BITS)
    wrapped = folded - _PRIME
    # All ones where the subtraction went below zero, so that the difference is given up.
    keep = _ZERO - (wrapped >> _SIGN)
    reduced: Words = (folded & keep) | (wrapped & ~keep)
    return reduced
