"""The key server as a program."""

import argparse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from fl_core.crypto import agreement_engine, mask_engine
from fl_core.transport.identity import Role
from fl_core.transport.tls import LiveCredentials
from fl_core.wire.v1 import keyserver_pb2_grpc
from services.keyserver.journal import UnmaskJournal
from services.keyserver.service import ROLES, KeyServerService
from services.keyserver.settings import KeyServerSettings
from services.runtime.server import run_program, serve
from services.runtime.warm_up import warm_masks

if TYPE_CHECKING:
    from services.keyserver.decryption import DecryptionDesk

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_service(settings: KeyServerSettings) -> AsyncIterator[KeyServerService]:
    """The servicer with its journal, while the block runs.

    Raises:
        ConfigError: a file of the certificate is missing or wrong, or database_url is.
        StorageError: the database failed.
    """
    credentials = LiveCredentials(settings.credentials())
    journal = await UnmaskJournal.open(settings.journal_url)
    service = KeyServerService(settings, credentials, journal, _desk(settings, credentials, journal))
    try:
        yield service
    finally:
        await service.close()
        await journal.close()


async def run(settings: KeyServerSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port is in use, or a file of the certificate is missing or wrong.
        StorageError: the database failed.
    """
    async with open_service(settings) as service:
        await serve(
            settings,
            role=Role.KEYSERVER,
            roles_by_method=ROLES,
            add_servicers=partial(add_servicers, service),
            drain=service.drain,
            warm_up=warm_masks,
        )


def _desk(settings: KeyServerSettings, credentials: LiveCredentials, journal: UnmaskJournal) -> "DecryptionDesk | None":
    if settings.paillier_key is None and settings.paillier_dealing is None and settings.paillier_share is None:
        return None
    from services.keyserver.decryption import DecryptionDesk
    from services.keyserver.paillier_keys import PaillierKeyRing
    from services.keyserver.shared_key import SharedCustody

    ring = PaillierKeyRing.from_settings(settings)
    shared = SharedCustody.from_settings(settings, credentials.current)
    return DecryptionDesk(ring, shared, credentials, journal, settings.mask_threads, settings.message_timeout_seconds)


def add_servicers(service: KeyServerService, server: grpc.aio.Server) -> None:
    """Register the key server at a server, and say which code its masks and agreements are made by."""
    log.info("engines_chosen", masks=mask_engine.chosen_engine(), agreements=agreement_engine.supported_engines()[0])
    keyserver_pb2_grpc.add_KeyServerServiceServicer_to_server(service, server)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m services.keyserver --config FILE`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="services.keyserver", description="Tacit key server: keys, sealed shares and unmasking"
    )
    parser.add_argument("--config", type=Path, required=True, help="configuration (YAML)")
    config: Path = parser.parse_args(arguments).config
    return run_program(lambda: _run_from_file(config))


async def _run_from_file(config: Path) -> None:
    await run(KeyServerSettings.from_file(config))
