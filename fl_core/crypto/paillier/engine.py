"""Which code raises numbers to powers: eight at once where the processor can, gmpy2 elsewhere.

The engine is chosen from the processor's flags, and held against gmpy2 before it is used.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from fl_core.crypto.mask_engine import processor_flags
from fl_core.crypto.paillier.bignum import from_bytes, gil_released, integer, power, secret_power
from fl_core.crypto.paillier.keys import PublicKey, randomness_base
from fl_core.crypto.paillier.powers import PowerEngine, RandomnessTable, Residue, window_for
from fl_core.errors import CryptoError

VARIABLE = "TACIT_PAILLIER_ENGINE"
COMPILED_FROM = 1024
"""Numbers from which loading compiled code pays; once it is loaded, it is used for eight or more."""

_LANES = 8
_FLAGS = ("avx512f", "avx512ifma")
_MODULE = "fl_core.crypto.paillier.ifma_engine"


@dataclass(frozen=True, slots=True)
class GmpEngine:
    """One after the other: runs wherever gmpy2 does. The GIL is released meanwhile."""

    name: str = "gmpy2"

    def randomness_table(self, public_key: PublicKey, uses: int) -> RandomnessTable:
        return _gmp_table(public_key, window_for(public_key.randomness_bits, uses))

    @gil_released()
    def secret_powers(self, bases: Sequence[int], exponent: int, exponent_bits: int, modulus: int) -> list[int]:  # noqa: ARG002
        square = integer(modulus) * modulus
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

    @gil_released()
    def powers(self, exponents: Sequence[bytes]) -> list[Residue]:
        return [self._power(from_bytes(exponent)) for exponent in exponents]

    def _power(self, exponent: int) -> Residue:
        modulus, mask, result = self.public_key.n_squared, (1 << self.width) - 1, integer(1)
        for row in self.rows:
            result = result * row[exponent & mask] % modulus
            exponent >>= self.width
        high, low = divmod(result, self.public_key.n)
        return low, high


@lru_cache(maxsize=2)
def _gmp_table(public_key: PublicKey, width: int) -> GmpTable:
    return GmpTable.build(public_key, width)


def supported_engines() -> tuple[str, ...]:
    """Names of the engines that this processor can run, fastest first."""
    flags = processor_flags()
    return ("ifma", "gmpy2") if all(flags.get(flag) for flag in _FLAGS) else ("gmpy2",)


@cache
def load_engine(name: str) -> PowerEngine:
    """Load one engine and hold it against gmpy2.

    Args:
        name: one of `supported_engines`.

    Raises:
        CryptoError: this processor cannot run it, or its results are not those of gmpy2.
    """
    if name == "gmpy2":
        return GmpEngine()
    if name not in supported_engines():
        raise CryptoError("this processor cannot run the Paillier engine", expected=supported_engines(), got=name)
    from fl_core.crypto.paillier.ifma_engine import IfmaEngine

    engine = IfmaEngine()
    check_against_gmpy2(engine)
    return engine


def engine_for(count: int) -> PowerEngine:
    """The engine for so many numbers; `TACIT_PAILLIER_ENGINE` names another one."""
    wanted = os.environ.get(VARIABLE)
    if wanted:
        return load_engine(wanted)
    if count >= COMPILED_FROM or (count >= _LANES and _MODULE in sys.modules):
        return best_engine()
    return load_engine("gmpy2")


def prepare_engine(count: int) -> None:
    """Load compiled code when so many numbers are to come, in parts that would be too small for it."""
    if count >= COMPILED_FROM and not os.environ.get(VARIABLE):
        best_engine()


@cache
def best_engine() -> PowerEngine:
    """The fastest engine of this processor."""
    return load_engine(supported_engines()[0])


def check_against_gmpy2(engine: PowerEngine) -> None:
    """Compare powers of a few numbers of several sizes.

    Raises:
        CryptoError: they differ.
    """
    for bits in (128, 1024, 2048):
        # Numbers with long runs of ones and zeros, where a carry that is lost would show; nothing here is a secret.
        modulus = (1 << bits) - (1 << (bits // 2)) + 105
        bases = [0, 1, 2, modulus - 1, modulus, modulus * modulus - 1, (1 << (2 * bits - 3)) // 3, modulus + 1, 7]
        exponent = (1 << 67) // 5
        expected = [power(base, exponent, modulus * modulus) for base in bases]
        if engine.secret_powers(bases, exponent, 67, modulus) != expected:
            raise CryptoError(
                "the Paillier engine does not give the results of gmpy2",
                expected="equal powers",
                got=engine.name,
                fix=f"set {VARIABLE}=gmpy2 and report the processor",
            )
