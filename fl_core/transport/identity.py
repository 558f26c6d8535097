"""Who a certificate stands for, and whether the federation still vouches for it.

A certificate names exactly one party by the URI `tacit://<federation>/<role>/<id>`. Services also carry the DNS names
`<role>.tacit` and `<id>.<role>.tacit`, so that a client can pin a role with the host name check of TLS.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_core.crypto.signing import verify_signature
from fl_core.errors import BadSignature, ConfigError, IdentityError
from fl_core.rounds.plan import RosterEntry

URI_SCHEME = "tacit://"
DNS_SUFFIX = "tacit"
MAX_CERTIFICATE_BYTES = 8192

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_CACHE_LIMIT = 32_768


class Role(StrEnum):
    """What a party may do in a federation."""

    SITE = "site"
    COORDINATOR = "coordinator"
    AGGREGATOR = "aggregator"
    KEYSERVER = "keyserver"
    OPERATOR = "operator"

    @property
    def is_service(self) -> bool:
        """Whether parties of this role listen; only they get a server certificate."""
        return self in (Role.COORDINATOR, Role.AGGREGATOR, Role.KEYSERVER)


_ROLES = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Identity:
    """The party that a certificate stands for.

    Args:
        role: what it may do.
        id: its name, unique within federation and role.
        federation: the federation whose CA signed the certificate.
        serial: serial number of the certificate.
        not_after: end of validity, UTC.
        certificate_sha256: 32 bytes, the SHA-256 of the certificate (DER).
    """

    role: Role
    id: str
    federation: str
    serial: int
    not_after: datetime
    certificate_sha256: bytes

    @property
    def name(self) -> str:
        """`role/id`, as it stands in logs."""
        return f"{self.role.value}/{self.id}"

    def __str__(self) -> str:
        return f"{self.name} (serial {self.serial:x})"


def check_name(role: Role, subject_id: str) -> None:
    """Check that `subject_id` may name a party of `role`.

    Raises:
        IdentityError: it is empty, too long, or has other characters than letters, digits, `.`, `_` and `-`;
            the id of a service must be one DNS label.
    """
    pattern, expected = (
        (_DNS_LABEL, "1 to 63 of a-z, 0-9 and -")
        if role.is_service
        else (_NAME, "1 to 64 letters, digits, '.', '_' or '-', with a letter or digit at both ends")
    )
    if not pattern.fullmatch(subject_id):
        raise IdentityError(f"an id of role {role.value} is not valid", expected=expected, got=repr(subject_id))


def check_federation_name(federation: str) -> None:
    """Check the name of a federation.

    Raises:
        IdentityError: it is not one DNS label.
    """
    if not _DNS_LABEL.fullmatch(federation):
        raise IdentityError(
            "the name of the federation is not valid", expected="1 to 63 of a-z, 0-9 and -", got=repr(federation)
        )


def subject_names(federation: str, role: Role, subject_id: str) -> list[x509.GeneralName]:
    """The subject alternative names of a party: one URI, and for a service its two DNS names.

    Raises:
        IdentityError: a name is not valid.
    """
    check_federation_name(federation)
    check_name(role, subject_id)
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"{URI_SCHEME}{federation}/{role.value}/{subject_id}")
    ]
    if role.is_service:
        names += [x509.DNSName(pinned_name(role)), x509.DNSName(pinned_name(role, subject_id))]
    return names


def pinned_name(role: Role, subject_id: str | None = None) -> str:
    """The DNS name by which TLS checks that a server has `role`, and is `subject_id` when that is given."""
    return f"{role.value}.{DNS_SUFFIX}" if subject_id is None else f"{subject_id}.{role.value}.{DNS_SUFFIX}"


def parse_certificate(certificate: bytes) -> x509.Certificate:
    """Parse a certificate, PEM or DER.

    Raises:
        IdentityError: it is too long or no certificate.
    """
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise IdentityError(
            "the certificate is too long", expected=f"at most {MAX_CERTIFICATE_BYTES} bytes", got=len(certificate)
        )
    try:
        if certificate.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(certificate)
        return x509.load_der_x509_certificate(certificate)
    except ValueError as error:
        raise IdentityError("the certificate cannot be parsed", expected="an X.509 certificate") from error


def federation_of(authority: x509.Certificate) -> str:
    """The federation that a CA certificate stands for.

    Raises:
        IdentityError: the subject has no or several common names.
    """
    names = authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise IdentityError("the CA certificate names no federation", expected="one common name", got=len(names))
    return str(names[0].value)


def identity_of(certificate: x509.Certificate | bytes) -> Identity:
    """Read who a certificate stands for. Does not check that anybody vouches for it; `TrustStore.check` does.

    Args:
        certificate: parsed, or PEM or DER.

    Raises:
        IdentityError: it does not carry exactly one identity of a federation.
    """
    parsed = parse_certificate(certificate) if isinstance(certificate, bytes) else certificate
    federation, role, subject_id = parse_names(parsed.extensions)
    return Identity(
        role=role,
        id=subject_id,
        federation=federation,
        serial=parsed.serial_number,
        not_after=parsed.not_valid_after_utc,
        certificate_sha256=sha256(_der(parsed)).digest(),
    )


def parse_names(extensions: x509.Extensions) -> tuple[str, Role, str]:
    """Federation, role and id from the subject alternative names of a certificate or request.

    Raises:
        IdentityError: there is not exactly one `tacit://` URI, it cannot be read, or the DNS names are others
            than those of this party.
    """
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise IdentityError("the certificate names no party", expected=f"a URI {URI_SCHEME}...") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError("the certificate must name one party", expected=f"one URI {URI_SCHEME}...", got=len(uris))
    federation, role, subject_id = _parse_uri(uris[0])
    if set(names) != set(subject_names(federation, role, subject_id)):
        raise IdentityError(f"the certificate of {role.value}/{subject_id} carries names that are not its own")
    return federation, role, subject_id


def _parse_uri(uri: str) -> tuple[str, Role, str]:
    parts = uri.removeprefix(URI_SCHEME).split("/")
    if not uri.startswith(URI_SCHEME) or len(parts) != 3 or parts[1] not in _ROLES:
        expected = f"{URI_SCHEME}<federation>/<role>/<id>"
        raise IdentityError("the name in the certificate cannot be read", expected=expected, got=repr(uri[:200]))
    federation, role, subject_id = parts[0], Role(parts[1]), parts[2]
    check_federation_name(federation)
    check_name(role, subject_id)
    return federation, role, subject_id


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


# Whether a CA signed a certificate never changes, so that all stores of a process know it once one of them does. The
# key is what was pinned and the certificate; time and revocation are checked anew each time.
_verified: dict[bytes, tuple[Identity, x509.Certificate, x509.Certificate]] = {}


class TrustStore:
    """The pinned CA certificates of one federation and, if there is one, the revocation list.

    Args:
        ca_pem: one CA certificate, or several while the CA is being replaced.
        crl_pem: revocation list, one per CA at most.

    Raises:
        ConfigError: a part cannot be parsed, a CA is none, or the list is not signed by a CA.
    """

    def __init__(self, ca_pem: bytes, crl_pem: bytes | None = None) -> None:
        self._authorities = _load_authorities(ca_pem)
        self.federation = federation_of(self._authorities[0])
        self._revocations = _load_revocations(crl_pem, self._authorities)
        self._pinned = sha256(b"".join(_der(authority) for authority in self._authorities)).digest()

    @property
    def revocations_end(self) -> datetime | None:
        """When the first of the revocation lists is out of date, and nothing is trusted any more; None without one."""
        ends = (revocations.next_update_utc for revocations in self._revocations.values())
        return min((end for end in ends if end is not None), default=None)

    def check(self, certificate_der: bytes, now: datetime) -> Identity:
        """Check that the federation vouches for a certificate at `now` and say who it stands for.

        Args:
            certificate_der: the certificate, DER or PEM.
            now: aware time.

        Raises:
            IdentityError: of another federation, malformed, not yet valid, expired or revoked.
        """
        identity, certificate, authority = self._verify(certificate_der)
        _check_validity(f"the certificate of {identity}", certificate, now)
        _check_validity("the CA certificate of the federation", authority, now)
        self._check_revocation(identity, authority, now)
        return identity

    def check_signed(self, message: bytes, signature: bytes) -> None:
        """Check that a CA of the federation signed a message.

        Raises:
            BadSignature: none of them did.
        """
        for authority in self._authorities[:-1]:
            try:
                verify_signature(_der(authority), message, signature)
            except BadSignature:
                continue
            return
        verify_signature(_der(self._authorities[-1]), message, signature)

    def _verify(self, certificate_der: bytes) -> tuple[Identity, x509.Certificate, x509.Certificate]:
        key = self._pinned + sha256(certificate_der).digest()
        known = _verified.get(key)
        if known is not None:
            return known
        certificate = parse_certificate(certificate_der)
        authority = self._issuer_of(certificate)
        identity = identity_of(certificate)
        _check_leaf(identity, certificate, self.federation)
        if len(_verified) >= _CACHE_LIMIT:
            _verified.clear()
        verified = _verified[key] = identity, certificate, authority
        return verified

    def _issuer_of(self, certificate: x509.Certificate) -> x509.Certificate:
        for authority in self._authorities:
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return authority
        raise IdentityError(
            f"the certificate of {_claimed_name(certificate)} is not of this federation",
            expected=f"signed by the CA of {self.federation!r}",
            got=f"issuer {certificate.issuer.rfc4514_string()!r}",
            fix="compare the ca file of both ends",
        )

    def _check_revocation(self, identity: Identity, authority: x509.Certificate, now: datetime) -> None:
        revocations = self._revocations.get(authority)
        if revocations is None:
            return
        until = revocations.next_update_utc
        if until is not None and until < now:
            raise IdentityError(
                "the revocation list is out of date, so that no certificate can be trusted",
                got=f"next update due {until:%Y-%m-%d %H:%M} UTC",
                fix="renew it with `tacit pki revoke --refresh` and give the new file to every party",
            )
        revoked = revocations.get_revoked_certificate_by_serial_number(identity.serial)
        if revoked is not None:
            raise IdentityError(
                f"the certificate of {identity} was revoked on {revoked.revocation_date_utc:%Y-%m-%d %H:%M} UTC",
                fix="request a new one from the operator of the federation CA",
            )


class RosterTrust:
    """Knows who may be at each index of a roster, for the checks of signed round keys.

    Args:
        roster: the cohort of the plan.
        trust: the pinned federation.
        now: the time at which certificates must be valid, aware.
    """

    def __init__(self, roster: Sequence[RosterEntry], trust: TrustStore, now: datetime) -> None:
        self._roster = tuple(roster)
        self._trust = trust
        self._now = now

    def verify(self, index: int, certificate_der: bytes, message: bytes, signature: bytes) -> None:
        """Check that `certificate_der` is the one of `index`, is valid, and signed `message`.

        Raises:
            BadSignature: the signature does not verify.
            IdentityError: the certificate is another one, expired, revoked or not of this federation.
        """
        if not 0 <= index < len(self._roster):
            raise IdentityError(
                "the index is not in the roster",
                expected=f"0 to {len(self._roster) - 1}",
                got=index,
                fix="use the index of your own certificate in the plan",
            )
        entry = self._roster[index]
        if sha256(certificate_der).digest() != entry.certificate_sha256:
            raise IdentityError(
                f"the certificate at index {index} is not the one of the roster",
                expected=f"{entry.client_id} with fingerprint {entry.certificate_sha256.hex()[:16]}",
                got=f"fingerprint {sha256(certificate_der).hexdigest()[:16]}",
                fix="sign with the certificate that the plan names; a renewed one counts from the next attempt",
            )
        identity = self._trust.check(certificate_der, self._now)
        if identity.role is not Role.SITE or identity.id != entry.client_id:
            raise IdentityError(
                f"the certificate at index {index} stands for somebody else",
                expected=f"site/{entry.client_id}",
                got=identity,
            )
        _verify_once(certificate_der, message, signature)


# A signature that verified once verifies again. Sites that share a process all see the same ones.
_signed: set[bytes] = set()


def _verify_once(certificate_der: bytes, message: bytes, signature: bytes) -> None:
    check = sha256(sha256(certificate_der).digest() + sha256(message).digest() + signature).digest()
    if check in _signed:
        return
    verify_signature(certificate_der, message, signature)
    if len(_signed) >= _CACHE_LIMIT:
        _signed.clear()
    _signed.add(check)


@lru_cache(maxsize=4096)
def cached_identity(certificate: bytes) -> Identity:
    """`identity_of` for a certificate that TLS and `TrustStore` have already accepted."""
    return identity_of(certificate)


def _claimed_name(certificate: x509.Certificate) -> str:
    try:
        return str(identity_of(certificate))
    except IdentityError:
        return f"an unknown party (serial {certificate.serial_number:x})"


def _load_authorities(ca_pem: bytes) -> list[x509.Certificate]:
    try:
        authorities = x509.load_pem_x509_certificates(ca_pem)
    except ValueError as error:
        raise ConfigError("the CA file cannot be parsed", expected="one or more certificates (PEM)") from error
    for authority in authorities:
        _check_authority(authority)
    if len({federation_of(authority) for authority in authorities}) != 1:
        raise ConfigError("the CA file mixes federations", expected="CA certificates of one federation")
    return authorities


def _check_authority(authority: x509.Certificate) -> None:
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        authority.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError("the CA file holds a certificate that is no self-signed CA") from error
    if not constraints.ca:
        raise ConfigError(
            "the CA file holds a certificate that may not sign others",
            got=authority.subject.rfc4514_string(),
            fix="take the ca.pem that `tacit pki init` wrote",
        )


def _load_revocations(
    crl_pem: bytes | None, authorities: list[x509.Certificate]
) -> dict[x509.Certificate, x509.CertificateRevocationList]:
    """Revocation lists by the CA that signed them."""
    revocations: dict[x509.Certificate, x509.CertificateRevocationList] = {}
    for block in _pem_blocks(crl_pem or b""):
        try:
            parsed = x509.load_pem_x509_crl(block)
        except ValueError as error:
            raise ConfigError("the revocation list cannot be parsed", expected="an X.509 CRL (PEM)") from error
        revocations[_signer_of(parsed, authorities)] = parsed
    if crl_pem is not None and not revocations:
        raise ConfigError("the revocation list is empty", expected="an X.509 CRL (PEM)")
    return revocations


def _signer_of(revocations: x509.CertificateRevocationList, authorities: list[x509.Certificate]) -> x509.Certificate:
    for authority in authorities:
        key = authority.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and revocations.is_signature_valid(key):
            return authority
    raise ConfigError("the revocation list is not signed by the CA of the federation")


def _pem_blocks(pem: bytes) -> list[bytes]:
    end = b"-----END X509 CRL-----"
    return [block.lstrip() + end for block in pem.split(end) if block.strip()]


def _check_leaf(identity: Identity, certificate: x509.Certificate, federation: str) -> None:
    if identity.federation != federation:
        raise IdentityError(
            f"the certificate of {identity} is of another federation", expected=federation, got=identity.federation
        )
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"the certificate of {identity} has a key of the wrong kind", expected="ECDSA P-256")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise IdentityError(f"the certificate of {identity} lacks a required extension") from error
    needed = {ExtendedKeyUsageOID.CLIENT_AUTH} | (
        {ExtendedKeyUsageOID.SERVER_AUTH} if identity.role.is_service else set()
    )
    if constraints.ca or not needed <= set(usage):
        raise IdentityError(f"the certificate of {identity} may not be used for this")


def _check_validity(what: str, certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise IdentityError(
            f"{what} is not valid yet",
            expected=f"a time after {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            got=f"{now:%Y-%m-%d %H:%M} UTC",
            fix="check the clock of this machine",
        )
    if now > certificate.not_valid_after_utc:
        raise IdentityError(
            f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            fix="request a new one from the operator of the federation CA",
        )
