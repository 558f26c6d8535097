"""What a dealer publishes about a shared key: who decrypts, how many of them together, and how their work is checked.

It travels in the plan as canonical JSON under a signature of the federation CA, which no service holds: a key server
cannot pass a key that it knows for one that is shared out.
"""

import json
from dataclasses import dataclass
from hashlib import sha256

from fl_core.crypto import labels
from fl_core.crypto.paillier.keys import PublicKey
from fl_core.crypto.paillier.threshold import SharedKey
from fl_core.errors import CryptoError, PlanError

FORMAT = "tacit-paillier-dealing/1"


@dataclass(frozen=True, slots=True)
class Decryptor:
    """A party that holds a share: a service in the role of a key server.

    Args:
        service_id: its id.
        address: host:port.
        certificate_sha256: of its certificate (DER).
    """

    service_id: str
    address: str
    certificate_sha256: bytes


@dataclass(frozen=True, slots=True)
class Dealing:
    """A shared key and its holders, in the order of their indices from 1.

    Raises:
        PlanError: there is not one decryptor for each share, or one stands twice.
    """

    key: SharedKey
    decryptors: tuple[Decryptor, ...]

    def __post_init__(self) -> None:
        certificates = {decryptor.certificate_sha256 for decryptor in self.decryptors}
        if not len(certificates) == len(self.decryptors) == self.key.holders:
            raise PlanError("a shared key needs as many different decryptors as shares", expected=self.key.holders)

    def index_of(self, certificate_sha256: bytes) -> int:
        """The index of a decryptor, from 1.

        Raises:
            PlanError: it holds no share.
        """
        for index, decryptor in enumerate(self.decryptors, start=1):
            if decryptor.certificate_sha256 == certificate_sha256:
                return index
        raise PlanError("this service holds no share of the key", expected="a decryptor of the dealing")

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        decryptors = [
            {
                "service_id": decryptor.service_id,
                "address": decryptor.address,
                "certificate_sha256": decryptor.certificate_sha256.hex(),
                "verification": f"{int(verification):x}",
            }
            for decryptor, verification in zip(self.decryptors, self.key.verification, strict=True)
        ]
        content = {
            "format": FORMAT,
            "modulus": self.key.public_key.to_bytes().hex(),
            "threshold": self.key.threshold,
            "base": f"{int(self.key.base):x}",
            "decryptors": decryptors,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Dealing":
        """Read what `to_bytes` wrote.

        Raises:
            PlanError: it is no dealing.
            BadKey: the modulus is none.
        """
        try:
            content = json.loads(data)
            if content["format"] != FORMAT:
                raise ValueError("format")
            entries = list(content["decryptors"])
            key = SharedKey(
                PublicKey.from_bytes(bytes.fromhex(content["modulus"])),
                int(content["threshold"]),
                len(entries),
                int(content["base"], 16),
                tuple(int(entry["verification"], 16) for entry in entries),
            )
            decryptors = tuple(
                Decryptor(str(entry["service_id"]), str(entry["address"]), bytes.fromhex(entry["certificate_sha256"]))
                for entry in entries
            )
        except (ValueError, KeyError, TypeError, CryptoError) as error:
            raise PlanError("this is no dealing of a shared key", expected=f"JSON of format {FORMAT}") from error
        return cls(key, decryptors)

    @property
    def digest(self) -> bytes:
        """32 bytes that stand for the dealing."""
        return sha256(self.to_bytes()).digest()

    def share_context(self, index: int) -> bytes:
        """What the share of a holder is sealed for."""
        return labels.encode_fields(labels.PAILLIER_SHARE, self.digest, index)


def dealing_message(dealing: bytes) -> bytes:
    """What the federation CA signs."""
    return labels.encode_fields(labels.PAILLIER_DEALING, dealing)
