"""Key agreement between two sites (X25519) and the derivation of keys from it (HKDF-SHA256).

Source: RFC 7748, section 5 and 6.1; RFC 5869.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_scalarmult_base

from fl_core.crypto.agreement_engine import engine_for
from fl_core.errors import BadKey, CryptoError

KEY_BYTES = 32
LONGEST_DERIVED_KEY = 255 * 32

_PRIME = 2**255 - 19
# The u-coordinates below the prime whose points have an order that divides 8, on the curve or on its twist. An
# agreement with one of them is all zero, whatever our secret is.
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair, 32 bytes each."""

    secret_key: bytes = field(repr=False)
    public_key: bytes


def generate_key_pair(entropy: Callable[[int], bytes]) -> KeyPair:
    """Draw a key pair from 32 bytes of `entropy`.

    Raises:
        CryptoError: the entropy source gave another number of bytes.
    """
    secret_key = draw_secret(entropy)
    return KeyPair(secret_key, public_key_of(secret_key))


def draw_secret(entropy: Callable[[int], bytes]) -> bytes:
    """Draw 32 secret bytes.

    Raises:
        CryptoError: the entropy source gave another number of bytes.
    """
    secret = entropy(KEY_BYTES)
    if len(secret) != KEY_BYTES:
        raise CryptoError("the entropy source is broken", expected=f"{KEY_BYTES} bytes", got=f"{len(secret)} bytes")
    return secret


def public_key_of(secret_key: bytes) -> bytes:
    """The public key of a secret key, 32 bytes.

    Raises:
        BadKey: the secret key has the wrong length.
    """
    _check_length(secret_key, "secret key")
    return bytes(crypto_scalarmult_base(secret_key))


def check_public_key(public_key: bytes) -> None:
    """Refuse a public key that no honest party sends.

    X25519 itself reads 2**255 + u and u as the same key, and p + u as u. Only the one canonical form passes here, so
    that two keys of different bytes are two different keys.

    Raises:
        BadKey: the length is wrong, the encoding is not canonical, or the point has a low order.
    """
    _check_length(public_key, "public key")
    coordinate = int.from_bytes(public_key, "little")
    if coordinate >= _PRIME:
        raise BadKey(
            "a public key is not canonical",
            expected="a u-coordinate below 2**255 - 19",
            got=public_key.hex(),
            fix="draw a fresh key pair",
        )
    if coordinate in _LOW_ORDER:
        raise BadKey(
            "a public key has a low order",
            expected="a point of prime order",
            got=public_key.hex(),
            fix="draw a fresh key pair",
        )


def agree(our_secret_key: bytes, their_public_key: bytes) -> bytes:
    """The shared secret of two key pairs, 32 bytes. It is no key yet: see `derive_key`.

    Raises:
        BadKey: a key has the wrong length, or the result is all zero, as with every point of low order.
    """
    return agree_many(our_secret_key, [their_public_key])[0]


def agree_many(our_secret_key: bytes, their_public_keys: Sequence[bytes]) -> list[bytes]:
    """The shared secrets of one of our key pairs with each of many others; the same as `agree`, but faster for many.

    Returns:
        32 bytes for each public key, in their order.

    Raises:
        BadKey: as `agree`, for the first key that fails.
    """
    _check_length(our_secret_key, "secret key")
    return agree_each([our_secret_key] * len(their_public_keys), their_public_keys)


def agree_each(secret_keys: Sequence[bytes], public_keys: Sequence[bytes]) -> list[bytes]:
    """The shared secrets of pairs of a secret key and a public key; the same as `agree` of each pair.

    Returns:
        32 bytes for each pair, in their order.

    Raises:
        BadKey: as `agree`, for the first pair that fails.
    """
    for secret_key, public_key in zip(secret_keys, public_keys, strict=True):
        _check_length(secret_key, "secret key")
        _check_length(public_key, "public key")
    secrets = engine_for(len(public_keys)).multiply(secret_keys, public_keys)
    for public_key, shared in zip(public_keys, secrets, strict=True):
        if not any(shared):
            raise _low_order(public_key)
    return secrets


def derive_key(shared_secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """Derive one key for one purpose by HKDF-SHA256.

    Args:
        shared_secret: input keying material, at least one byte.
        salt: the binding of the session.
        info: purpose, direction and parties, as `labels.encode_fields` joins them.
        length: bytes of the key, 1 to 8160.

    Raises:
        CryptoError: the length is out of range or the secret is empty.
    """
    if not shared_secret:
        raise CryptoError("no key can be derived from nothing", expected="at least one byte of secret")
    if not 0 < length <= LONGEST_DERIVED_KEY:
        raise CryptoError("a derived key has an impossible length", expected="1 to 8160 bytes", got=length)
    return HKDF(hashes.SHA256(), length, salt, info).derive(shared_secret)


def _check_length(key: bytes, name: str) -> None:
    if len(key) != KEY_BYTES:
        raise BadKey(f"a {name} has the wrong length", expected=f"{KEY_BYTES} bytes", got=f"{len(key)} bytes")


def _low_order(public_key: bytes) -> BadKey:
    return BadKey(
        "a key agreement is all zero",
        expected="a public key of prime order",
        got=public_key.hex(),
        fix="do not use this key; its owner must draw a fresh pair",
    )
