"""What a plan says about Paillier encryption. Reading it needs no gmpy2; taking part does."""

from dataclasses import dataclass
from enum import StrEnum

from fl_core.crypto import labels
from fl_core.crypto.signing import LONGEST_SIGNATURE
from fl_core.errors import PlanError

MAX_MODULUS_BYTES = 512


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

    Raises:
        PlanError: a size is impossible.
    """

    modulus: bytes
    endorsement: bytes
    custody: Custody = Custody.KEYSERVER

    def __post_init__(self) -> None:
        if not 0 < len(self.modulus) <= MAX_MODULUS_BYTES:
            raise PlanError(
                "a Paillier modulus has the wrong length",
                expected=f"1 to {MAX_MODULUS_BYTES} bytes",
                got=len(self.modulus),
            )
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
        return [True, self.modulus, self.endorsement, self.custody.value]
