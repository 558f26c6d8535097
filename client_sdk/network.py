"""How a site reaches services: straight to the address that the plan names, unless its program brings another way."""

from typing import Protocol

import grpc

from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.preflight import ServiceCertificate, check_service
from fl_core.transport.tls import Credentials


class Network(Protocol):
    """The way to a service. Whatever it is, both ends of the TLS connection are the site and the service."""

    async def look_at(
        self, address: str, credentials: Credentials, role: Role, service_id: str | None
    ) -> ServiceCertificate:
        """See who listens at an address; as `fl_core.transport.preflight.check_service`."""

    def open(self, address: str, credentials: Credentials, role: Role, service_id: str | None) -> grpc.aio.Channel:
        """Open a channel to an address; as `fl_core.transport.channel.open_channel`."""


class DirectNetwork:
    """Dials the addresses as they are."""

    async def look_at(
        self, address: str, credentials: Credentials, role: Role, service_id: str | None
    ) -> ServiceCertificate:
        """See who listens at an address."""
        return await check_service(address, credentials, role, pinned_id=service_id)

    def open(self, address: str, credentials: Credentials, role: Role, service_id: str | None) -> grpc.aio.Channel:
        """Open a channel to an address."""
        return open_channel(address, credentials, role, service_id)
