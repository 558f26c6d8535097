"""A look at a service before a channel to it is trusted: gRPC itself only says that a socket was closed.

A TLS 1.3 handshake by the standard library, with our certificate, that shows the service's certificate and hears
whether the service takes ours.
"""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from fl_core.errors import ConfigError, IdentityError, PeerLost
from fl_core.transport.identity import Identity, Role, pinned_name
from fl_core.transport.tls import Credentials

_SECOND_LOOK_S = 0.2
_OLD_TLS = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE")
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


@dataclass(frozen=True, slots=True)
class ServiceCertificate:
    """The certificate that a service showed, after it was checked.

    Args:
        certificate_der: the certificate.
        identity: whom it stands for.
    """

    certificate_der: bytes
    identity: Identity


async def check_service(
    address: str,
    credentials: Credentials,
    role: Role,
    *,
    pinned_id: str | None = None,
    timeout_s: float = 10.0,
    now: datetime | None = None,
) -> ServiceCertificate:
    """Check who listens at an address, and that it takes our certificate.

    Args:
        address: host:port.
        credentials: our own certificate, the pinned CA and its revocation list.
        role: the role that the service must have.
        pinned_id: the id that it must have; any when None.
        timeout_s: for the connection and both verdicts.
        now: time of the check; the clock when None.

    Returns:
        The certificate of the service.

    Raises:
        IdentityError: the service's certificate is expired, revoked, of another federation, role or id; it speaks
            no TLS 1.3; or ours is expired, revoked or refused.
        PeerLost: nobody listens there or nobody answers in time.
        ConfigError: the address cannot be read.
    """
    look = _Look(address, *_split(address), credentials, role, pinned_id, now or datetime.now(UTC))
    credentials.trust.check(credentials.certificate_der, look.now)
    try:
        async with asyncio.timeout(timeout_s):
            return await look.twice()
    except TimeoutError as error:
        raise PeerLost(f"the {role.value} at {address} did not answer", expected=f"within {timeout_s:g} s") from error


class _Closed(Exception):
    """The service closed the connection without a word, after both certificates were shown."""


@dataclass(frozen=True, slots=True)
class _Look:
    """One question: who is there, and does it take our certificate?"""

    address: str
    host: str
    port: int
    credentials: Credentials
    role: Role
    pinned_id: str | None
    now: datetime

    async def twice(self) -> ServiceCertificate:
        # gRPC refuses a certificate by closing the connection; so does a service that is going down. The second
        # look tells them apart, because a service that went down does not listen any more.
        try:
            return await self.once()
        except _Closed:
            await asyncio.sleep(_SECOND_LOOK_S)
        try:
            return await self.once()
        except _Closed as closed:
            raise self._refused("the connection was closed without a reason") from closed

    async def once(self) -> ServiceCertificate:
        reader, writer = await self._connect()
        try:
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            identity = self._check_identity(certificate)
            await self._await_verdict(reader)
            return ServiceCertificate(certificate, identity)
        finally:
            # Not closed politely: nobody waits for the rest of a connection that was only a look.
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        own = self.credentials
        context = _context(own.certificate_path, own.key_path, own.certificate_der)
        try:
            return await asyncio.open_connection(
                self.host, self.port, ssl=context, server_hostname=pinned_name(self.role)
            )
        except ssl.SSLError as error:
            raise self._handshake_error(error) from error
        except OSError as error:
            raise PeerLost(
                f"no {self.role.value} can be reached at {self.address}",
                got=error.strerror or type(error).__name__,
                fix="check the address and that the service runs",
            ) from error

    def _check_identity(self, certificate: bytes) -> Identity:
        identity = self.credentials.trust.check(certificate, self.now)
        if identity.role is not self.role:
            raise IdentityError(
                f"the service at {self.address} has the wrong role",
                expected=self.role.value,
                got=identity,
                fix="correct the address",
            )
        if self.pinned_id is not None and identity.id != self.pinned_id:
            raise IdentityError(
                f"the {self.role.value} at {self.address} is another one", expected=self.pinned_id, got=identity
            )
        return identity

    async def _await_verdict(self, reader: asyncio.StreamReader) -> None:
        # In TLS 1.3 a client learns after its own handshake whether its certificate was taken: by the first bytes
        # of HTTP/2, or by an alert.
        try:
            first = await reader.read(1)
        except ssl.SSLError as error:
            raise self._refused(_reason(error)) from error
        except OSError as error:
            raise _Closed from error
        if not first:
            raise _Closed

    def _refused(self, reason: str) -> IdentityError:
        return IdentityError(
            f"the {self.role.value} at {self.address} refuses our certificate {self.credentials.identity}",
            got=reason,
            fix=f"check {self.credentials.certificate_path} and that both ends pin the same CA",
        )

    def _handshake_error(self, error: ssl.SSLError) -> IdentityError | PeerLost:
        reason = _reason(error)
        if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError):
            return PeerLost(f"the {self.role.value} at {self.address} closed the connection", got=reason)
        if any(part in reason for part in _OLD_TLS):
            return IdentityError(
                f"the {self.role.value} at {self.address} does not speak TLS 1.3", expected="TLS 1.3", got=reason
            )
        if any(part in reason for part in _NOT_TLS):
            return IdentityError(f"what listens at {self.address} does not speak TLS", got=reason)
        return IdentityError(
            f"no handshake with the {self.role.value} at {self.address} as {self.credentials.identity}", got=reason
        )


@lru_cache(maxsize=64)
def _context(certificate_path: Path, key_path: Path, certificate_der: bytes) -> ssl.SSLContext:  # noqa: ARG001
    """Shows the certificate of these files. A renewed one is another, so that its context is made anew."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    # OpenSSL would refuse a bad certificate without showing it. TrustStore makes the same checks and more, and can
    # say what is wrong; that the peer holds the certificate's key is proved by the handshake in any case.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(certificate_path, key_path)
    return context


def _reason(error: ssl.SSLError) -> str:
    return str(error.reason or type(error).__name__)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise ConfigError("the address of a service cannot be read", expected="host:port", got=repr(address))
    return host.removeprefix("[").removesuffix("]"), int(port)
