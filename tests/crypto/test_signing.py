"""Signatures by the key of a certificate."""

import os
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fl_core.crypto.signing import CertificateSigner, verify_signature
from fl_core.crypto.sizes import LONGEST_SIGNATURE
from fl_core.errors import BadSignature, IdentityError
from fl_core.simulation.identity import simulated_signers


def certificate_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    first, last = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, first, last)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_signature_verifies_and_fits_its_bound() -> None:
    (signer,) = simulated_signers(1, os.urandom)
    for _ in range(50):
        signature = signer.sign(b"message")
        assert len(signature) <= LONGEST_SIGNATURE
        verify_signature(signer.certificate_der, b"message", signature)


def test_every_flipped_byte_of_a_signature_is_noticed() -> None:
    (signer,) = simulated_signers(1, os.urandom)
    signature = signer.sign(b"message")
    for position in range(len(signature)):
        forged = bytearray(signature)
        forged[position] ^= 1
        with pytest.raises(BadSignature):
            verify_signature(signer.certificate_der, b"message", bytes(forged))


def test_another_message_or_signer_is_noticed() -> None:
    ours, theirs = simulated_signers(2, os.urandom)
    with pytest.raises(BadSignature):
        verify_signature(ours.certificate_der, b"other message", ours.sign(b"message"))
    with pytest.raises(BadSignature):
        verify_signature(theirs.certificate_der, b"message", ours.sign(b"message"))


def test_an_empty_signature_is_refused() -> None:
    (signer,) = simulated_signers(1, os.urandom)
    with pytest.raises(BadSignature):
        verify_signature(signer.certificate_der, b"message", b"")


def test_bytes_that_are_no_certificate_are_refused() -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        verify_signature(b"no certificate", b"message", b"")


def test_a_certificate_of_another_curve_is_refused() -> None:
    certificate = certificate_of(ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(IdentityError, match="P-256"):
        verify_signature(certificate, b"message", b"")


def test_a_key_that_is_not_the_certificates_is_refused() -> None:
    certificate = certificate_of(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(IdentityError, match="does not belong"):
        CertificateSigner(certificate, ec.generate_private_key(ec.SECP256R1()))


def test_a_signer_never_shows_its_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    shown = repr(CertificateSigner(certificate_of(key), key))
    assert str(key.private_numbers().private_value) not in shown
    assert "PrivateKey" not in shown
