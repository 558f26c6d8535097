"""One-time pads modulo n: each plaintext of a site is moved by a uniform number before it is encrypted.

Only who holds the site's seed can take the pad away again, so a ciphertext that is decrypted alone is uniform noise.
A pad takes no room in the slots, because it may wrap around n.

Source: NIST SP 800-38A, section 6.5 (AES-256-CTR); the counter starts at zero, a seed makes the pads of one vector.
"""

from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_core.crypto.paillier.bignum import from_bytes
from fl_core.crypto.paillier.keys import PublicKey
from fl_core.errors import CryptoError

SEED_BYTES = 32
_BLOCK_BYTES = 16
_SLACK_BYTES = 16
"""Bytes of keystream beyond those of n: what a pad lacks to be exactly uniform is below 2**-128."""


def pads(seed: bytes, public_key: PublicKey, first: int, count: int) -> list[int]:
    """The pads of plaintexts `first` to `first + count - 1`, each from 0 to n - 1.

    Args:
        seed: 32 bytes that serve one vector of one site.
        public_key: the key that the plaintexts are for.
        first: place of the first plaintext in the vector.
        count: how many.

    Raises:
        CryptoError: the seed has the wrong length or a place is negative.
    """
    if len(seed) != SEED_BYTES:
        raise CryptoError("the seed of a pad has the wrong length", expected=f"{SEED_BYTES} bytes", got=len(seed))
    if first < 0 or count < 0:
        raise CryptoError("a pad has no places before its first", expected=">= 0", got=f"{first} and {count}")
    blocks = -(-(public_key.modulus_bytes + _SLACK_BYTES) // _BLOCK_BYTES)
    width = blocks * _BLOCK_BYTES
    counter = (first * blocks).to_bytes(_BLOCK_BYTES, "big")
    stream = Cipher(algorithms.AES256(seed), modes.CTR(counter)).encryptor().update(bytes(width * count))
    return [from_bytes(stream[at : at + width]) % public_key.n for at in range(0, len(stream), width)]


def add_pads(plaintexts: Sequence[int], pad: Sequence[int], n: int) -> list[int]:
    """Move plaintexts up, modulo n."""
    return [(plaintext + by) % n for plaintext, by in zip(plaintexts, pad, strict=True)]


def subtract_pads(plaintexts: Sequence[int], pad: Sequence[int], n: int) -> list[int]:
    """Move plaintexts down, modulo n."""
    return [(plaintext - by) % n for plaintext, by in zip(plaintexts, pad, strict=True)]
