"""Signatures by the key of a site's certificate (ECDSA over P-256 with SHA-256, DER).

Whether a certificate may speak for a site is decided elsewhere; here only the signature is checked.

Source: FIPS 186-5, section 6; RFC 5480.
"""

from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fl_core.errors import BadSignature, IdentityError

# As many certificates as the largest roster has sites.
_CACHED_KEYS = 16_384


class CertificateSigner:
    """A certificate and its private key, which signs and never shows itself.

    Args:
        certificate_der: the X.509 certificate.
        private_key: its private key, on P-256.

    Raises:
        IdentityError: the certificate cannot be read, is not of P-256, or belongs to another key.
    """

    __slots__ = ("_certificate_der", "_private_key")

    def __init__(self, certificate_der: bytes, private_key: ec.EllipticCurvePrivateKey) -> None:
        if _public_key(certificate_der) != private_key.public_key():
            raise IdentityError(
                "the private key does not belong to the certificate",
                expected="the key that the certificate was issued for",
                fix="load the key file that was made together with this certificate's request",
            )
        self._certificate_der = certificate_der
        self._private_key = private_key

    @property
    def certificate_der(self) -> bytes:
        """The certificate that goes with every signature."""
        return self._certificate_der

    def sign(self, message: bytes) -> bytes:
        """Sign a message; the signature is DER, at most 72 bytes."""
        return self._private_key.sign(message, ec.ECDSA(hashes.SHA256()))

    def __repr__(self) -> str:
        return f"CertificateSigner(certificate_der=<{len(self._certificate_der)} bytes>)"


def verify_signature(certificate_der: bytes, message: bytes, signature: bytes) -> None:
    """Check that the key of the certificate signed the message.

    Raises:
        BadSignature: it did not.
        IdentityError: the certificate cannot be read or is not of P-256.
    """
    public_key = _public_key(certificate_der)
    try:
        public_key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BadSignature(
            "a signature does not verify",
            expected="an ECDSA P-256 signature of this message by the key of the certificate",
            got=f"{len(signature)} bytes that fail",
            fix="sign this very message; a signature of another attempt or by another key does not pass",
        ) from error


@lru_cache(maxsize=_CACHED_KEYS)
def _public_key(certificate_der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        public_key = x509.load_der_x509_certificate(certificate_der).public_key()
    except ValueError as error:
        raise IdentityError(
            "a certificate cannot be read", expected="X.509 in DER", got=f"{len(certificate_der)} bytes"
        ) from error
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise IdentityError(
            "a certificate has the wrong kind of key", expected="ECDSA P-256", got=type(public_key).__name__
        )
    return public_key
