"""What can be done with ciphertexts without any key: check them, add them, write and read them."""

from collections.abc import Sequence

from fl_core.crypto.paillier.bignum import common_divisor, from_bytes, gil_released, product
from fl_core.crypto.paillier.keys import PublicKey
from fl_core.errors import CryptoError


@gil_released()
def check_ciphertexts(public_key: PublicKey, ciphertexts: Sequence[int]) -> None:
    """Check that each number is invertible modulo n**2: above 0, below n**2, and without a divisor of n.

    Raises:
        CryptoError: one is not; the message names its place.
    """
    for place, ciphertext in enumerate(ciphertexts):
        if not 0 < ciphertext < public_key.n_squared:
            raise CryptoError(
                "a Paillier ciphertext is out of range", expected="0 < c < n**2", got=f"number {place} of the message"
            )
    # A product has a divisor of n exactly when one of its factors has.
    if ciphertexts and common_divisor(product(ciphertexts, public_key.n), public_key.n) != 1:
        raise CryptoError("a Paillier ciphertext shares a divisor with n", expected="gcd(c, n) = 1 for each")


@gil_released()
def add_ciphertexts(public_key: PublicKey, left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Ciphertexts of the sums of the plaintexts modulo n.

    Raises:
        CryptoError: there are not as many on both sides.
    """
    if len(left) != len(right):
        raise CryptoError("ciphertexts to add differ in number", expected=len(left), got=len(right))
    return [a * b % public_key.n_squared for a, b in zip(left, right, strict=True)]


def write_ciphertexts(public_key: PublicKey, ciphertexts: Sequence[int]) -> bytes:
    """Each as a big-endian number of `ciphertext_bytes`, one after the other."""
    return b"".join(ciphertext.to_bytes(public_key.ciphertext_bytes, "big") for ciphertext in ciphertexts)


def read_ciphertexts(public_key: PublicKey, data: bytes | bytearray | memoryview) -> list[int]:
    """Read what `write_ciphertexts` wrote, and check each.

    Raises:
        CryptoError: the bytes are no whole number of ciphertexts, or one of them is none.
    """
    ciphertexts = read_checked_ciphertexts(public_key, data)
    check_ciphertexts(public_key, ciphertexts)
    return ciphertexts


def read_checked_ciphertexts(public_key: PublicKey, data: bytes | bytearray | memoryview) -> list[int]:
    """Read bytes that `read_ciphertexts` has read before, without checking the numbers again.

    Raises:
        CryptoError: the bytes are no whole number of ciphertexts.
    """
    return _read_numbers(data, public_key.ciphertext_bytes)


def write_plaintexts(public_key: PublicKey, plaintexts: Sequence[int]) -> bytes:
    """Each as a big-endian number of `modulus_bytes`, one after the other."""
    return b"".join(plaintext.to_bytes(public_key.modulus_bytes, "big") for plaintext in plaintexts)


def read_plaintexts(public_key: PublicKey, data: bytes | bytearray | memoryview) -> list[int]:
    """Read what `write_plaintexts` wrote.

    Raises:
        CryptoError: the bytes are no whole number of plaintexts, or one is not below n.
    """
    plaintexts = _read_numbers(data, public_key.modulus_bytes)
    check_plaintexts(public_key, plaintexts)
    return plaintexts


def check_plaintexts(public_key: PublicKey, plaintexts: Sequence[int]) -> None:
    """Check that each number is from 0 to n - 1.

    Raises:
        CryptoError: one is not; the message names its place.
    """
    for place, plaintext in enumerate(plaintexts):
        if not 0 <= plaintext < public_key.n:
            raise CryptoError("a Paillier plaintext is out of range", expected="0 <= m < n", got=f"number {place}")


def _read_numbers(data: bytes | bytearray | memoryview, width: int) -> list[int]:
    if len(data) % width:
        raise CryptoError("numbers are cut off", expected=f"a multiple of {width} bytes", got=len(data))
    view = memoryview(data)
    return [from_bytes(bytes(view[at : at + width])) for at in range(0, len(view), width)]
