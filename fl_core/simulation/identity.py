"""Identities for simulated sites: certificates of P-256 keys, and a verifier that knows them by fingerprint.

They are made from the entropy of the simulation and are worth nothing outside of it: no federation CA signs them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fl_core.crypto.sealed_box import CertificateOpener
from fl_core.crypto.signing import CertificateSigner, verify_signature
from fl_core.errors import IdentityError
from fl_core.secagg.context import Entropy

_FIRST_DAY = datetime(2020, 1, 1, tzinfo=UTC)
_LAST_DAY = datetime(2120, 1, 1, tzinfo=UTC)
# Below the order of P-256, so that every number of this size plus one is a private key.
_SCALAR_BYTES = 31


@dataclass(frozen=True, slots=True)
class FingerprintVerifier:
    """Accepts at each index one certificate, given by the SHA-256 of its DER; implements `RosterVerifier`."""

    fingerprints: tuple[bytes, ...] = field(repr=False)

    def verify(self, index: int, certificate_der: bytes, message: bytes, signature: bytes) -> None:
        """Check that the certificate is that of `index` and signed the message.

        Raises:
            BadSignature: the signature does not verify.
            IdentityError: the certificate is another one.
        """
        if not 0 <= index < len(self.fingerprints):
            raise IdentityError("nobody is at this index", expected=f"0 to {len(self.fingerprints) - 1}", got=index)
        if hashlib.sha256(certificate_der).digest() != self.fingerprints[index]:
            raise IdentityError("a certificate is not that of the roster", expected=f"the certificate of site {index}")
        _verify_once(certificate_der, message, signature)


# In one process every site would check the same signature; a site on a machine of its own checks it once, too.
@lru_cache(maxsize=65_536)
def _verify_once(certificate_der: bytes, message: bytes, signature: bytes) -> None:
    verify_signature(certificate_der, message, signature)


def simulated_signers(size: int, entropy: Entropy) -> list[CertificateSigner]:
    """Make a certificate and its key for each of `size` sites."""
    return [_signer(index, entropy) for index in range(size)]


def verifier_of(signers: Sequence[CertificateSigner]) -> FingerprintVerifier:
    """The verifier that accepts exactly these certificates, at these places."""
    return FingerprintVerifier(tuple(hashlib.sha256(signer.certificate_der).digest() for signer in signers))


def simulated_opener(entropy: Entropy) -> tuple[bytes, CertificateOpener]:
    """A certificate (DER) and what opens messages that were sealed to it: a simulated key server."""
    certificate_der, key = _identity(0, entropy)
    return certificate_der, CertificateOpener(key)


def _signer(index: int, entropy: Entropy) -> CertificateSigner:
    return CertificateSigner(*_identity(index, entropy))


def _identity(index: int, entropy: Entropy) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    scalar = int.from_bytes(entropy(_SCALAR_BYTES), "big") + 1
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"simulated site {index}")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), index + 1, _FIRST_DAY, _LAST_DAY)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER), key
