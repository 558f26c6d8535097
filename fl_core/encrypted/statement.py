"""What a site signs about its upload: these bytes, with these pads, in this attempt.

Aggregator and key server both check it. Without it the aggregator could seal seeds of its own in the names of other
sites, and have a lone ciphertext opened as the sum of many.
"""

from dataclasses import dataclass, field

from fl_core.crypto import labels
from fl_core.crypto.paillier.pads import SEED_BYTES
from fl_core.crypto.sealed_box import OVERHEAD_BYTES
from fl_core.encrypted.context import EncryptedContext
from fl_core.errors import RemoteProtocolError
from fl_core.secagg.context import RosterVerifier, Signer

DIGEST_BYTES = 32
SEALED_SEED_BYTES = SEED_BYTES + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class UploadStatement:
    """One site's word about its upload.

    Args:
        index: the site's place in the roster.
        sealed_seed: the seed of its pads, sealed to the key server.
        upload_sha256: of the ciphertexts.
        certificate_der: of the site.
        signature: over all of it and the attempt.

    Raises:
        RemoteProtocolError: a part has an impossible size.
    """

    index: int
    sealed_seed: bytes = field(repr=False)
    upload_sha256: bytes
    certificate_der: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.sealed_seed) != SEALED_SEED_BYTES or len(self.upload_sha256) != DIGEST_BYTES:
            raise RemoteProtocolError(
                "a statement about an upload has the wrong form",
                expected=f"a sealed seed of {SEALED_SEED_BYTES} bytes and a digest of {DIGEST_BYTES}",
                got=f"{len(self.sealed_seed)} and {len(self.upload_sha256)} bytes",
            )


def state(
    context: EncryptedContext, index: int, sealed_seed: bytes, upload_sha256: bytes, signer: Signer
) -> UploadStatement:
    """Sign what a site uploads."""
    message = _message(context, index, sealed_seed, upload_sha256)
    return UploadStatement(index, sealed_seed, upload_sha256, signer.certificate_der, signer.sign(message))


def check_statement(context: EncryptedContext, statement: UploadStatement, verifier: RosterVerifier) -> None:
    """Check that a statement is of the site at its index, and of this attempt.

    Raises:
        RemoteProtocolError: the index is not in the roster.
        BadSignature: the signature does not verify.
        IdentityError: the certificate is not the one of the roster, or not valid.
    """
    if not 0 <= statement.index < context.size:
        raise RemoteProtocolError("a statement is of a stranger", expected=f"below {context.size}", got=statement.index)
    message = _message(context, statement.index, statement.sealed_seed, statement.upload_sha256)
    verifier.verify(statement.index, statement.certificate_der, message, statement.signature)


def _message(context: EncryptedContext, index: int, sealed_seed: bytes, upload_sha256: bytes) -> bytes:
    return labels.encode_fields(labels.PAILLIER_UPLOAD, context.binding, index, sealed_seed, upload_sha256)
