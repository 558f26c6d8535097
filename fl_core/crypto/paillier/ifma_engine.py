"""Powers eight at once: numbers go into the limbs of `kernels_ifma` and come back. The GIL is released meanwhile.

Importing this module imports numba.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fl_core.crypto.paillier import kernels_ifma as kernels
from fl_core.crypto.paillier.bignum import integer, inverse, join_slots, split_slots
from fl_core.crypto.paillier.keys import PublicKey, randomness_base
from fl_core.crypto.paillier.powers import RandomnessTable, Residue, window_for

Words = npt.NDArray[np.uint64]

SECRET_WINDOW = 5
_SLACK_BITS = 8
"""Bits by which R is longer than the modulus: the bounds of the kernels need them."""


@dataclass(frozen=True, slots=True)
class SquareModulus:
    """A number m whose square is computed with, in the form of the kernels.

    Args:
        modulus: m, odd.
    """

    modulus: int = field(repr=False)
    limbs: int = field(init=False)
    constants: Words = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        m = integer(self.modulus)
        limbs = -(-(int(m).bit_length() + _SLACK_BITS) // kernels.LIMB_BITS)
        base = 1 << kernels.LIMB_BITS
        ones = sum(base << (kernels.LIMB_BITS * place) for place in range(limbs))
        rows = [_limbs_of(number, limbs) for number in (m, -ones % m, 1, -inverse(m, base) % base)]
        # The rest lifted by 2**52 in each limb is the multiple of m that is just above `ones`.
        rows[kernels.MULTIPLE] = rows[kernels.MULTIPLE] + np.uint64(base)
        object.__setattr__(self, "modulus", m)
        object.__setattr__(self, "limbs", limbs)
        object.__setattr__(self, "constants", np.repeat(np.stack(rows)[:, :, None], kernels.LANES, axis=2))

    def enter(self, numbers: Iterable[int]) -> list[Words]:
        """(2 limbs,) for each number: its digits in Montgomery form."""
        square = self.modulus * self.modulus
        shift = kernels.LIMB_BITS * self.limbs
        moved = ((integer(number) << shift) % square for number in numbers)
        pairs = (divmod(number, self.modulus) for number in moved)
        return [np.concatenate([_limbs_of(low, self.limbs), _limbs_of(high, self.limbs)]) for high, low in pairs]

    def leave(self, digits: Words) -> Residue:
        """The digits below m of what a kernel wrote."""
        low, high = (join_slots(part.tolist(), kernels.LIMB_BITS) for part in digits.reshape(2, self.limbs))
        carry, low = divmod(low, self.modulus)
        return low, (high + carry) % self.modulus


@dataclass(frozen=True, slots=True)
class IfmaEngine:
    """Eight at once."""

    name: str = "ifma"

    def randomness_table(self, public_key: PublicKey, uses: int) -> RandomnessTable:
        # Eight multiplications cost what one does: a table pays eight times as early.
        return _table(public_key, window_for(public_key.randomness_bits, uses))

    def secret_powers(self, bases: Sequence[int], exponent: int, exponent_bits: int, modulus: int) -> list[int]:
        if not bases:
            return []
        form = SquareModulus(modulus)
        one, entered = form.enter([1])[0], _filled_up(form.enter(bases))
        places = -(-exponent_bits // SECRET_WINDOW)
        secret = _exponent_bytes([int(exponent).to_bytes(places * SECRET_WINDOW // 8 + 1, "big")])[0]
        out = np.empty_like(entered)
        kernels.secret_powers(form.constants, one, entered, secret, places, SECRET_WINDOW, out)
        residues = (form.leave(row) for row in out[: len(bases)])
        return [low + high * form.modulus for low, high in residues]


@dataclass(frozen=True, slots=True)
class IfmaTable:
    """Powers of h_s for each place of an exponent."""

    modulus: SquareModulus
    width: int
    entries: Words = field(repr=False)

    @classmethod
    def build(cls, public_key: PublicKey, width: int) -> "IfmaTable":
        modulus = SquareModulus(public_key.n)
        places = -(-public_key.randomness_bits // width)
        base, bases = randomness_base(public_key), []
        for _ in range(places):
            bases.append(base)
            base = pow(base, 1 << width, public_key.n_squared)
        one = modulus.enter([1])[0]
        rows = _filled_up(modulus.enter(bases))
        entries = np.empty((len(rows), 1 << width, 2 * modulus.limbs), np.uint64)
        entries[:, 0], entries[:, 1] = one, rows
        kernels.fill_table(modulus.constants, rows, entries)
        return cls(modulus, width, entries[:places])

    def powers(self, exponents: Sequence[bytes]) -> list[Residue]:
        if not exponents:
            return []
        words = _exponent_bytes(exponents)
        out = np.empty((len(words), 2 * self.modulus.limbs), np.uint64)
        kernels.table_powers(self.modulus.constants, self.entries, self.width, words, out)
        return [self.modulus.leave(row) for row in out[: len(exponents)]]


@lru_cache(maxsize=2)
def _table(public_key: PublicKey, width: int) -> IfmaTable:
    return IfmaTable.build(public_key, width)


def _limbs_of(number: int, limbs: int) -> Words:
    row = np.zeros(limbs, np.uint64)
    parts = split_slots(number, kernels.LIMB_BITS)
    row[: len(parts)] = parts
    return row


def _filled_up(rows: list[Words]) -> Words:
    """As one array, whose last group of eight is filled up with copies."""
    spare = -len(rows) % kernels.LANES
    return np.stack(rows + rows[:1] * spare)


def _exponent_bytes(exponents: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Big-endian exponents as little-endian rows with a byte of zeros, in whole groups of eight."""
    rows = -(-len(exponents) // kernels.LANES) * kernels.LANES
    words = np.zeros((rows, len(exponents[0]) + 1), np.uint8)
    joined = np.frombuffer(b"".join(exponents), np.uint8).reshape(len(exponents), -1)
    words[: len(exponents), :-1] = joined[:, ::-1]
    return words
