"""Sealing for the holder of a certificate: a fresh key on P-256, agreed with the certificate's, seals one message.

The recipient learns who sealed it by other means: whoever has the certificate can seal.

Source: SECG SEC 1, section 5.1 (ECIES), with HKDF-SHA256 (RFC 5869) and ChaCha20-Poly1305 (RFC 8439).
"""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fl_core.crypto import labels
from fl_core.crypto.aead import KEY_BYTES, TAG_BYTES, open_sealed, seal
from fl_core.crypto.agreement import derive_key
from fl_core.errors import CryptoError, IdentityError

POINT_BYTES = 65
OVERHEAD_BYTES = POINT_BYTES + TAG_BYTES
"""Bytes by which a sealed message is longer than the message."""

_CURVE = ec.SECP256R1


class CertificateOpener:
    """Opens what was sealed to a certificate, with its private key, which never shows itself.

    Args:
        private_key: on P-256.
    """

    __slots__ = ("_private_key",)

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self._private_key = private_key

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Open what `seal_to` made for the same context.

        Raises:
            CryptoError: it was sealed to another certificate or for another context, or is damaged.
        """
        if len(sealed) < OVERHEAD_BYTES:
            raise CryptoError("a sealed message is too short", expected=f">= {OVERHEAD_BYTES} bytes", got=len(sealed))
        point = sealed[:POINT_BYTES]
        try:
            sender = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE(), point)
        except ValueError as error:
            raise CryptoError("a sealed message begins with no point", expected="a point of P-256") from error
        key = _key(
            self._private_key.exchange(ec.ECDH(), sender), point, _encode(self._private_key.public_key()), context
        )
        return open_sealed(key, sealed[POINT_BYTES:], context)

    def __repr__(self) -> str:
        return "CertificateOpener()"


def seal_to(certificate_der: bytes, message: bytes, context: bytes) -> bytes:
    """Seal a message for the holder of a certificate.

    Args:
        certificate_der: X.509 with a key on P-256; the caller has checked whose it is.
        message: any length.
        context: what the message belongs to; it opens for no other.

    Returns:
        The fresh public key, uncompressed, and the sealed message: 81 bytes more than the message.

    Raises:
        IdentityError: the certificate cannot be read or is not of P-256.
    """
    recipient = _public_key(certificate_der)
    fresh = ec.generate_private_key(_CURVE())
    point = _encode(fresh.public_key())
    key = _key(fresh.exchange(ec.ECDH(), recipient), point, _encode(recipient), context)
    return point + seal(key, message, context)


def _key(shared_secret: bytes, point: bytes, recipient: bytes, context: bytes) -> bytes:
    info = labels.encode_fields(labels.SEALED_BOX, point, recipient, context)
    return derive_key(shared_secret, salt=b"", info=info, length=KEY_BYTES)


def _encode(public_key: ec.EllipticCurvePublicKey) -> bytes:
    return public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _public_key(certificate_der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        public_key = x509.load_der_x509_certificate(certificate_der).public_key()
    except ValueError as error:
        raise IdentityError(
            "a certificate cannot be read", expected="X.509 in DER", got=f"{len(certificate_der)} bytes"
        ) from error
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, _CURVE):
        raise IdentityError("a certificate has the wrong kind of key", expected="ECDSA P-256")
    return public_key
