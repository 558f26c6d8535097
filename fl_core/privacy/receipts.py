"""What a site signs when it takes part in a release: the attempt and the event, so that no ledger can say less."""

from fl_core.crypto import labels
from fl_core.crypto.signing import verify_signature
from fl_core.privacy.events import PrivacyEvent


def receipt_message(binding: bytes, event: PrivacyEvent) -> bytes:
    """The bytes that a site signs.

    Args:
        binding: of the attempt, 32 bytes; it binds plan, roster, round and attempt.
        event: what the site counts for it.
    """
    return labels.encode_fields(labels.PRIVACY_RELEASE, binding, event.to_json())


def verify_receipt(binding: bytes, event: PrivacyEvent, certificate_der: bytes, signature: bytes) -> None:
    """Check a site's signature.

    Raises:
        BadSignature: the key of the certificate did not sign this attempt and event.
        IdentityError: the certificate cannot be read.
    """
    verify_signature(certificate_der, receipt_message(binding, event), signature)
