"""Decryption modulo p**2 and q**2, put together by the Chinese remainder theorem.

Source: Paillier 1999, section 7.
"""

from collections.abc import Sequence

from fl_core.crypto.paillier.ciphertexts import check_ciphertexts
from fl_core.crypto.paillier.engine import engine_for
from fl_core.crypto.paillier.keys import PrivateHalf, PrivateKey


def decrypt(private_key: PrivateKey, ciphertexts: Sequence[int]) -> list[int]:
    """Decrypt ciphertexts to numbers from 0 to n - 1.

    The time depends on the sizes and the number of ciphertexts; the secret exponents p - 1 and q - 1 do not show in it.

    Raises:
        CryptoError: a number is no ciphertext; the message names its place.
    """
    check_ciphertexts(private_key.public_key, ciphertexts)
    modulo_p, modulo_q = (_decrypt_half(half, ciphertexts) for half in private_key.halves)
    p, q, q_inverse = private_key.p, private_key.q, private_key.q_inverse
    return [at_q + q * ((at_p - at_q) * q_inverse % p) for at_p, at_q in zip(modulo_p, modulo_q, strict=True)]


def signed(private_key: PrivateKey, plaintext: int) -> int:
    """A plaintext as `phe` and others read it: the upper half of the numbers below n stands for negative ones."""
    n = private_key.public_key.n
    return plaintext - n if plaintext > n // 2 else plaintext


def _decrypt_half(half: PrivateHalf, ciphertexts: Sequence[int]) -> list[int]:
    reduced = [ciphertext % half.square for ciphertext in ciphertexts]
    powers = engine_for(len(reduced)).secret_powers(reduced, half.prime - 1, int(half.prime).bit_length(), half.prime)
    return [(power - 1) // half.prime * half.inverse % half.prime for power in powers]
