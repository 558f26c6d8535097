"""Paillier keys. The public key is n alone: the base of the randomness follows from it, so that anybody can check it.

p and q are 3 modulo 4 and gcd(p - 1, q - 1) = 2, so that h = -x**2 generates the numbers of Jacobi symbol 1, and
h_s = h**n the n-th residues of these. x is a hash of n: who makes the key cannot choose a base of small order.

Source: Damgård, Jurik and Nielsen 2010, section 4.2.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

from fl_core.crypto import labels
from fl_core.crypto.paillier.bignum import Entropy, common_divisor, from_bytes, integer, inverse, is_prime, power
from fl_core.crypto.paillier.primes import blum_prime
from fl_core.errors import BadKey, CryptoError

KEY_BITS = (2048, 3072, 4096)
"""Sizes for use. Smaller keys exist for known answers and tests; a plan refuses them."""

SMALLEST_KEY_BITS = 16
LARGEST_KEY_BITS = max(KEY_BITS)
_HASH_SLACK_BYTES = 16
_CLOSE_PRIMES_BITS = 2


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A modulus n.

    Raises:
        BadKey: n is even, prime, a square, or of an impossible size.
    """

    n: int
    n_squared: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bits = int(self.n).bit_length()
        if not SMALLEST_KEY_BITS <= bits <= LARGEST_KEY_BITS:
            raise BadKey(
                "a Paillier modulus has an impossible size",
                expected=f"{SMALLEST_KEY_BITS} to {LARGEST_KEY_BITS} bits",
                got=bits,
            )
        n = integer(self.n)
        if n % 2 == 0 or is_prime(n):
            raise BadKey("a Paillier modulus is no product of two odd primes", expected="an odd composite number")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "n_squared", n * n)

    @property
    def bits(self) -> int:
        """Bits of the modulus."""
        return int(self.n).bit_length()

    @property
    def modulus_bytes(self) -> int:
        """Bytes of a plaintext on the wire."""
        return (self.bits + 7) // 8

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of a ciphertext on the wire: a number below n**2, big-endian."""
        return 2 * self.modulus_bytes

    @property
    def randomness_bits(self) -> int:
        """Bits of the exponent of one encryption: half of those of n, over their full range."""
        return (self.bits + 1) // 2

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that stand for the key."""
        return labels.digest_fields(labels.PAILLIER_KEY, self.to_bytes())

    def to_bytes(self) -> bytes:
        """n, big-endian."""
        return int(self.n).to_bytes(self.modulus_bytes, "big")

    @classmethod
    def from_bytes(cls, data: bytes) -> "PublicKey":
        """Read what `to_bytes` wrote.

        Raises:
            BadKey: the bytes are no modulus, or have zeros in front.
        """
        if not 0 < len(data) <= LARGEST_KEY_BITS // 8 or data[0] == 0:
            raise BadKey(
                "a Paillier modulus has the wrong length",
                expected=f"1 to {LARGEST_KEY_BITS // 8} bytes without zeros in front",
                got=f"{len(data)} bytes",
            )
        return cls(from_bytes(data))


@lru_cache(maxsize=16)
def randomness_base(public_key: PublicKey) -> int:
    """h_s = (-x**2)**n mod n**2, where x is a hash of n.

    Raises:
        BadKey: x shares a divisor with n, which no honest key has.
    """
    n = public_key.n
    wanted = public_key.modulus_bytes + _HASH_SLACK_BYTES
    hashed = hashlib.shake_256(labels.encode_fields(labels.PAILLIER_BASE, public_key.to_bytes())).digest(wanted)
    x = from_bytes(hashed) % n
    if common_divisor(x, n) != 1:
        raise BadKey("a Paillier modulus has a small divisor", expected="a product of two large primes")
    return power(n - x * x % n, n, public_key.n_squared)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """The two primes, with what decryption computes from them once. Never shown.

    Args:
        p: a prime.
        q: another prime, of the same size.

    Raises:
        CryptoError: they are no primes that can make a key together.
    """

    p: int = field(repr=False)
    q: int = field(repr=False)
    public_key: PublicKey = field(init=False)
    halves: "tuple[PrivateHalf, PrivateHalf]" = field(init=False, repr=False, compare=False)
    q_inverse: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        p, q = integer(self.p), integer(self.q)
        if p == q or not (is_prime(p) and is_prime(q)):
            raise CryptoError("a Paillier key needs two different primes")
        if common_divisor(p * q, (p - 1) * (q - 1)) != 1:
            raise CryptoError("these primes make no Paillier key", expected="gcd(n, (p - 1)(q - 1)) = 1")
        object.__setattr__(self, "p", p)
        object.__setattr__(self, "q", q)
        object.__setattr__(self, "public_key", PublicKey(p * q))
        object.__setattr__(self, "halves", (PrivateHalf.of(p, p * q), PrivateHalf.of(q, p * q)))
        object.__setattr__(self, "q_inverse", inverse(q, p))

    def check_for_use(self) -> None:
        """Check what the randomness of encryption relies on; keys of others that only decrypt need not have it.

        Raises:
            CryptoError: the primes are not 3 modulo 4, of different sizes, or gcd(p - 1, q - 1) is not 2.
        """
        if not (self.p % 4 == 3 and self.q % 4 == 3 and common_divisor(self.p - 1, self.q - 1) == 2):
            raise CryptoError("these primes do not suit our randomness", expected="3 modulo 4, gcd(p - 1, q - 1) = 2")
        if int(self.p).bit_length() != int(self.q).bit_length():
            raise CryptoError("the primes of a key differ in size", expected="the same number of bits")


@dataclass(frozen=True, slots=True)
class PrivateHalf:
    """One prime and what decryption modulo its square needs."""

    prime: int = field(repr=False)
    square: int = field(repr=False)
    inverse: int = field(repr=False)

    @classmethod
    def of(cls, prime: int, n: int) -> "PrivateHalf":
        """`inverse` is that of L((n + 1)**(prime - 1) mod prime**2), by which a plaintext is multiplied else."""
        square = prime * prime
        grown = (1 + n * (prime - 1)) % square
        return cls(prime, square, inverse((grown - 1) // prime, prime))


def generate_private_key(bits: int, entropy: Entropy) -> PrivateKey:
    """A new key whose modulus has exactly `bits` bits.

    Args:
        bits: one of `KEY_BITS`; less for tests, even.
        entropy: source of uniform bytes.

    Raises:
        CryptoError: the size is odd or out of range.
    """
    if bits % 2 or not 2 * SMALLEST_KEY_BITS <= bits <= LARGEST_KEY_BITS:
        raise CryptoError(
            "the size of a Paillier key is out of range",
            expected=f"even, {2 * SMALLEST_KEY_BITS} to {LARGEST_KEY_BITS} bits",
            got=bits,
        )
    while True:
        p, q = blum_prime(bits // 2, entropy), blum_prime(bits // 2, entropy)
        is_close = abs(p - q).bit_length() < bits // 2 - _CLOSE_PRIMES_BITS
        if p != q and not is_close and common_divisor(p - 1, q - 1) == 2:
            return PrivateKey(p, q)
