"""The three services that a site dials: only by TLS, only with the certificate of the right party."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import grpc
import structlog

from client_sdk.network import DirectNetwork, Network
from client_sdk.policy import check_services, endpoints
from fl_core.errors import LocalProtocolError, NotLeading, TacitError
from fl_core.rounds.plan import RoundPlan, ServiceEndpoint
from fl_core.transport.identity import Identity, Role
from fl_core.transport.tls import Credentials, LiveCredentials
from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceStub
from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceStub
from fl_core.wire.v1.keyserver_pb2_grpc import KeyServerServiceStub

if TYPE_CHECKING:
    from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceAsyncStub
    from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceAsyncStub
    from fl_core.wire.v1.keyserver_pb2_grpc import KeyServerServiceAsyncStub

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """Where the updates and the keys of one attempt go."""

    aggregator: "AggregatorServiceAsyncStub"
    secure_keyserver: "KeyServerServiceAsyncStub | None"
    keyserver_certificate_der: bytes = b""

    @property
    def keyserver(self) -> "KeyServerServiceAsyncStub":
        """The key server of a secure attempt.

        Raises:
            LocalProtocolError: the attempt is plain.
        """
        if self.secure_keyserver is None:
            raise LocalProtocolError("a plain attempt has no key server", expected="a secure attempt")
        return self.secure_keyserver


@dataclass(frozen=True, slots=True)
class _Link:
    """An open channel and the certificate (DER) that its service showed."""

    channel: grpc.aio.Channel
    certificate: bytes


class Connections:
    """Channels of one site. The certificate of this site is read again at each new connection to the coordinator.

    Args:
        credentials: of this site.
        coordinators: host:port of each replica; one of them drives the rounds.
        network: the way to the services.
    """

    def __init__(self, credentials: Credentials, coordinators: Sequence[str], network: Network | None = None) -> None:
        self._live = LiveCredentials(credentials, _log_reload)
        self._credentials = credentials
        self._addresses = tuple(coordinators)
        self._place = 0
        self._network = network or DirectNetwork()
        self._coordinator: _Link | None = None
        self._replicas: dict[str, _Link] = {}
        self._services: dict[tuple[Role, ServiceEndpoint], _Link] = {}

    @property
    def credentials(self) -> Credentials:
        """The certificate and key that the coordinator knows this site by."""
        return self._credentials

    @property
    def has_new_certificate(self) -> bool:
        """Whether the files hold another certificate than the one that the coordinator knows."""
        return self._live.current is not self._credentials

    @property
    def identity(self) -> Identity:
        """Who this site is."""
        return self._credentials.identity

    @property
    def coordinator(self) -> "CoordinatorServiceAsyncStub":
        """The coordinator.

        Raises:
            LocalProtocolError: `connect` was not called.
        """
        if self._coordinator is None:
            raise LocalProtocolError("there is no connection to the coordinator", expected="connect first")
        # The generated class serves both kinds of channel; its type knows only the blocking one.
        return cast("CoordinatorServiceAsyncStub", CoordinatorServiceStub(self._coordinator.channel))

    @property
    def replicas(self) -> int:
        """How many coordinators this site knows."""
        return len(self._addresses)

    @property
    def coordinator_address(self) -> str:
        """host:port of the replica that is called now."""
        return self._addresses[self._place]

    def turn(self, error: TacitError) -> None:
        """Call another replica from now on, where there is one: the one that drives the rounds, as far as it is named.

        Only addresses of this site's own configuration are called, whatever a coordinator says.

        Args:
            error: why the present one is of no use.
        """
        named = str(error.expected) if isinstance(error, NotLeading) else ""
        following = (self._place + 1) % len(self._addresses)
        self._place = self._addresses.index(named) if named in self._addresses else following

    async def connect(self) -> "CoordinatorServiceAsyncStub":
        """Look at the coordinator's certificate, and open a channel if there is none for it.

        Raises:
            IdentityError: the coordinator shows a wrong, expired or revoked certificate.
            PeerLost: nobody listens.
        """
        if self._live.current is not self._credentials:
            await self.close()
            self._credentials = self._live.current
        certificate = await self._look_at(self.coordinator_address, Role.COORDINATOR, None)
        address = self.coordinator_address
        known = self._replicas.get(address)
        channel = known.channel if known else self._network.open(address, self._credentials, Role.COORDINATOR, None)
        # The channel to another replica stays open: a call of the running attempt may be on it.
        self._coordinator = self._replicas[address] = _Link(channel, certificate)
        return self.coordinator

    async def services(self, plan: RoundPlan) -> Services:
        """The services of a plan, once each has shown that it is the party that the plan names.

        Raises:
            PolicyRefused: a service is another party, or one party has two roles.
            IdentityError: a service shows a wrong, expired or revoked certificate.
            PeerLost: nobody listens.
        """
        if self._coordinator is None:
            raise LocalProtocolError("there is no connection to the coordinator", expected="connect first")
        links = {role: await self._link(role, endpoint) for role, endpoint in endpoints(plan).items()}
        certificates = {role: link.certificate for role, link in links.items()}
        check_services(plan, {Role.COORDINATOR: self._coordinator.certificate, **certificates})
        aggregator = cast("AggregatorServiceAsyncStub", AggregatorServiceStub(links[Role.AGGREGATOR].channel))
        if Role.KEYSERVER not in links:
            return Services(aggregator, None)
        keyserver = cast("KeyServerServiceAsyncStub", KeyServerServiceStub(links[Role.KEYSERVER].channel))
        return Services(aggregator, keyserver, certificates[Role.KEYSERVER])

    async def close(self) -> None:
        """Close every channel."""
        links = [*self._services.values(), *self._replicas.values()]
        self._services, self._replicas, self._coordinator = {}, {}, None
        for link in links:
            await link.channel.close()

    async def _link(self, role: Role, endpoint: ServiceEndpoint) -> _Link:
        known = self._services.get((role, endpoint))
        if known is not None:
            # The handshake was long ago; meanwhile the certificate may have been revoked.
            self._live.trust.check(known.certificate, datetime.now(UTC))
            return known
        certificate = await self._look_at(endpoint.address, role, endpoint.service_id)
        await self._drop_others(role)
        channel = self._network.open(endpoint.address, self._credentials, role, endpoint.service_id)
        self._services[role, endpoint] = _Link(channel, certificate)
        return self._services[role, endpoint]

    async def _drop_others(self, role: Role) -> None:
        """A site needs one aggregator and one key server at a time."""
        for key in [key for key in self._services if key[0] is role]:
            await self._services.pop(key).channel.close()

    async def _look_at(self, address: str, role: Role, service_id: str | None) -> bytes:
        shown = await self._network.look_at(address, self._live.current, role, service_id)
        return shown.certificate_der


def _log_reload(error: TacitError | None) -> None:
    if error is None:
        log.info("certificate_reloaded")
    else:
        log.error("certificate_reload_failed", error=str(error))
