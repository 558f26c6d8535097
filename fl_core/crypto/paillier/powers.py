"""The ports of the code that raises numbers to powers, and how wide its windows are."""

from collections.abc import Sequence
from typing import Protocol

from fl_core.crypto.paillier.keys import PublicKey

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

    def secret_powers(self, bases: Sequence[int], exponent: int, exponent_bits: int, modulus: int) -> list[int]:
        """base**exponent modulo modulus**2 in a time that depends on the sizes alone.

        Args:
            bases: each from 0 to modulus**2 - 1.
            exponent: secret, > 0.
            exponent_bits: what everybody knows of its length.
            modulus: odd.
        """


def window_for(exponent_bits: int, uses: int) -> int:
    """The window width, 1 to 8 bits, that needs the fewest multiplications for the table and so many powers."""
    costs = {width: -(-exponent_bits // width) * ((1 << width) - 1 + uses) for width in range(1, WIDEST_WINDOW + 1)}
    return min(costs, key=lambda width: costs[width])
