"""What a plan says about Paillier encryption. Reading it needs no gmpy2; taking part does."""

from dataclasses import dataclass
from enum import StrEnum

from fl_core.crypto import labels
from fl_core.crypto.sizes import LONGEST_SIGNATURE
from fl_core.errors import PlanError

MAX_MODULUS_BYTES = 512
MAX_DEALING_BYTES = 1 << 16


class Custody(StrEnum):
    """Who can decrypt the sum of an encrypted attempt."""

    KEYSERVER = "keyserver"
    THRESHOLD = "threshold"


@dataclass(frozen=True, slots=True)
class PaillierTerms:
    """The public key of an encrypted attempt, and who holds the private one.

    Args:
        modulus: n, big-endian.
        endorsement: signature over it by the key server's certificate.
        custody: who can decrypt.
        dealing: who holds the shares of the private key, see `fl_core.encrypted.dealing`; empty when the key server
            holds it.
        dealing_signature: over the dealing, by the federation CA.

    Raises:
        PlanError: a size is impossible.
    """

    modulus: bytes
    endorsement: bytes
    custody: Custody = Custody.KEYSERVER
    dealing: bytes = b""
    dealing_signature: bytes = b""

    def __post_init__(self) -> None:
        if not 0 < len(self.modulus) <= MAX_MODULUS_BYTES:
            raise PlanError(
                "a Paillier modulus has the wrong length",
                expected=f"1 to {MAX_MODULUS_BYTES} bytes",
                got=len(self.modulus),
            )
        if (self.custody is Custody.THRESHOLD) != bool(self.dealing) or len(self.dealing) > MAX_DEALING_BYTES:
            raise PlanError(
                "a dealing belongs to a shared key and to no other",
                expected=f"up to {MAX_DEALING_BYTES} bytes with custody {Custody.THRESHOLD.value}",
                got=f"{len(self.dealing)} bytes with custody {self.custody.value}",
            )
        if bool(self.dealing) != (0 < len(self.dealing_signature) <= LONGEST_SIGNATURE):
            raise PlanError("the signature of a dealing has the wrong length", got=len(self.dealing_signature))
        if not 0 < len(self.endorsement) <= LONGEST_SIGNATURE:
            raise PlanError(
                "the endorsement of a Paillier key has the wrong length",
                expected=f"1 to {LONGEST_SIGNATURE} bytes",
                got=len(self.endorsement),
            )

    @staticmethod
    def message(modulus: bytes, custody: Custody) -> bytes:
        """What the key server signs."""
        return labels.encode_fields(labels.PAILLIER_ENDORSEMENT, modulus, custody.value)

    def endorsed_message(self) -> bytes:
        """What the key server must have signed."""
        return self.message(self.modulus, self.custody)

    def fields(self) -> list[labels.Field]:
        """What stands for the terms in the digest of a plan."""
        return [
            True,
            self.modulus,
            self.endorsement,
            self.custody.value,
            self.dealing,
            self.dealing_signature,
        ]
