"""Who calls: the certificate of each call is checked again, against role, TLS version and revocation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pool

from fl_core.errors import ConfigError, IdentityError, PermissionRefused
from fl_core.transport.identity import Identity, Role, TrustStore, cached_identity

Context = grpc.aio.ServicerContext[Any, Any]
RoleTable = Mapping[str, frozenset[Role]]

ANYONE: frozenset[Role] = frozenset(Role)
"""Every party that holds a certificate of the federation."""

OPEN_METHODS: RoleTable = MappingProxyType(
    {
        "/grpc.health.v1.Health/Check": ANYONE,
        "/grpc.health.v1.Health/Watch": ANYONE,
        "/grpc.health.v1.Health/List": ANYONE,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ANYONE,
    }
)
"""Methods of every service, for every party with a certificate."""


def role_table(service: str, roles: Mapping[str, Iterable[Role]]) -> dict[str, frozenset[Role]]:
    """Who may call which method of one service.

    Args:
        service: full name, such as `fl_core.wire.v1.AggregatorService`.
        roles: roles by method name; must name every method of the service and no other.

    Returns:
        Roles by full method path, as `serve` takes them.

    Raises:
        ConfigError: a method is missing or unknown. A method that nobody thought of must not be open.
    """
    methods = {method.name for method in descriptor_pool.Default().FindServiceByName(service).methods}
    if methods != set(roles):
        raise ConfigError(
            f"the role table of {service} does not fit its methods",
            expected=sorted(methods - set(roles)) or "no other methods",
            got=sorted(set(roles) - methods) or "nothing for them",
        )
    return {f"/{service}/{method}": frozenset(allowed) for method, allowed in roles.items()}


def caller(context: Context) -> Identity:
    """The party that makes this call. `Gatekeeper` has checked it before a handler runs.

    Raises:
        IdentityError: the call came without a certificate.
    """
    return cached_identity(_peer_certificate(context))


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Decides whether a call may reach its handler.

    Args:
        trust: the pinned federation, asked at each call so that revocations count at once.
        table: roles by full method path.
        clock: gives aware time.
    """

    trust: Callable[[], TrustStore]
    table: RoleTable
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def admit(self, method: str, context: Context) -> Identity:
        """Check TLS version, certificate and role of a call.

        Raises:
            IdentityError: no certificate, or one that is expired, revoked or of another federation; or old TLS.
            PermissionRefused: the role may not call this method.
        """
        identity = self.recheck(connection_of(context))
        allowed = self.table.get(method, frozenset())
        if identity.role not in allowed:
            raise PermissionRefused(
                f"{identity.name} may not call {method.rsplit('/', 1)[-1]}",
                expected=f"a certificate of role {' or '.join(sorted(allowed)) or 'none; nobody may call it'}",
                got=identity.role.value,
            )
        return identity

    def recheck(self, connection: "Connection") -> Identity:
        """Check TLS version and certificate, once more in the middle of a long stream.

        Raises:
            IdentityError: as `admit`.
        """
        if connection.tls_version != b"TLSv1.3":
            raise IdentityError(
                "the connection is not safe enough",
                expected="TLS 1.3",
                got=connection.tls_version.decode("ascii", "replace") or "none",
            )
        return self.trust().check(connection.certificate, self.clock())


class Connection(NamedTuple):
    """What was agreed when the caller connected; it stays the same as long as the connection."""

    tls_version: bytes
    certificate: bytes


def connection_of(context: Context) -> Connection:
    """The connection of a call.

    Raises:
        IdentityError: it came without a certificate.
    """
    return Connection(_first(context, "ssl_tls_version"), _peer_certificate(context))


def _peer_certificate(context: Context) -> bytes:
    certificate = _first(context, "x509_pem_cert")
    if not certificate:
        raise IdentityError("the call came without a certificate", fix="connect with a certificate of the federation")
    return certificate


def _first(context: Context, name: str) -> bytes:
    values = list(context.auth_context().get(name, ()))
    return bytes(values[0]) if values else b""
