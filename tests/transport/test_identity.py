"""Who a certificate stands for, and when the federation no longer vouches for it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_core.errors import BadSignature, ConfigError, IdentityError
from fl_core.rounds.plan import ClientId, RosterEntry
from fl_core.transport.identity import (
    Role,
    RosterTrust,
    TrustStore,
    check_name,
    identity_of,
    parse_certificate,
    subject_names,
)

# Ahead of the clock, so that what a test issues is valid by then however long the tests before it took.
NOW = datetime.now(UTC) + timedelta(hours=1)


def certificate_with(federation: Any, names: list[x509.GeneralName], **changes: Any) -> bytes:
    """A certificate that the CA really signed, but with other contents than `CertificateAuthority` gives it."""
    key = changes.get("key") or ec.generate_private_key(ec.SECP256R1())
    usages = changes.get("usages", [ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
        .issuer_name(federation.authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=changes.get("ca", False), path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(federation.authority._private_key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize("role", list(Role))
def test_a_certificate_says_role_id_and_federation(federation: Any, role: Role) -> None:
    credentials = federation.credentials(role, "party-1")
    identity = identity_of(credentials.certificate_der)
    assert (identity.role, identity.id, identity.federation) == (role, "party-1", "test")
    assert identity.certificate_sha256 == sha256(credentials.certificate_der).digest()
    assert str(identity) == f"{role.value}/party-1 (serial {identity.serial:x})"


def test_pem_and_der_give_the_same_identity(federation: Any) -> None:
    files = federation.issue(Role.SITE, "a")
    assert identity_of(files.certificate.read_bytes()) == federation.credentials(Role.SITE, "a").identity


def test_only_services_carry_dns_names(federation: Any) -> None:
    def dns_names(role: Role) -> list[str]:
        certificate = parse_certificate(federation.credentials(role, "p").certificate_der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)

    assert dns_names(Role.AGGREGATOR) == ["aggregator.tacit", "p.aggregator.tacit"]
    assert dns_names(Role.SITE) == []


@pytest.mark.parametrize("bad", ["", "a/b", "../a", "a b", "-a", "a-", "a" * 65, "ä", "a\n", "a%2f"])
def test_an_id_that_could_mean_something_else_is_refused(bad: str) -> None:
    with pytest.raises(IdentityError, match="an id of role site is not valid"):
        check_name(Role.SITE, bad)


def test_the_id_of_a_service_must_be_a_dns_label() -> None:
    check_name(Role.SITE, "Hospital_A.north")
    with pytest.raises(IdentityError, match="an id of role aggregator is not valid"):
        check_name(Role.AGGREGATOR, "Hospital_A.north")


@pytest.mark.parametrize(
    "uri",
    [
        "http://test/site/a",
        "tacit://test/site",
        "tacit://test/site/a/b",
        "tacit://test/admin/a",
        "tacit://Te st/site/a",
    ],
)
def test_a_certificate_with_an_unreadable_name_is_refused(federation: Any, uri: str) -> None:
    certificate = certificate_with(federation, [x509.UniformResourceIdentifier(uri)])
    with pytest.raises(IdentityError):
        federation.trust.check(certificate, NOW)


def test_a_certificate_with_two_names_is_refused(federation: Any) -> None:
    names = subject_names("test", Role.SITE, "a") + subject_names("test", Role.SITE, "b")
    with pytest.raises(IdentityError, match=r"must name one party.*got 2"):
        federation.trust.check(certificate_with(federation, names), NOW)


def test_a_site_with_the_dns_name_of_a_service_is_refused(federation: Any) -> None:
    names = [*subject_names("test", Role.SITE, "a"), x509.DNSName("coordinator.tacit")]
    with pytest.raises(IdentityError, match="names that are not its own"):
        federation.trust.check(certificate_with(federation, names), NOW)


def test_a_ca_certificate_cannot_be_a_party(federation: Any) -> None:
    certificate = certificate_with(federation, subject_names("test", Role.SITE, "a"), ca=True)
    with pytest.raises(IdentityError, match="may not be used for this"):
        federation.trust.check(certificate, NOW)


def test_a_service_without_server_usage_is_refused(federation: Any) -> None:
    certificate = certificate_with(federation, subject_names("test", Role.AGGREGATOR, "a"))
    with pytest.raises(IdentityError, match="may not be used for this"):
        federation.trust.check(certificate, NOW)


def test_an_rsa_key_is_refused(federation: Any) -> None:
    key = rsa.generate_private_key(65537, 2048)
    certificate = certificate_with(federation, subject_names("test", Role.SITE, "a"), key=key)
    with pytest.raises(IdentityError, match=r"wrong kind.*ECDSA P-256"):
        federation.trust.check(certificate, NOW)


def test_a_certificate_that_claims_another_federation_is_refused(federation: Any) -> None:
    certificate = certificate_with(federation, subject_names("other", Role.SITE, "a"))
    with pytest.raises(IdentityError, match="is of another federation: expected test, got other"):
        federation.trust.check(certificate, NOW)


def test_a_ca_of_the_same_name_does_not_vouch(federation: Any, tmp_path: Any) -> None:
    from fl_core.transport.authority import CertificateAuthority

    impostor = CertificateAuthority.create(tmp_path / "impostor", "test")
    files = impostor.issue(Role.SITE, "a", tmp_path / "a")
    with pytest.raises(IdentityError, match=r"site/a \(serial .*is not of this federation"):
        federation.trust.check(files.certificate.read_bytes(), NOW)


def test_a_flipped_byte_in_a_certificate_is_refused(federation: Any) -> None:
    der = bytearray(federation.credentials(Role.SITE, "a").certificate_der)
    der[-1] ^= 1
    with pytest.raises(IdentityError, match="not of this federation"):
        federation.trust.check(bytes(der), NOW)


@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nxx\n", b"x" * 10_000])
def test_junk_is_no_certificate(federation: Any, junk: bytes) -> None:
    with pytest.raises(IdentityError, match=r"cannot be parsed|too long"):
        federation.trust.check(junk, NOW)


def test_an_expired_certificate_is_refused_with_name_and_date(federation: Any) -> None:
    identity = federation.credentials(Role.SITE, "a").identity
    der = federation.credentials(Role.SITE, "a").certificate_der
    trust = TrustStore(federation.authority.ca_path.read_bytes())
    trust.check(der, NOW)
    with pytest.raises(IdentityError, match=rf"{identity.serial:x}\) expired on {identity.not_after:%Y-%m-%d}"):
        trust.check(der, identity.not_after + timedelta(seconds=1))


def test_a_certificate_of_the_future_points_at_the_clock(federation: Any) -> None:
    der = federation.credentials(Role.SITE, "a").certificate_der
    with pytest.raises(IdentityError, match=r"site/a .*is not valid yet.*check the clock"):
        federation.trust.check(der, NOW - timedelta(days=1))


def test_a_revoked_certificate_is_refused_even_when_it_was_accepted_before(federation: Any) -> None:
    credentials, other = federation.credentials(Role.SITE, "a"), federation.credentials(Role.SITE, "b")
    federation.trust.check(credentials.certificate_der, NOW)
    federation.revoke(credentials)
    with pytest.raises(IdentityError, match=rf"site/a \(serial {credentials.identity.serial:x}\) was revoked on"):
        federation.trust.check(credentials.certificate_der, NOW)
    federation.trust.check(other.certificate_der, NOW)


def test_a_stale_revocation_list_trusts_nobody(federation: Any) -> None:
    issued = federation.authority.issue(Role.SITE, "a", federation.folder / "late", days=3000)
    with pytest.raises(IdentityError, match=r"revocation list is out of date.*--refresh"):
        federation.trust.check(issued.certificate.read_bytes(), NOW + timedelta(days=400))


def test_a_revocation_list_of_another_ca_is_refused(federation: Any, make_federation: Callable[[str], Any]) -> None:
    foreign = make_federation("other").authority.crl_path.read_bytes()
    with pytest.raises(ConfigError, match="not signed by the CA"):
        TrustStore(federation.authority.ca_path.read_bytes(), foreign)


def test_a_leaf_cannot_be_pinned_as_a_ca(federation: Any) -> None:
    leaf = federation.issue(Role.SITE, "a").certificate.read_bytes()
    with pytest.raises(ConfigError, match="no self-signed CA"):
        TrustStore(leaf)


def test_two_cas_are_trusted_while_one_replaces_the_other(federation: Any, tmp_path: Any) -> None:
    from fl_core.transport.authority import CertificateAuthority

    successor = CertificateAuthority.create(tmp_path / "new", "test")
    old = federation.credentials(Role.SITE, "a")
    new = successor.issue(Role.SITE, "a", tmp_path / "a")
    bundle = federation.authority.ca_path.read_bytes() + successor.ca_path.read_bytes()
    lists = federation.authority.crl_path.read_bytes() + successor.crl_path.read_bytes()
    trust = TrustStore(bundle, lists)
    assert trust.check(old.certificate_der, NOW).serial == old.identity.serial
    assert trust.check(new.certificate.read_bytes(), NOW).id == "a"


def roster_of(*credentials: Any) -> list[RosterEntry]:
    return [RosterEntry(ClientId(one.identity.id), one.identity.certificate_sha256) for one in credentials]


def test_a_roster_accepts_the_signature_of_its_own_sites(federation: Any) -> None:
    sites = [federation.credentials(Role.SITE, name) for name in ("a", "b")]
    trust = RosterTrust(roster_of(*sites), federation.trust, NOW)
    trust.verify(1, sites[1].certificate_der, b"message", sites[1].signer().sign(b"message"))
    with pytest.raises(BadSignature):
        trust.verify(1, sites[1].certificate_der, b"massage", sites[1].signer().sign(b"message"))


def test_a_roster_refuses_another_site_at_the_same_index(federation: Any) -> None:
    sites = [federation.credentials(Role.SITE, name) for name in ("a", "b")]
    trust = RosterTrust(roster_of(*sites), federation.trust, NOW)
    with pytest.raises(IdentityError, match="at index 0 is not the one of the roster"):
        trust.verify(0, sites[1].certificate_der, b"m", sites[1].signer().sign(b"m"))


def test_a_roster_refuses_a_service_in_the_place_of_a_site(federation: Any) -> None:
    service = federation.credentials(Role.KEYSERVER, "k")
    trust = RosterTrust(roster_of(service), federation.trust, NOW)
    with pytest.raises(IdentityError, match="stands for somebody else: expected site/k, got keyserver/k"):
        trust.verify(0, service.certificate_der, b"m", service.signer().sign(b"m"))


@pytest.mark.parametrize("index", [-1, 1, 10**9])
def test_a_roster_refuses_an_index_out_of_range(federation: Any, index: int) -> None:
    site = federation.credentials(Role.SITE, "a")
    with pytest.raises(IdentityError, match="not in the roster"):
        RosterTrust(roster_of(site), federation.trust, NOW).verify(index, site.certificate_der, b"m", b"s")


def test_a_roster_refuses_a_site_that_was_revoked(federation: Any) -> None:
    site = federation.credentials(Role.SITE, "a")
    federation.revoke(site)
    with pytest.raises(IdentityError, match="was revoked"):
        RosterTrust(roster_of(site), federation.trust, NOW).verify(
            0, site.certificate_der, b"m", site.signer().sign(b"m")
        )
