"""Shared custody: a dealer splits the private key, and any `threshold` of `holders` decrypt together, fewer nothing.

The primes are safe, p = 2 p' + 1 and q = 2 q' + 1, so that squares modulo n**2 have the order n m, m = p' q', without
small divisors. The secret is d with d = 0 modulo m and d = 1 modulo n, shared by a polynomial modulo n m; delta is the
factorial of `holders`, which keeps the Lagrange coefficients whole. Holders have the indices 1 to `holders`.

Source: Damgård and Jurik 2001, A Generalisation, a Simplification and Some Applications of Paillier's Probabilistic
Public-Key System, section 4.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import factorial

from fl_core.crypto.paillier.bignum import Entropy, common_divisor, gil_released, integer, inverse, power, random_below
from fl_core.crypto.paillier.ciphertexts import check_ciphertexts
from fl_core.crypto.paillier.engine import engine_for
from fl_core.crypto.paillier.keys import PublicKey
from fl_core.crypto.paillier.primes import safe_prime
from fl_core.errors import BadShares, CryptoError, NotEnough

MOST_HOLDERS = 16


@dataclass(frozen=True, slots=True)
class SharedKey:
    """What everybody knows of a key that is shared out.

    Args:
        public_key: under which sites encrypt.
        threshold: holders that decrypt together, at least 2.
        holders: how many there are, at most 16.
        base: v, a square modulo n**2.
        verification: v**(delta s_i) for each holder's share s_i.

    Raises:
        CryptoError: the numbers are out of range or do not fit together.
    """

    public_key: PublicKey
    threshold: int
    holders: int
    base: int = field(repr=False)
    verification: tuple[int, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not 2 <= self.threshold <= self.holders <= MOST_HOLDERS:
            raise CryptoError(
                "the threshold of a shared key is out of range",
                expected=f"2 <= threshold <= holders <= {MOST_HOLDERS}",
                got=f"{self.threshold} of {self.holders}",
            )
        if len(self.verification) != self.holders:
            raise CryptoError("a shared key needs one verification key for each holder", got=len(self.verification))
        check_ciphertexts(self.public_key, [self.base, *self.verification])

    @property
    def delta(self) -> int:
        """The factorial of the number of holders."""
        return factorial(self.holders)

    @property
    def share_bits(self) -> int:
        """Bits of a share, at most."""
        return 2 * self.public_key.bits

    @property
    def exponent_bits(self) -> int:
        """Bits of 2 delta s_i, at most: what everybody may know of the secret exponent."""
        return self.share_bits + (2 * self.delta).bit_length()


@dataclass(frozen=True, slots=True)
class KeyShare:
    """One holder's share. Never shown.

    Args:
        index: the holder, from 1.
        secret: s_i.
    """

    index: int
    secret: int = field(repr=False)


def deal(p: int, q: int, threshold: int, holders: int, entropy: Entropy) -> tuple[SharedKey, list[KeyShare]]:
    """Split a key of two safe primes. The dealer forgets primes and polynomial when this returns.

    Args:
        p: a safe prime.
        q: another one.
        threshold: holders that decrypt together.
        holders: how many there are.
        entropy: source of uniform bytes.

    Returns:
        What everybody may know, and the shares in the order of their indices.

    Raises:
        CryptoError: the numbers are out of range, or the primes make no key.
    """
    p, q = integer(p), integer(q)
    n, m = p * q, (p >> 1) * (q >> 1)
    if p == q or common_divisor(n, m) != 1:
        raise CryptoError("these primes make no shared key", expected="two different safe primes")
    order = n * m
    # d = 0 modulo m and 1 modulo n.
    secret = m * inverse(m, n) % order
    coefficients = [secret, *(random_below(order, entropy) for _ in range(threshold - 1))]
    shares = [KeyShare(index, _evaluate(coefficients, index, order)) for index in range(1, holders + 1)]
    square = n * n
    root = random_below(n, entropy)
    base = power(root, 4, square)
    delta = factorial(holders)
    verification = tuple(power(base, delta * share.secret, square) for share in shares)
    return SharedKey(PublicKey(n), threshold, holders, base, verification), shares


def generate_shared_key(bits: int, threshold: int, holders: int, entropy: Entropy) -> tuple[SharedKey, list[KeyShare]]:
    """Make safe primes and deal. Takes a minute or so at 2048 bits.

    Raises:
        CryptoError: the numbers are out of range.
    """
    while True:
        p, q = safe_prime(bits // 2, entropy), safe_prime(bits // 2, entropy)
        if p != q:
            return deal(p, q, threshold, holders, entropy)


def decrypt_partially(key: SharedKey, share: KeyShare, ciphertexts: Sequence[int]) -> list[int]:
    """c**(2 delta s_i) for each ciphertext, in a time that does not depend on the share.

    Raises:
        CryptoError: a number is no ciphertext.
    """
    check_ciphertexts(key.public_key, ciphertexts)
    exponent = 2 * key.delta * share.secret
    return engine_for(len(ciphertexts)).secret_powers(ciphertexts, exponent, key.exponent_bits, key.public_key.n)


@gil_released()
def combine_partials(key: SharedKey, partials: Mapping[int, Sequence[int]]) -> list[int]:
    """The plaintexts, from what `threshold` holders or more computed for the same ciphertexts.

    Whether each of them computed what it should is for `threshold_proof` to say; here a wrong one is noticed as far as
    the result is no power of n + 1.

    Args:
        key: what everybody knows.
        partials: by index of the holder, one number for each ciphertext.

    Raises:
        NotEnough: there are fewer holders than the threshold.
        BadShares: they differ in length, name no holder, or do not fit together.
    """
    if len(partials) < key.threshold:
        raise NotEnough("too few holders decrypted", expected=f">= {key.threshold}", got=len(partials))
    if len({len(part) for part in partials.values()}) != 1 or not set(partials) <= set(range(1, key.holders + 1)):
        raise BadShares("partial decryptions do not fit together", expected="one of each ciphertext by known holders")
    n, square = key.public_key.n, key.public_key.n_squared
    chosen = sorted(partials)[: key.threshold]
    exponents = [2 * _coefficient(key.delta, index, chosen) for index in chosen]
    scale = inverse(4 * key.delta**2, n)
    plaintexts = []
    for column in zip(*(partials[index] for index in chosen), strict=True):
        combined = integer(1)
        for part, exponent in zip(column, exponents, strict=True):
            combined = combined * power(part, exponent, square) % square
        if combined % n != 1:
            raise BadShares(
                "partial decryptions do not fit together",
                expected="powers of the same ciphertext by shares of one key",
                fix="ask other decryptors",
            )
        plaintexts.append((combined - 1) // n * scale % n)
    return plaintexts


def _evaluate(coefficients: Sequence[int], at: int, modulus: int) -> int:
    value = integer(0)
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % modulus
    return value


def _coefficient(delta: int, index: int, chosen: Sequence[int]) -> int:
    """delta times the Lagrange coefficient of `index` at zero: a whole number."""
    numerator, denominator = delta, 1
    for other in chosen:
        if other != index:
            numerator *= -other
            denominator *= index - other
    return numerator // denominator
