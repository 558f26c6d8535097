"""The coordinator as a program."""

import argparse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc

from fl_core.transport.identity import Role
from fl_core.transport.tls import LiveCredentials
from fl_core.wire.v1 import coordinator_pb2_grpc
from services.coordinator.aggregates import AggregateInbox
from services.coordinator.database import upgrade_database
from services.coordinator.driver import Driver
from services.coordinator.evaluation import EvaluationDesk
from services.coordinator.job_store import JobStore
from services.coordinator.leadership import Leadership
from services.coordinator.measures import SITES_CONNECTED
from services.coordinator.models import ModelStore
from services.coordinator.peers import AggregatorPeer, KeyServerPeer
from services.coordinator.placement import ServicePool
from services.coordinator.presence import Presence
from services.coordinator.privacy_desk import PrivacyDesk
from services.coordinator.privacy_store import PrivacyStore
from services.coordinator.resources import Resources, steady_clock
from services.coordinator.round_store import RoundStore
from services.coordinator.service import ROLES, CoordinatorService
from services.coordinator.settings import CoordinatorSettings
from services.coordinator.tables import LEASES
from services.coordinator.traffic import Traffic
from services.coordinator.transcripts import TranscriptStore
from services.runtime.blobs import BlobStore
from services.runtime.database import open_database
from services.runtime.leases import Holder, LeaseStore
from services.runtime.metrics import watch_staging
from services.runtime.server import run_program, running_server, serve
from services.runtime.staging import StagingArea
from services.runtime.warm_up import warm_models

LEFT_OVER_S = 3600.0
"""Of several coordinators on one blob store, none takes longer to write a blob."""


async def run(settings: CoordinatorSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port is in use, a file of the certificate is missing or wrong, or a URL cannot be used.
        StorageError: the database failed.
    """
    async with open_resources(settings) as resources:
        driver = make_driver(settings, resources)
        service = CoordinatorService(settings, resources, driver)
        async with driving(driver, resources):
            await serve(
                settings,
                role=Role.COORDINATOR,
                roles_by_method=ROLES,
                add_servicers=partial(add_servicers, service),
                drain=driver.drain,
                warm_up=warm_models,
            )


@asynccontextmanager
async def running_coordinator(settings: CoordinatorSettings) -> AsyncIterator[str]:
    """A coordinator inside this process, while the block runs; gives host:port. Errors as `run`."""
    async with open_resources(settings) as resources:
        driver = make_driver(settings, resources)
        service = CoordinatorService(settings, resources, driver)
        async with (
            running_server(
                settings, role=Role.COORDINATOR, roles_by_method=ROLES, add_servicers=partial(add_servicers, service)
            ) as address,
            driving(driver, resources),
        ):
            yield address


@asynccontextmanager
async def open_resources(settings: CoordinatorSettings) -> AsyncIterator[Resources]:
    """Database at the newest schema, blob store, and connections to the other services.

    Raises:
        ConfigError: a URL or a file of the certificate cannot be used.
        StorageError: the database failed.
    """
    credentials = LiveCredentials(settings.credentials())
    await upgrade_database(settings.database)
    unfenced = open_database(settings.database)
    leases = LeaseStore(unfenced, LEASES, settings.lease_s)
    own = Holder(settings.service_id, settings.advertised)
    leadership = Leadership(leases, own, is_alone=unfenced.is_sqlite)
    database = replace(unfenced, fence=leadership)
    presence, traffic = Presence(settings.presence_grace_s, settings.heartbeat_s), Traffic()
    blobs, clock = BlobStore(settings.blobs), steady_clock()
    # With SQLite nobody else writes here, so whatever is not whole is from a writer that died.
    await blobs.sweep(0.0 if database.engine.dialect.name == "sqlite" else LEFT_OVER_S)
    staging = StagingArea(settings.state_dir / "spool", settings.memory_budget_bytes)
    live, patience_s = (lambda: credentials.current), settings.service_patience_s
    resources = Resources(
        jobs=JobStore(database),
        rounds=RoundStore(database),
        models=ModelStore(blobs),
        transcripts=TranscriptStore(blobs, lambda: credentials.current, clock),
        leadership=leadership,
        presence=presence,
        aggregators=ServicePool([AggregatorPeer(one, live, patience_s) for one in settings.aggregator], patience_s),
        keyservers=ServicePool([KeyServerPeer(one, live, patience_s) for one in settings.keyserver], patience_s),
        evaluations=EvaluationDesk(presence, traffic),
        traffic=traffic,
        clock=clock,
        privacy=PrivacyDesk(PrivacyStore(database), clock),
        inbox=AggregateInbox(staging),
    )
    SITES_CONNECTED.set_function(lambda: len(presence.connected()))
    watch_staging(lambda: staging.free_bytes, settings.memory_budget_bytes)
    try:
        yield resources
    finally:
        await resources.close()
        await database.close()


def make_driver(settings: CoordinatorSettings, resources: Resources) -> Driver:
    """The driver that the settings describe."""
    return Driver(
        resources,
        concurrent_jobs=settings.concurrent_jobs,
        evaluation_timeout_s=settings.evaluation_timeout_s,
    )


@asynccontextmanager
async def driving(driver: Driver, resources: Resources) -> AsyncIterator[None]:
    """Run jobs while the block runs and this replica leads. When the driver fails, its error ends the block."""
    async with resources.leadership.driving(driver.run, resources.presence.dismiss):
        yield


def add_servicers(service: CoordinatorService, server: grpc.aio.Server) -> None:
    """Register the coordinator at a server."""
    coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(service, server)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m services.coordinator --config FILE`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="services.coordinator", description="Tacit coordinator: jobs, cohorts, rounds and the global model"
    )
    parser.add_argument("--config", type=Path, required=True, help="configuration (YAML)")
    config: Path = parser.parse_args(arguments).config
    return run_program(lambda: _run_from_file(config))


async def _run_from_file(config: Path) -> None:
    await run(CoordinatorSettings.from_file(config))
