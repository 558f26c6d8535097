"""Private keys at rest: JSON in which only the modulus is readable, the primes are sealed under a secret of the owner.

The secret is a passphrase, stretched by scrypt, or the bytes of a key file, which have full entropy.

Source: RFC 7914 (scrypt), RFC 5869 (HKDF), RFC 8439 (ChaCha20-Poly1305). The salt is fresh for each file, so that its
key seals one message.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fl_core.crypto import labels
from fl_core.crypto.aead import KEY_BYTES, open_sealed, seal
from fl_core.crypto.agreement import derive_key
from fl_core.crypto.paillier.bignum import Entropy, from_bytes
from fl_core.crypto.paillier.keys import PrivateKey
from fl_core.errors import ConfigError, CryptoError

FORMAT = "tacit-paillier-key/1"
SALT_BYTES = 16
UNLOCK_BYTES = 32
"""Bytes of a key file."""

_SCRYPT_COST, _SCRYPT_BLOCK, _SCRYPT_PARALLEL = 1 << 15, 8, 1
_LONGEST_FILE = 16_384


@dataclass(frozen=True, slots=True)
class UnlockSecret:
    """What opens a private key: a passphrase, or the bytes of a key file.

    Raises:
        ConfigError: a passphrase is empty or a key file has not 32 bytes.
    """

    secret: bytes = field(repr=False)
    is_passphrase: bool

    def __post_init__(self) -> None:
        if self.is_passphrase and not self.secret:
            raise ConfigError("the passphrase of the Paillier key is empty", expected="a passphrase")
        if not self.is_passphrase and len(self.secret) != UNLOCK_BYTES:
            raise ConfigError(
                "the key file of the Paillier key has the wrong length",
                expected=f"{UNLOCK_BYTES} bytes",
                got=len(self.secret),
            )

    @property
    def method(self) -> str:
        """Which derivation the file names."""
        return "scrypt" if self.is_passphrase else "hkdf"

    def derive(self, salt: bytes) -> bytes:
        """The key of one file."""
        if self.is_passphrase:
            return Scrypt(salt, KEY_BYTES, _SCRYPT_COST, _SCRYPT_BLOCK, _SCRYPT_PARALLEL).derive(self.secret)
        return derive_key(self.secret, salt=salt, info=labels.encode_fields(labels.PAILLIER_KEY_FILE), length=KEY_BYTES)


def seal_secret(kind: str, public: dict[str, Any], secret: bytes, unlock: UnlockSecret, entropy: Entropy) -> str:
    """A key file: `public` in the clear and authenticated, `secret` sealed."""
    salt = entropy(SALT_BYTES)
    content = {"format": kind, **public, "method": unlock.method, "salt": salt.hex()}
    sealed = seal(unlock.derive(salt), secret, _canonical(content))
    return json.dumps({**content, "sealed": sealed.hex()}, indent=2) + "\n"


def open_secret(kind: str, text: str, unlock: UnlockSecret) -> tuple[dict[str, Any], bytes]:
    """The public part and the secret of a key file.

    Raises:
        ConfigError: the file is none of this kind, or passphrase or key file do not open it.
    """
    content = _read(kind, text)
    if content["method"] != unlock.method:
        wanted = "a passphrase" if content["method"] == "scrypt" else "a key file"
        raise ConfigError("the key was sealed in another way", expected=wanted, got=f"a secret for {unlock.method}")
    sealed = content.pop("sealed")
    try:
        return content, open_sealed(
            unlock.derive(bytes.fromhex(content["salt"])), bytes.fromhex(sealed), _canonical(content)
        )
    except (CryptoError, ValueError) as error:
        raise ConfigError(
            "the key cannot be opened",
            expected="the passphrase or key file that it was sealed under, and an unchanged file",
            fix="check the passphrase; restore the file from its backup",
        ) from error


def seal_private_key(private_key: PrivateKey, unlock: UnlockSecret, entropy: Entropy) -> str:
    """The content of a key file.

    Args:
        private_key: what to keep.
        unlock: what opens it again.
        entropy: source of uniform bytes.
    """
    half = private_key.public_key.modulus_bytes
    primes = b"".join(int(prime).to_bytes(half, "big") for prime in (private_key.p, private_key.q))
    return seal_secret(FORMAT, {"modulus": private_key.public_key.to_bytes().hex()}, primes, unlock, entropy)


def open_private_key(text: str, unlock: UnlockSecret) -> PrivateKey:
    """The key of a file that `seal_private_key` made.

    Raises:
        ConfigError: the file is none, or passphrase or key file do not open it.
    """
    content, primes = open_secret(FORMAT, text, unlock)
    half = len(primes) // 2
    private_key = PrivateKey(from_bytes(primes[:half]), from_bytes(primes[half:]))
    private_key.check_for_use()
    if private_key.public_key.to_bytes().hex() != content["modulus"]:
        raise ConfigError("the key file holds another key than it says")
    return private_key


def _read(kind: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text) if len(text) <= _LONGEST_FILE else None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != kind:
        raise ConfigError("this is no key file", expected=f"JSON with format {kind!r}")
    if not all(isinstance(content.get(name), str) for name in ("method", "salt", "sealed")):
        raise ConfigError("a key file lacks a part", expected="method, salt and sealed")
    return content


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
