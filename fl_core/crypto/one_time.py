"""Signatures by a key that is made for one message and thrown away (Ed25519).

Source: RFC 8032.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fl_core.errors import BadSignature

KEY_BYTES = 32
SIGNATURE_BYTES = 64


def verify_key_of(secret_key: bytes) -> bytes:
    """The public key, 32 bytes, of any 32 secret bytes."""
    return Ed25519PrivateKey.from_private_bytes(secret_key).public_key().public_bytes_raw()


def sign_once(secret_key: bytes, message: bytes) -> bytes:
    """Sign a message, 64 bytes; that the key signs no other one is up to its owner."""
    return Ed25519PrivateKey.from_private_bytes(secret_key).sign(message)


def verify_once(verify_key: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature.

    Raises:
        BadSignature: the key is none, or the signature does not verify.
    """
    try:
        Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(
            "a signature does not verify", expected=f"{SIGNATURE_BYTES} bytes by the key that was committed to"
        ) from error
