"""Large integers, by gmpy2. What leaves here is typed `int` and is as fast as gmpy2 makes it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from fl_core.errors import ConfigError

try:
    import gmpy2
except ImportError as error:
    raise ConfigError(
        "Paillier encryption needs the package gmpy2",
        expected="gmpy2 2.2 or newer",
        fix="pip install 'tacit[paillier]'",
    ) from error

Entropy = Callable[[int], bytes]
"""Gives that many bytes: `os.urandom` in a site, a seeded generator in a simulation."""

MILLER_RABIN_ROUNDS = 40


@contextmanager
def gil_released() -> Iterator[None]:
    """Let other threads run during the arithmetic of the block, or of the function that this decorates.

    gmpy2 keeps the GIL unless the context says otherwise, and a context is one thread's own. Only for long numbers: to
    give the GIL up and take it again costs about as much as a product of 1024 bits.
    """
    with gmpy2.context(gmpy2.get_context(), allow_release_gil=True):
        yield


def integer(value: int) -> int:
    """The same number in the form in which arithmetic is fast."""
    converted: int = gmpy2.mpz(value)
    return converted


def from_bytes(data: bytes) -> int:
    """A number from its big-endian bytes."""
    number: int = gmpy2.mpz.from_bytes(data, "big")
    return number


def power(base: int, exponent: int, modulus: int) -> int:
    """base**exponent mod modulus, for exponents that are no secret. A negative exponent inverts."""
    result: int = gmpy2.powmod(base, exponent, modulus)
    return result


def secret_power(base: int, exponent: int, modulus: int) -> int:
    """base**exponent mod modulus in a time that does not depend on the exponent, > 0; the modulus is odd."""
    result: int = gmpy2.powmod_sec(base, exponent, modulus)
    return result


def inverse(value: int, modulus: int) -> int:
    """The inverse modulo `modulus`; the caller knows that there is one."""
    result: int = gmpy2.invert(value, modulus)
    return result


def common_divisor(left: int, right: int) -> int:
    """The greatest common divisor."""
    result: int = gmpy2.gcd(left, right)
    return result


def is_prime(value: int) -> bool:
    """Whether a number is prime: Baillie-PSW and random rounds of Miller-Rabin."""
    return bool(gmpy2.is_prime(value, MILLER_RABIN_ROUNDS))


def passes_quick_test(value: int) -> bool:
    """Whether a number may be prime: one round of Miller-Rabin to base 2, which few composites pass."""
    return bool(gmpy2.is_strong_prp(value, 2))


def join_slots(values: Sequence[int], bits: int) -> int:
    """One number of many, each below 2**bits; the first has the lowest bits."""
    joined: int = gmpy2.pack(list(values), bits)
    return joined


def split_slots(value: int, bits: int) -> list[int]:
    """What `join_slots` joined, without the zeros at the end."""
    parts: list[int] = gmpy2.unpack(gmpy2.mpz(value), bits)
    return parts


def product(values: Iterable[int], modulus: int) -> int:
    """The product modulo `modulus`, 1 of nothing."""
    result = integer(1)
    for value in values:
        result = result * value % modulus
    return result


def random_below(bound: int, entropy: Entropy) -> int:
    """A uniform number from 0 to bound - 1."""
    length = (int(bound).bit_length() + 7) // 8
    spare = 8 * length - int(bound).bit_length()
    while True:
        # At least every second draw is below the bound.
        drawn = from_bytes(entropy(length)) >> spare
        if drawn < bound:
            return drawn


def random_bits(bits: int, entropy: Entropy) -> int:
    """A uniform number from 0 to 2**bits - 1."""
    length = (bits + 7) // 8
    return from_bytes(entropy(length)) >> (8 * length - bits)
