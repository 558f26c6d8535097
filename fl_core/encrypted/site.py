"""The site: pack a vector, move it by the pads, encrypt. Any part of the vector can be done alone, on any thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_core.crypto.mask_prg import RingVector
from fl_core.crypto.paillier.bignum import Entropy
from fl_core.crypto.paillier.ciphertexts import write_ciphertexts
from fl_core.crypto.paillier.encryption import Encryptor
from fl_core.crypto.paillier.pads import SEED_BYTES, add_pads, pads
from fl_core.crypto.sealed_box import seal_to
from fl_core.encrypted.context import EncryptedContext
from fl_core.errors import LocalProtocolError


@dataclass(frozen=True, slots=True)
class VectorEncryption:
    """One site's encryption in one attempt, under pads of its own.

    Args:
        context: of the attempt.
        encryptor: of its key.
        seed: 32 bytes of the pads.
    """

    context: EncryptedContext
    encryptor: Encryptor = field(repr=False)
    seed: bytes = field(repr=False)

    @classmethod
    def begin(cls, context: EncryptedContext, entropy: Entropy) -> "VectorEncryption":
        """Draw the pads' seed and make the table of the key."""
        return cls(context, Encryptor(context.public_key, context.plaintexts), entropy(SEED_BYTES))

    def sealed_seed(self, index: int, keyserver_certificate_der: bytes) -> bytes:
        """The seed, for the key server alone.

        Args:
            index: this site's place in the roster.
            keyserver_certificate_der: the certificate that the plan names; the caller has checked it.
        """
        return seal_to(keyserver_certificate_der, self.seed, self.context.seed_context(index))

    def encrypt(self, vector: RingVector, part: range, entropy: Entropy) -> bytes:
        """The ciphertexts of some plaintexts of a vector, as bytes. Takes a while: run it in a thread.

        Args:
            vector: (d,) the encoded update.
            part: places of the plaintexts, ascending by one.
            entropy: source of uniform bytes.

        Raises:
            LocalProtocolError: the vector has another length.
            CryptoError: a coordinate does not fit its slot.
        """
        if vector.shape != (self.context.length,):
            raise LocalProtocolError(
                "a vector to encrypt has the wrong length", expected=self.context.length, got=vector.shape
            )
        key, slots = self.context.public_key, self.context.layout.slots
        plaintexts: Sequence[int] = list(self.context.layout.pack(vector[part.start * slots : part.stop * slots]))
        padded = add_pads(plaintexts, pads(self.seed, key, part.start, len(part)), key.n)
        return write_ciphertexts(key, self.encryptor.encrypt(padded, entropy))
