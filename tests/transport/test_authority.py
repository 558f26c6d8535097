"""The CA folder: what it signs, what it refuses, and how its keys lie on disk."""

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fl_core.errors import ConfigError, IdentityError, NotFound
from fl_core.transport.authority import (
    CertificateAuthority,
    is_encrypted,
    parse_request,
    read_issued,
    request_certificate,
    write_private_key,
)
from fl_core.transport.identity import Role, TrustStore, identity_of, parse_certificate

# Ahead of the clock, so that what a test issues is valid by then however long the tests before it took.
NOW = datetime.now(UTC) + timedelta(hours=1)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private_keys_are_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        authority = CertificateAuthority.create(tmp_path / "ca", "test")
        files = authority.issue(Role.SITE, "a", tmp_path / "a")
        key, _ = request_certificate(tmp_path / "b", "test", Role.SITE, "b")
    finally:
        os.umask(before)
    assert [mode(path) for path in (tmp_path / "ca" / "ca-key.pem", files.key, key)] == [0o600] * 3
    assert mode(tmp_path / "ca") == 0o700


def test_a_private_key_is_created_with_its_mode_and_not_changed_afterwards(
    tmp_path: Path, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real_open = os.open

    def watched(path: Any, flags: int, given: int = 0o777) -> int:
        opened.append(given)
        return real_open(path, flags, given)

    monkeypatch.setattr(os, "open", watched)
    write_private_key(tmp_path / "key.pem", federation.authority._private_key)
    assert opened == [0o600]


def test_a_key_is_never_overwritten(tmp_path: Path, federation: Any) -> None:
    files = federation.issue(Role.SITE, "a")
    before = files.key.read_bytes()
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        federation.authority.issue(Role.SITE, "a", files.key.parent)
    assert files.key.read_bytes() == before


def test_a_second_ca_in_the_same_folder_is_refused_and_changes_nothing(federation: Any) -> None:
    before = federation.authority.ca_path.read_bytes()
    with pytest.raises(ConfigError, match="already holds a CA"):
        CertificateAuthority.create(federation.authority.folder, "again")
    assert federation.authority.ca_path.read_bytes() == before


def test_the_ca_never_shows_its_key(federation: Any) -> None:
    assert "rivate" not in repr(federation.authority)


def test_an_encrypted_ca_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path / "ca", "test", passphrase="correct horse")
    assert is_encrypted(tmp_path / "ca")
    assert CertificateAuthority.load(tmp_path / "ca", passphrase="correct horse").federation == "test"
    for wrong in (None, "battery staple"):
        with pytest.raises(ConfigError, match="cannot be opened") as caught:
            CertificateAuthority.load(tmp_path / "ca", passphrase=wrong)
        assert "staple" not in str(caught.value)


def test_a_folder_without_a_ca_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca.pem cannot be read: got No such file"):
        CertificateAuthority.load(tmp_path)


def test_a_key_of_another_ca_is_refused(tmp_path: Path, federation: Any) -> None:
    other = CertificateAuthority.create(tmp_path / "other", "test")
    (federation.authority.folder / "ca-key.pem").write_bytes((other.folder / "ca-key.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"does not belong to ca.pem"):
        CertificateAuthority.load(federation.authority.folder)


def test_a_request_becomes_a_certificate_of_the_same_key(tmp_path: Path, federation: Any) -> None:
    key_path, request_path = request_certificate(tmp_path / "site", "test", Role.SITE, "a")
    pem = federation.authority.sign(request_path.read_bytes(), role=Role.SITE, subject_id="a")
    key = load_pem_private_key(key_path.read_bytes(), None)
    assert parse_certificate(pem).public_key() == key.public_key()
    assert federation.trust.check(pem, NOW).name == "site/a"


@pytest.mark.parametrize(
    ("asked_federation", "asked_role", "asked_id"),
    [("test", Role.AGGREGATOR, "a"), ("test", Role.OPERATOR, "a"), ("test", Role.SITE, "b"), ("other", Role.SITE, "a")],
)
def test_a_request_for_more_than_was_granted_is_refused_and_nothing_is_issued(
    tmp_path: Path, federation: Any, asked_federation: str, asked_role: Role, asked_id: str
) -> None:
    _, request_path = request_certificate(tmp_path / "x", asked_federation, asked_role, asked_id)
    with pytest.raises(IdentityError, match="asks for something else than was granted"):
        federation.authority.sign(request_path.read_bytes(), role=Role.SITE, subject_id="a")
    assert federation.authority.issued() == []


def test_a_request_that_was_changed_is_refused(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    _, path = request_certificate(tmp_path / "x", "test", Role.SITE, "a")
    der = x509.load_pem_x509_csr(path.read_bytes()).public_bytes(Encoding.DER).replace(b"/site/a", b"/site/b")
    changed = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    with pytest.raises(IdentityError, match="not signed by its own key"):
        parse_request(changed)


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca", "test", days=10)
    files = authority.issue(Role.SITE, "a", tmp_path / "a", days=365)
    identity = identity_of(files.certificate.read_bytes())
    assert identity.not_after == authority.certificate.not_valid_after_utc


def test_the_ca_lists_what_it_issued_and_what_became_of_it(federation: Any) -> None:
    valid = federation.credentials(Role.SITE, "a").identity
    revoked = federation.credentials(Role.SITE, "b").identity
    federation.issue(Role.SITE, "c", days=1, now=NOW - timedelta(days=3))
    federation.authority.revoke(revoked.serial)
    name, issued = read_issued(federation.authority.folder)
    assert name == "test"
    assert {entry.identity.id: entry.status(NOW) for entry in issued} == {"a": "valid", "b": "revoked", "c": "expired"}
    assert valid in {entry.identity for entry in issued}


def test_revoking_twice_keeps_the_first_date(federation: Any) -> None:
    serial = federation.credentials(Role.SITE, "a").identity.serial
    federation.authority.revoke(serial, now=NOW - timedelta(days=1))
    federation.authority.revoke(serial)
    (entry,) = federation.authority.issued()
    assert entry.revoked_at == (NOW - timedelta(days=1)).replace(microsecond=0)


def test_an_unknown_serial_is_not_revoked(federation: Any) -> None:
    with pytest.raises(NotFound, match="got abc"):
        federation.authority.revoke(0xABC)


def test_refreshing_the_revocation_list_keeps_what_was_revoked(federation: Any) -> None:
    credentials = federation.credentials(Role.SITE, "a")
    federation.revoke(credentials)
    federation.authority.refresh_revocations(now=NOW + timedelta(days=100))
    trust = TrustStore(federation.authority.ca_path.read_bytes(), federation.authority.crl_path.read_bytes())
    with pytest.raises(IdentityError, match="was revoked"):
        trust.check(credentials.certificate_der, NOW + timedelta(days=200))
