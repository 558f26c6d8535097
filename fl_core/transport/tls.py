"""The certificate of this party and the CA that it pinned, read from files, for servers and for channels."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fl_core.crypto import labels
from fl_core.crypto.agreement import derive_key
from fl_core.crypto.sealed_box import CertificateOpener
from fl_core.crypto.signing import CertificateSigner
from fl_core.errors import ConfigError, IdentityError, TacitError
from fl_core.transport.identity import Identity, Role, TrustStore, parse_certificate

SCALAR_BYTES = 32
"""Of P-256."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The identity of this party. Made by `Credentials.from_files`.

    Args:
        identity: whom the certificate stands for.
        certificate_path: certificate (PEM).
        key_path: private key (PEM).
        ca_path: pinned CA (PEM).
        crl_path: revocation list (PEM), or None.
        certificate_der: the certificate.
        trust: the pinned federation, as the files were when they were read.
    """

    identity: Identity
    certificate_path: Path
    key_path: Path
    ca_path: Path
    crl_path: Path | None
    certificate_der: bytes
    trust: TrustStore = field(repr=False)
    _ca_pem: bytes = field(repr=False)
    _certificate_pem: bytes = field(repr=False)
    _key_pem: bytes = field(repr=False)

    @classmethod
    def from_files(
        cls, certificate: Path, key: Path, ca: Path, crl: Path | None = None, *, now: datetime | None = None
    ) -> "Credentials":
        """Read and check the files of one party.

        Args:
            certificate: certificate (PEM).
            key: its private key (PEM, not encrypted).
            ca: pinned CA certificates (PEM).
            crl: revocation list (PEM).
            now: time of the check; the clock when None.

        Raises:
            ConfigError: a file is missing or unreadable, the key does not belong to the certificate or may be read
                by everybody, or the certificate is expired, revoked or of another federation.
        """
        certificate_pem, key_pem = _read("certificate", certificate), _read_key(key)
        ca_pem = _read("CA certificate", ca)
        trust = load_trust(ca, crl)
        parsed, identity = _check_own(certificate, certificate_pem, trust, now or datetime.now(UTC))
        _check_pair(parsed, certificate, _parse_key(key, key_pem), key)
        der = parsed.public_bytes(Encoding.DER)
        return cls(identity, certificate, key, ca, crl, der, trust, ca_pem, certificate_pem, key_pem)

    def signer(self) -> CertificateSigner:
        """The key of the certificate, for the signatures of secure aggregation."""
        return CertificateSigner(self.certificate_der, _parse_key(self.key_path, self._key_pem))

    def opener(self) -> CertificateOpener:
        """The key of the certificate, for what was sealed to it."""
        return CertificateOpener(_parse_key(self.key_path, self._key_pem))

    def storage_key(self) -> bytes:
        """32 bytes that only a holder of the private key can derive, for what this party keeps on its own disk.

        Source: RFC 5869; the input is the private key itself, which has full entropy.
        """
        number = _parse_key(self.key_path, self._key_pem).private_numbers().private_value
        info = labels.encode_fields(labels.STORAGE, self.identity.role.value, self.identity.id)
        return derive_key(number.to_bytes(SCALAR_BYTES, "big"), salt=b"", info=info, length=SCALAR_BYTES)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a client: shows our certificate and accepts servers of the pinned CA only."""
        return grpc.ssl_channel_credentials(self._ca_pem, self._key_pem, self._certificate_pem)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """For a server: what the next handshake uses."""
        return grpc.ssl_server_certificate_configuration([(self._key_pem, self._certificate_pem)], self._ca_pem)

    def reload(self) -> "Credentials":
        """Read the same files again.

        Raises:
            ConfigError: as `from_files`.
        """
        return Credentials.from_files(self.certificate_path, self.key_path, self.ca_path, self.crl_path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that these credentials came from."""
        own = (self.certificate_path, self.key_path, self.ca_path)
        return own if self.crl_path is None else (*own, self.crl_path)


class LiveCredentials:
    """Credentials that follow their files: renewed certificates, new CAs and revocations count without a restart.

    Our own certificate and whom we trust are followed apart, so that a revocation list counts even when our own
    certificate stands on it.

    Args:
        credentials: as they were read at the start.
        on_reload: told after each reload with None, or with the error that made the old state stay.
    """

    def __init__(self, credentials: Credentials, on_reload: Callable[[TacitError | None], None] | None = None) -> None:
        tell = on_reload or (lambda _error: None)
        ca, crl = credentials.ca_path, credentials.crl_path
        pinned = (ca,) if crl is None else (ca, crl)
        self._credentials = _Followed(credentials, credentials.paths, credentials.reload, tell)
        self._trust = _Followed(credentials.trust, pinned, lambda: load_trust(ca, crl), tell)

    @property
    def current(self) -> Credentials:
        """The credentials as the files are now; the last good ones while the files are broken."""
        return self._credentials.current()

    @property
    def trust(self) -> TrustStore:
        """The pinned federation as the files are now; the last good one while the files are broken."""
        return self._trust.current()

    def server_credentials(self, on_handshake: Callable[[], None] = lambda: None) -> grpc.ServerCredentials:
        """Server side of mTLS: no client without a certificate of the pinned CA; files are followed.

        Args:
            on_handshake: told of each handshake that begins, in a thread of gRPC.
        """
        served = self.current

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # gRPC calls this in a thread of its own at every handshake, so the common case is a few stat calls.
            nonlocal served
            on_handshake()
            current = self.current
            if current is served:
                return None
            served = current
            return current.server_configuration()

        # None means "unchanged", which the type stubs do not know.
        return grpc.dynamic_ssl_server_credentials(
            served.server_configuration(),
            fetch,  # type: ignore[arg-type]
            require_client_authentication=True,
        )


class _Followed(Generic[T]):
    """A value that is read again when one of its files changed."""

    def __init__(
        self, value: T, paths: tuple[Path, ...], read: Callable[[], T], tell: Callable[[TacitError | None], None]
    ) -> None:
        self._value, self._paths, self._read, self._tell = value, paths, read, tell
        self._stamp = _stamp(paths)

    def current(self) -> T:
        stamp = _stamp(self._paths)
        if stamp == self._stamp:
            return self._value
        self._stamp = stamp
        try:
            self._value = self._read()
        except TacitError as error:
            self._tell(error)
        else:
            self._tell(None)
        return self._value


def load_trust(ca: Path, crl: Path | None = None) -> TrustStore:
    """Read the pinned CA and, if there is one, its revocation list.

    Raises:
        ConfigError: a file is missing or unreadable.
    """
    ca_pem = _read("CA certificate", ca)
    crl_pem = None if crl is None else _read("revocation list", crl)
    try:
        return TrustStore(ca_pem, crl_pem)
    except TacitError as error:
        source = str(ca) if crl is None else f"{ca} or {crl}"
        raise ConfigError(f"the trust in {source} cannot be used: {error}") from error


def check_role(credentials: Credentials, *roles: Role) -> None:
    """Check that our own certificate is of one of `roles`.

    Raises:
        ConfigError: it is of another.
    """
    if credentials.identity.role not in roles:
        raise ConfigError(
            f"the certificate {credentials.certificate_path} has the wrong role",
            expected=" or ".join(role.value for role in roles),
            got=credentials.identity.role.value,
            fix="issue one for this role with `tacit pki issue`",
        )


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the {what} {path} cannot be read",
            expected="a readable PEM file",
            got=error.strerror,
            fix="make it with `tacit pki` or correct the path",
        ) from error


def _read_key(path: Path) -> bytes:
    pem = _read("private key", path)
    if path.stat().st_mode & 0o007:
        raise ConfigError(f"the private key {path} may be read by everybody", fix=f"run `chmod 600 {path}`")
    return pem


def _parse_key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        private_key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        # The parser's own message may quote the file, so it is not chained.
        raise ConfigError(f"the private key {path} cannot be parsed", expected="a PEM key without passphrase") from None
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"the private key {path} is of the wrong kind", expected="ECDSA P-256")
    return private_key


def _check_own(path: Path, pem: bytes, trust: TrustStore, now: datetime) -> tuple[x509.Certificate, Identity]:
    try:
        certificate = parse_certificate(pem)
        return certificate, trust.check(certificate.public_bytes(Encoding.DER), now)
    except IdentityError as error:
        raise ConfigError(f"the certificate {path} cannot be used: {error}") from error


def _check_pair(
    certificate: x509.Certificate, certificate_path: Path, private_key: ec.EllipticCurvePrivateKey, key_path: Path
) -> None:
    if private_key.public_key() != certificate.public_key():
        raise ConfigError(f"the key {key_path} does not belong to the certificate {certificate_path}")


def _stamp(paths: tuple[Path, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(_stamp_of(path) for path in paths)


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - called at every handshake and RPC
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
