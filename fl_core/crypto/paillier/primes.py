"""Primes for keys: Blum primes, which are 3 modulo 4, and safe primes, of which (p - 1) / 2 is prime as well.

Candidates are the numbers after a random start. Sieves strike out those with a small divisor, all at once.

Source: Menezes, van Oorschot and Vanstone 1996, Handbook of Applied Cryptography, sections 4.4.1 and 4.6.1.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from fl_core.crypto.paillier.bignum import Entropy, is_prime, passes_quick_test, random_bits
from fl_core.errors import CryptoError

SMALLEST_PRIME_BITS = 16
BLUM_WINDOW, SAFE_WINDOW = 1 << 12, 1 << 17
"""Candidates behind one random start."""

_STEP = 4
_SIEVED_BLUM, _SIEVED_SAFE = 1 << 12, 1 << 18


def blum_prime(bits: int, entropy: Entropy) -> int:
    """A random prime that is 3 modulo 4, of exactly `bits` bits, with its two top bits set.

    Raises:
        CryptoError: there are too few bits.
    """
    _check(bits)
    while True:
        start, places = _survivors(bits, entropy, BLUM_WINDOW, _SIEVED_BLUM, also_half=False)
        for place in places:
            candidate = start + _STEP * int(place)
            if candidate.bit_length() == bits and passes_quick_test(candidate) and is_prime(candidate):
                return candidate


def safe_prime(bits: int, entropy: Entropy) -> int:
    """A random prime p of exactly `bits` bits, with its two top bits set, of which (p - 1) / 2 is prime.

    Raises:
        CryptoError: there are too few bits.
    """
    _check(bits)
    while True:
        start, places = _survivors(bits, entropy, SAFE_WINDOW, _SIEVED_SAFE, also_half=True)
        for place in places:
            candidate = start + _STEP * int(place)
            half = candidate >> 1
            # The half is tested first and cheaply: nearly every candidate ends here.
            is_likely = candidate.bit_length() == bits and passes_quick_test(half) and passes_quick_test(candidate)
            if is_likely and is_prime(half) and is_prime(candidate):
                return candidate


def _check(bits: int) -> None:
    if bits < SMALLEST_PRIME_BITS:
        raise CryptoError("a prime has too few bits", expected=f">= {SMALLEST_PRIME_BITS}", got=bits)


def _survivors(
    bits: int, entropy: Entropy, window: int, bound: int, *, also_half: bool
) -> tuple[int, npt.NDArray[np.int64]]:
    """A random start that is 3 modulo 4, and the places of the candidates start + 4 i that no small prime divides."""
    start = random_bits(bits, entropy) | (3 << (bits - 2)) | 3
    # A small candidate may be one of the sieving primes itself.
    bound = min(bound, 1 << (bits // 2 - 1))
    alive = np.ones(window, np.bool_)
    for prime in _odd_primes(bound):
        # A candidate is divisible where it is 0 modulo the prime; its half is where the candidate is 1.
        residue, quarter = int(start % prime), pow(_STEP, -1, prime)
        alive[-residue * quarter % prime :: prime] = False
        if also_half:
            alive[(1 - residue) * quarter % prime :: prime] = False
    return start, np.flatnonzero(alive)


@cache
def _odd_primes(bound: int) -> tuple[int, ...]:
    sieve = np.ones(bound, np.bool_)
    sieve[:2] = False
    for number in range(2, int(bound**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = False
    return tuple(int(prime) for prime in np.flatnonzero(sieve) if prime > 2)
