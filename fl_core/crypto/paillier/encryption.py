"""Encryption under a public key: c = (1 + m n) h_s**r mod n**2 with a fresh r of |n|/2 bits, over their full range.

A site never has p and q, so nothing is computed modulo their squares here.

Source: Damgård, Jurik and Nielsen 2010, section 4.2.
"""

from collections.abc import Sequence

from fl_core.crypto.paillier.bignum import Entropy, random_bits
from fl_core.crypto.paillier.ciphertexts import check_plaintexts
from fl_core.crypto.paillier.engine import engine_for
from fl_core.crypto.paillier.keys import PublicKey
from fl_core.crypto.paillier.powers import RandomnessTable, Residue


class Encryptor:
    """Encrypts plaintexts under one key, with a table of powers that is made once.

    Args:
        public_key: the key, checked by the caller against what it expects.
        uses: about how many encryptions are to come; it decides how large the table is.
    """

    __slots__ = ("_table", "public_key")

    def __init__(self, public_key: PublicKey, uses: int) -> None:
        self.public_key = public_key
        self._table: RandomnessTable = engine_for(uses).randomness_table(public_key, uses)

    def encrypt(self, plaintexts: Sequence[int], entropy: Entropy) -> list[int]:
        """Encrypt numbers.

        Args:
            plaintexts: each from 0 to n - 1.
            entropy: source of uniform bytes, of which each encryption takes |n|/2 bits.

        Raises:
            CryptoError: a plaintext is out of range.
        """
        check_plaintexts(self.public_key, plaintexts)
        residues = self._table.powers([self._exponent(entropy) for _ in plaintexts])
        return [
            encrypt_with(self.public_key, plaintext, residue)
            for plaintext, residue in zip(plaintexts, residues, strict=True)
        ]

    def rerandomise(self, ciphertexts: Sequence[int], entropy: Entropy) -> list[int]:
        """Other ciphertexts of the same plaintexts, which nobody without the private key can tell from fresh ones."""
        zeros = self.encrypt([0] * len(ciphertexts), entropy)
        return [old * zero % self.public_key.n_squared for old, zero in zip(ciphertexts, zeros, strict=True)]

    def _exponent(self, entropy: Entropy) -> bytes:
        bits = self.public_key.randomness_bits
        return int(random_bits(bits, entropy)).to_bytes((bits + 7) // 8, "big")


def encrypt_with(public_key: PublicKey, plaintext: int, residue: Residue) -> int:
    """(1 + m n) (a + b n) mod n**2, which is a + n ((b + a m) mod n)."""
    low, high = residue
    return low + public_key.n * ((high + low * plaintext) % public_key.n)
