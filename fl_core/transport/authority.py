"""The federation CA as a folder: it signs and revokes certificates, offline, on a machine that runs no service.

ca.pem       certificate of the CA; every party pins it
ca-key.pem   its private key, readable by its owner only, encrypted when a passphrase is given
crl.pem      revocation list, rewritten at each revocation
issued/      every certificate it signed, by serial number
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_core.crypto.signing import CertificateSigner
from fl_core.errors import ConfigError, IdentityError, NotFound
from fl_core.transport.identity import (
    Identity,
    Role,
    check_federation_name,
    federation_of,
    identity_of,
    parse_names,
    subject_names,
)

CA_DAYS = 3650
CERTIFICATE_DAYS = 365
CRL_DAYS = 365

_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class IssuedFiles:
    """Where the parts of an identity lie.

    Args:
        certificate: certificate (PEM).
        key: private key (PEM), mode 0600.
        ca: CA certificate of the federation (PEM).
        crl: revocation list of the CA's own folder; a service beside it sees revocations at once.
    """

    certificate: Path
    key: Path
    ca: Path
    crl: Path


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that the CA signed.

    Args:
        identity: whom it stands for.
        revoked_at: when it was revoked, or None.
    """

    identity: Identity
    revoked_at: datetime | None

    def status(self, now: datetime) -> str:
        """`valid`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.identity.not_after < now else "valid"


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The CA of one federation. Made by `create` or `load`."""

    folder: Path
    certificate: x509.Certificate
    _private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(
        cls,
        folder: Path,
        federation: str,
        *,
        days: int = CA_DAYS,
        passphrase: str | None = None,
        now: datetime | None = None,
    ) -> "CertificateAuthority":
        """Make a new CA in `folder`.

        Args:
            folder: made when missing, mode 0700.
            federation: its name, one DNS label.
            days: validity.
            passphrase: encrypts the private key.
            now: start of validity; the clock when None.

        Raises:
            ConfigError: the folder already holds a CA or cannot be written.
            IdentityError: the name is not valid.
        """
        check_federation_name(federation)
        _make_folder(folder)
        private_key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(federation, private_key, days, now or datetime.now(UTC))
        write_private_key(folder / "ca-key.pem", private_key, passphrase)
        write_atomically(folder / "ca.pem", certificate.public_bytes(Encoding.PEM))
        authority = cls(folder, certificate, private_key)
        authority._write_revocations([], now or datetime.now(UTC))
        return authority

    @classmethod
    def load(cls, folder: Path, *, passphrase: str | None = None) -> "CertificateAuthority":
        """Open the CA in `folder`.

        Raises:
            ConfigError: there is none, it cannot be read, or the passphrase is wrong.
        """
        certificate_pem, key_pem = _read(folder / "ca.pem"), _read(folder / "ca-key.pem")
        try:
            private_key = load_pem_private_key(key_pem, passphrase.encode() if passphrase else None)
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"the CA in {folder} cannot be opened", fix="check the passphrase and the files ca.pem and ca-key.pem"
            ) from error
        if (
            not isinstance(private_key, ec.EllipticCurvePrivateKey)
            or private_key.public_key() != certificate.public_key()
        ):
            raise ConfigError(f"ca-key.pem in {folder} does not belong to ca.pem")
        return cls(folder, certificate, private_key)

    @property
    def federation(self) -> str:
        """Name of the federation."""
        return federation_of(self.certificate)

    @property
    def ca_path(self) -> Path:
        """Where the certificate of the CA lies."""
        return self.folder / "ca.pem"

    @property
    def crl_path(self) -> Path:
        """Where the revocation list lies."""
        return self.folder / "crl.pem"

    def issue(
        self, role: Role, subject_id: str, out: Path, *, days: float = CERTIFICATE_DAYS, now: datetime | None = None
    ) -> IssuedFiles:
        """Make a key and its certificate in one step, into the folder `out`.

        A shortcut for local clusters: the key is born beside the CA. Elsewhere use `request_certificate` and `sign`.

        Raises:
            ConfigError: `out` already holds a key or cannot be written.
            IdentityError: the id is not valid.
        """
        names = subject_names(self.federation, role, subject_id)
        out.mkdir(parents=True, exist_ok=True)
        private_key = ec.generate_private_key(ec.SECP256R1())
        files = IssuedFiles(out / "certificate.pem", out / "key.pem", out / "ca.pem", self.crl_path)
        write_private_key(files.key, private_key)
        certificate = self._sign(private_key.public_key(), names, role, days, now or datetime.now(UTC))
        write_atomically(files.certificate, certificate.public_bytes(Encoding.PEM))
        write_atomically(files.ca, self.certificate.public_bytes(Encoding.PEM))
        return files

    def sign(
        self,
        request_pem: bytes,
        *,
        role: Role,
        subject_id: str | None = None,
        days: float = CERTIFICATE_DAYS,
        now: datetime | None = None,
    ) -> bytes:
        """Sign the request of a party that keeps its own key.

        Args:
            request_pem: CSR (PEM).
            role: the role that the operator grants; the request must ask for this one.
            subject_id: the id that the operator grants; any when None.
            days: validity.
            now: start of validity; the clock when None.

        Returns:
            The certificate (PEM).

        Raises:
            IdentityError: the request is malformed, unsigned, or asks for something else than was granted.
        """
        request = parse_request(request_pem)
        federation, asked_role, asked_id = parse_names(request.extensions)
        granted = (self.federation, role.value, subject_id or asked_id)
        if (federation, asked_role.value, asked_id) != granted:
            raise IdentityError(
                "the request asks for something else than was granted",
                expected="/".join(granted),
                got=f"{federation}/{asked_role.value}/{asked_id}",
                fix="grant it with --role and --id only when you know who asks",
            )
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IdentityError("the request has a key of the wrong kind", expected="ECDSA P-256")
        names = subject_names(federation, asked_role, asked_id)
        return self._sign(key, names, role, days, now or datetime.now(UTC)).public_bytes(Encoding.PEM)

    def revoke(self, serial: int, *, now: datetime | None = None) -> Identity:
        """Put a certificate on the revocation list. Revoking it again changes nothing.

        Raises:
            NotFound: this CA never signed a certificate of that serial.
        """
        path = self.folder / "issued" / f"{serial:x}.pem"
        if not path.is_file():
            raise NotFound("no certificate with this serial was issued here", got=f"{serial:x}")
        moment = now or datetime.now(UTC)
        revoked = {entry.serial_number: entry for entry in self._revocations()}
        revoked.setdefault(serial, _revoked_entry(serial, moment))
        self._write_revocations(list(revoked.values()), moment)
        return identity_of(_read(path))

    def refresh_revocations(self, *, now: datetime | None = None) -> None:
        """Write the revocation list anew, valid for another `CRL_DAYS` days."""
        self._write_revocations(list(self._revocations()), now or datetime.now(UTC))

    def certificate_der(self, identity: Identity) -> bytes:
        """A certificate that this CA signed, DER.

        Raises:
            ConfigError: its file cannot be read.
        """
        pem = _read(self.folder / "issued" / f"{identity.serial:x}.pem")
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)

    def signer(self) -> CertificateSigner:
        """The key of the CA, for what all parties of the federation must be able to check."""
        return CertificateSigner(self.certificate.public_bytes(Encoding.DER), self._private_key)

    def issued(self) -> list[IssuedCertificate]:
        """Every certificate that this CA signed, by role and id, oldest first."""
        return read_issued(self.folder)[1]

    def _sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        role: Role,
        days: float,
        now: datetime,
    ) -> x509.Certificate:
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if role.is_service else [])
        builder = (
            x509.CertificateBuilder()
            .subject_name(_common_name(str(names[0].value).rsplit("/", 1)[-1]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(min(now + timedelta(days=days), self.certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._private_key.public_key()), False)
        )
        certificate = builder.sign(self._private_key, hashes.SHA256())
        issued = self.folder / "issued"
        issued.mkdir(exist_ok=True)
        write_atomically(issued / f"{certificate.serial_number:x}.pem", certificate.public_bytes(Encoding.PEM))
        return certificate

    def _revocations(self) -> x509.CertificateRevocationList:
        return _load_revocations(self.crl_path)

    def _write_revocations(self, revoked: list[x509.RevokedCertificate], now: datetime) -> None:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _CLOCK_SKEW)
            .next_update(now + timedelta(days=CRL_DAYS))
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(entry)
        pem = builder.sign(self._private_key, hashes.SHA256()).public_bytes(Encoding.PEM)
        write_atomically(self.crl_path, pem)


def request_certificate(out: Path, federation: str, role: Role, subject_id: str) -> tuple[Path, Path]:
    """Make a key that never leaves `out`, and the request that goes to the CA.

    Returns:
        Paths of the private key (mode 0600) and of the CSR.

    Raises:
        ConfigError: `out` already holds a key or cannot be written.
        IdentityError: a name is not valid.
    """
    names = subject_names(federation, role, subject_id)
    out.mkdir(parents=True, exist_ok=True)
    private_key = ec.generate_private_key(ec.SECP256R1())
    write_private_key(out / "key.pem", private_key)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_common_name(subject_id))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(private_key, hashes.SHA256())
    )
    write_atomically(out / "request.pem", request.public_bytes(Encoding.PEM))
    return out / "key.pem", out / "request.pem"


