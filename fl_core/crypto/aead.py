"""Authenticated encryption under keys that are used once (ChaCha20-Poly1305).

The nonce is fixed at zero. That is right here and only here: every key comes from HKDF over a fresh agreement of one
session, one sender and one recipient, and seals one message. Two messages under one key would break it.

Source: RFC 8439, section 2.8.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fl_core.errors import CryptoError

KEY_BYTES = 32
TAG_BYTES = 16

_NONCE = bytes(12)


def seal(key: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """Encrypt and authenticate the one message of `key`.

    Args:
        key: 32 bytes that seal nothing else, ever.
        plaintext: any length.
        associated_data: authenticated, not encrypted.

    Returns:
        The ciphertext and its tag: the plaintext's length plus 16 bytes.

    Raises:
        CryptoError: the key has the wrong length.
    """
    return _cipher(key).encrypt(_NONCE, plaintext, associated_data)


def open_sealed(key: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
    """Decrypt what `seal` made under the same key and associated data.

    Raises:
        CryptoError: the key has the wrong length, or key, ciphertext and associated data do not belong together.
    """
    if len(ciphertext) < TAG_BYTES:
        raise CryptoError("a sealed message is too short", expected=f">= {TAG_BYTES} bytes", got=len(ciphertext))
    try:
        return _cipher(key).decrypt(_NONCE, ciphertext, associated_data)
    except InvalidTag as error:
        raise CryptoError(
            "a sealed message does not open",
            expected="the ciphertext that was sealed under this key and context",
            got=f"{len(ciphertext)} bytes that fail authentication",
        ) from error


def _cipher(key: bytes) -> ChaCha20Poly1305:
    if len(key) != KEY_BYTES:
        raise CryptoError("a sealing key has the wrong length", expected=f"{KEY_BYTES} bytes", got=f"{len(key)} bytes")
    return ChaCha20Poly1305(key)
