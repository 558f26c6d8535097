"""The aggregator as a program."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import grpc

from fl_core.transport.channel import Option
from fl_core.transport.identity import Role
from fl_core.transport.tls import LiveCredentials
from fl_core.wire.v1 import aggregator_pb2_grpc
from services.aggregator.service import ROLES, AggregatorService
from services.aggregator.settings import AggregatorSettings
from services.runtime.server import run_program, serve
from services.runtime.warm_up import warm_sums

OPTIONS: tuple[Option, ...] = (
    # Half of what gRPC reads ahead elsewhere, as uploads come from many at once. A far site keeps its speed: while a
    # chunk is awaited, its rest is in the window too.
    ("grpc.http2.lookahead_bytes", 1 << 17),
    # Room for the records of TLS that it sends, on each connection: it only sends answers of a few bytes.
    ("grpc.tsi.max_frame_size", 1 << 12),
)


async def run(settings: AggregatorSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port is in use, or a file of the certificate is missing or wrong.
    """
    service = AggregatorService(settings, LiveCredentials(settings.credentials()))
    try:
        await serve(
            settings,
            role=Role.AGGREGATOR,
            roles_by_method=ROLES,
            add_servicers=partial(add_servicers, service),
            drain=service.drain,
            warm_up=warm_sums,
            options=OPTIONS,
        )
    finally:
        service.close()


def add_servicers(service: AggregatorService, server: grpc.aio.Server) -> None:
    """Register the aggregator at a server."""
    aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server(service, server)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m services.aggregator --config FILE`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="services.aggregator", description="Tacit aggregator: adds what sites upload")
    parser.add_argument("--config", type=Path, required=True, help="configuration (YAML)")
    config: Path = parser.parse_args(arguments).config
    return run_program(lambda: _run_from_file(config))


async def _run_from_file(config: Path) -> None:
    await run(AggregatorSettings.from_file(config))