def read_issued(folder: Path) -> tuple[str, list[IssuedCertificate]]:
    """What the CA in `folder` has issued, from its public files alone.

    Returns:
        Name of the federation, and its certificates by role and id, oldest first.

    Raises:
        ConfigError: there is no CA in the folder or a file cannot be read.
    """
    try:
        federation = federation_of(x509.load_pem_x509_certificate(_read(folder / "ca.pem")))
    except ValueError as error:
        raise ConfigError(f"{folder / 'ca.pem'} cannot be parsed") from error
    revoked = {entry.serial_number: entry.revocation_date_utc for entry in _load_revocations(folder / "crl.pem")}
    identities = [identity_of(_read(path)) for path in (folder / "issued").glob("*.pem")]
    identities.sort(key=lambda identity: (identity.role, identity.id, identity.not_after))
    return federation, [IssuedCertificate(identity, revoked.get(identity.serial)) for identity in identities]


def is_encrypted(folder: Path) -> bool:
    """Whether opening the CA in `folder` takes a passphrase.

    Raises:
        ConfigError: the key cannot be read.
    """
    return b"ENCRYPTED PRIVATE KEY" in _read(folder / "ca-key.pem")


def parse_request(request_pem: bytes) -> x509.CertificateSigningRequest:
    """Parse a CSR and check that it is signed by its own key.

    Raises:
        IdentityError: it cannot be parsed or the signature does not verify.
    """
    try:
        request = x509.load_pem_x509_csr(request_pem)
    except ValueError as error:
        raise IdentityError("the request cannot be parsed", expected="a certificate request (PEM)") from error
    if not request.is_signature_valid:
        raise IdentityError("the request is not signed by its own key", fix="make it with `tacit pki request`")
    return request


def write_private_key(path: Path, private_key: ec.EllipticCurvePrivateKey, passphrase: str | None = None) -> None:
    """Write a private key that only its owner can read, from the first byte on.

    Raises:
        ConfigError: the file exists or cannot be written.
    """
    encryption: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    )
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists and is not overwritten", fix="move it away first") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", got=error.strerror) from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
        stream.flush()
        os.fsync(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole, so that no reader ever sees half of it.

    Raises:
        ConfigError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", got=error.strerror) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made", got=error.strerror) from error
    if (folder / "ca.pem").exists():
        raise ConfigError(f"{folder} already holds a CA", fix="take another folder")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", got=error.strerror) from error


def _load_revocations(path: Path) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(_read(path))
    except ValueError as error:
        raise ConfigError(f"the revocation list {path} cannot be parsed") from error


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _self_signed(
    federation: str, private_key: ec.EllipticCurvePrivateKey, days: int, now: datetime
) -> x509.Certificate:
    public_key = private_key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(federation))
        .issuer_name(_common_name(federation))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(private_key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _revoked_entry(serial: int, moment: datetime) -> x509.RevokedCertificate:
    return x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment).build()
