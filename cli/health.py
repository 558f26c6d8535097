"""`tacit health`: does the service of this config answer? For health checks on the machine of the service itself."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.serve import ServiceName

if TYPE_CHECKING:
    from services.runtime.settings import ServiceSettings

TIMEOUT_S = 5.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def health(
    service: Annotated[ServiceName, typer.Argument(help="Which service.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="Its YAML file.", show_default=False)],
) -> None:
    """Ask the service of this config for its health, with its own certificate; ends with 1 when it does not serve."""
    healthy = asyncio.run(_is_serving(service, _settings(service, config)))
    typer.echo("serving" if healthy else "not serving")
    raise typer.Exit(0 if healthy else 1)


def _settings(service: ServiceName, config: Path) -> "ServiceSettings":
    from services.aggregator.settings import AggregatorSettings
    from services.coordinator.settings import CoordinatorSettings
    from services.keyserver.settings import KeyServerSettings

    kinds: dict[ServiceName, type[ServiceSettings]] = {
        ServiceName.COORDINATOR: CoordinatorSettings,
        ServiceName.AGGREGATOR: AggregatorSettings,
        ServiceName.KEYSERVER: KeyServerSettings,
    }
    return kinds[service].from_file(config)


async def _is_serving(service: ServiceName, settings: "ServiceSettings") -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from fl_core.transport.channel import open_channel
    from fl_core.transport.identity import Role
    from services.runtime.settings import split_address

    host, port = split_address(settings.listen)
    host = _ANY_ADDRESS.get(host, host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with open_channel(address, settings.credentials(), Role(service.value), settings.service_id) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
