"""Discrete Gaussian and Skellam distributions in integers of any precision: the tables that exact samplers read.

Nothing here is a float: the variance is taken as the exact fraction that it is, and every figure comes with a bound
on its error, so that a sampler knows when its bits do not decide yet.
"""

from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import accumulate
from math import ceil, isqrt, log

from fl_core.errors import CryptoError
from fl_core.privacy.events import Noise

MAX_STD = 1 << 16
"""Largest standard deviation: its table has some 600,000 entries."""

_GUARD_BITS = 96
_ERROR_BITS = 24


@dataclass(frozen=True, slots=True)
class MagnitudeCdf:
    """P(|X| <= k) for k = 0, 1, ... as fixed-point numbers.

    Args:
        bits: after the point.
        floors: by k, a number that is at most the exact one times 2**bits.
        error: by how much it may be below, in units of 2**-bits.
    """

    bits: int
    floors: tuple[int, ...] = field(repr=False)
    error: Fraction = Fraction(1)


def magnitude_cdf(noise: Noise, variance: float, bits: int) -> MagnitudeCdf:
    """The distribution of |X| to `bits` bits and `_ERROR_BITS` more.

    Args:
        noise: discrete_gaussian, with parameter sigma^2 = variance; or skellam, the difference of two Poisson
            variables of mean variance / 2.
        variance: above 0, at most MAX_STD**2.
        bits: precision, 1 or more.

    Raises:
        CryptoError: there is no sampler for this noise or variance.

    Source: Canonne, Kamath, Steinke 2020, The Discrete Gaussian for Differential Privacy, definition 1; Abramowitz and
    Stegun 9.6.26 for the recurrence of the modified Bessel functions, of which the Skellam probabilities are made.
    """
    if not 0 < variance <= MAX_STD**2:
        raise CryptoError(
            "the noise is too wide or too narrow for the sampler",
            expected=f"a variance above 0, up to {MAX_STD}**2",
            got=variance,
            fix="lower privacy.levels, or ask for less noise",
        )
    precision = bits + _GUARD_BITS + _ERROR_BITS
    exact = Fraction(variance)
    match noise:
        case Noise.DISCRETE_GAUSSIAN:
            weights = _gaussian_weights(exact, precision)
        case Noise.SKELLAM:
            weights = _skellam_weights(exact, precision)
        case _:
            raise CryptoError("there is no exact sampler for this noise", expected="discrete_gaussian or skellam")
    sums = list(accumulate(weights[1:], lambda total, weight: total + 2 * weight, initial=weights[0]))
    total = sums[-1]
    return MagnitudeCdf(bits, tuple((part << bits) // total for part in sums), Fraction(1, 1 << _ERROR_BITS))


def _gaussian_weights(variance: Fraction, precision: int) -> list[int]:
    """exp(-k^2 / (2 sigma^2)), fixed-point. Errors of the steps add up to less than the guard bits hold."""
    one = 1 << precision
    ratio, squeeze = _exp(-1 / (2 * variance), precision), _exp(-1 / variance, precision)
    weights = [one]
    while weights[-1]:
        weights.append(weights[-1] * ratio >> precision)
        ratio = ratio * squeeze >> precision
    return weights


def _skellam_weights(variance: Fraction, precision: int) -> list[int]:
    """Multiples of I_k(variance), downwards from a place where they are negligible (Miller's algorithm)."""
    last = _negligible_from(variance, precision)
    weights = [0] * (last + 2)
    weights[last] = 1 << precision
    up, down = variance.denominator, variance.numerator
    for k in range(last, 0, -1):
        weights[k - 1] = weights[k + 1] + 2 * k * weights[k] * up // down
    return weights


def _negligible_from(variance: Fraction, precision: int) -> int:
    """From where Bernstein's inequality puts the tail below 2**-precision."""
    nats = ceil(precision * log(2)) + 1
    return nats // 3 + isqrt((nats // 3 + 1) ** 2 + 2 * nats * ceil(variance)) + 2


def _exp(exponent: Fraction, precision: int) -> int:
    with localcontext() as context:
        # Decimal digits, and as many again as the integer part of the scaled result may have.
        context.prec = ceil(precision * 0.302) + 40
        context.Emin, context.Emax = -(10**17), 10**17
        power = (Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()
        return int(power * (1 << precision))
