"""Which code raises numbers to powers: eight at once where the processor can, gmpy2 elsewhere.

The engine is chosen from the processor's flags, and held against gmpy2 before it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from fl_core.crypto.paillier.bignum import from_bytes, integer, secret_power
from fl_core.crypto.paillier.keys import PublicKey, randomness_base

Residue = tuple[int, int]
"""A number modulo n**2 as its two digits to the base n: (a, b) stands for a + b n, 0 <= a, b < n."""

WIDEST_WINDOW = 8


class RandomnessTable(Protocol):
    """Powers of the base of the randomness, h_s."""

    def powers(self, exponents: Sequence[bytes]) -> list[Residue]:
        """h_s**r modulo n**2 for big-endian exponents of `randomness_bits` bits, each in whole bytes."""


class PowerEngine(Protocol):
    """Raises many numbers to powers."""

    @property
    def name(self) -> str:
        """ifma or gmpy2."""

    def randomness_table(self, public_key: PublicKey, uses: int) -> RandomnessTable:
        """A table for about so many encryptions under a key."""

    def secret_powers(self, bases: Sequence[int], exponent: int, prime: int) -> list[int]:
        """base**exponent modulo prime**2 in a time that depends on the sizes alone."""


def window_for(exponent_bits: int, uses: int) -> int:
    """The window width, 1 to 8 bits, that needs the fewest multiplications for the table and so many powers."""
    costs = {width: -(-exponent_bits // width) * ((1 << width) - 1 + uses) for width in range(1, WIDEST_WINDOW + 1)}
    return min(costs, key=lambda width: costs[width])


@dataclass(frozen=True, slots=True)
class GmpEngine:
    """One after the other: runs wherever gmpy2 does."""

    name: str = "gmpy2"

    def randomness_table(self, public_key: PublicKey, uses: int) -> RandomnessTable:
        return _gmp_table(public_key, window_for(public_key.randomness_bits, uses))

    def secret_powers(self, bases: Sequence[int], exponent: int, prime: int) -> list[int]:
        square = integer(prime) * prime
        return [secret_power(base, exponent, square) for base in bases]


@dataclass(frozen=True, slots=True)
class GmpTable:
    """h_s**(d * 2**(width * place)) for each digit d of each place of an exponent: a power is one product per place.

    Source: Brickell, Gordon, McCurley and Wilson 1992, Fast exponentiation with precomputation.
    """

    public_key: PublicKey
    width: int
    rows: tuple[tuple[int, ...], ...] = field(repr=False)

    @classmethod
    def build(cls, public_key: PublicKey, width: int) -> "GmpTable":
        modulus = public_key.n_squared
        rows, base = [], randomness_base(public_key)
        for _ in range(-(-public_key.randomness_bits // width)):
            row = [integer(1)]
            for _ in range((1 << width) - 1):
                row.append(row[-1] * base % modulus)
            rows.append(tuple(row))
            base = row[-1] * base % modulus
        return cls(public_key, width, tuple(rows))

    def powers(self, exponents: Sequence[bytes]) -> list[Residue]:
        return [self._power(from_bytes(exponent)) for exponent in exponents]

    def _power(self, exponent: int) -> Residue:
        modulus, mask, result = self.public_key.n_squared, (1 << self.width) - 1, integer(1)
        for row in self.rows:
            result = result * row[exponent & mask] % modulus
            exponent >>= self.width
        high, low = divmod(result, self.public_key.n)
        return low, high


@lru_cache(maxsize=4)
def _gmp_table(public_key: PublicKey, width: int) -> GmpTable:
    return GmpTable.build(public_key, width)


def best_engine() -> PowerEngine:
    """The fastest engine of this processor."""
    return GmpEngine()
