"""A signature is verified once per process; another certificate, message or signature is another check."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from fl_core.errors import BadSignature
from fl_core.rounds.plan import ClientId, RosterEntry
from fl_core.transport import identity
from fl_core.transport.authority import CertificateAuthority
from fl_core.transport.identity import Role, RosterTrust
from fl_core.transport.tls import Credentials


def site(authority: CertificateAuthority, name: str, folder: Path) -> Credentials:
    files = authority.issue(Role.SITE, name, folder / name)
    return Credentials.from_files(files.certificate, files.key, files.ca)


def roster_of(*sites: Credentials) -> tuple[RosterEntry, ...]:
    return tuple(RosterEntry(ClientId(one.identity.id), sha256(one.certificate_der).digest()) for one in sites)


def test_a_signature_that_verified_is_not_verified_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = site(CertificateAuthority.create(tmp_path / "ca", "hospitals"), "alpha", tmp_path)
    trust = RosterTrust(roster_of(alpha), alpha.trust, datetime.now(UTC))
    signature = alpha.signer().sign(b"keys")
    trust.verify(0, alpha.certificate_der, b"keys", signature)
    monkeypatch.setattr(identity, "verify_signature", lambda *_: pytest.fail("verified again"))
    trust.verify(0, alpha.certificate_der, b"keys", signature)


def test_what_differs_in_a_byte_from_what_verified_is_refused(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca", "hospitals")
    alpha, beta = site(authority, "alpha", tmp_path), site(authority, "beta", tmp_path)
    trust = RosterTrust(roster_of(alpha, beta), alpha.trust, datetime.now(UTC))
    signature = alpha.signer().sign(b"keys")
    trust.verify(0, alpha.certificate_der, b"keys", signature)
    forged = bytes([*signature[:-1], signature[-1] ^ 1])
    for _ in range(2):
        for message, shown in ((b"kezs", signature), (b"keys", forged), (b"key", b"s" + signature)):
            with pytest.raises(BadSignature):
                trust.verify(0, alpha.certificate_der, message, shown)
        with pytest.raises(BadSignature):
            trust.verify(1, beta.certificate_der, b"keys", signature)
