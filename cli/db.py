"""`tacit db`: the databases of the services."""

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonOption, print_json
from fl_core.errors import ConfigError

db_app = typer.Typer(help="The databases of the services.", no_args_is_help=True)


@db_app.callback()
def db() -> None:
    """The databases of the services."""


class DatabaseOwner(StrEnum):
    """The services that have a database."""

    COORDINATOR = "coordinator"
    KEYSERVER = "keyserver"


@db_app.command()
def upgrade(
    service: Annotated[DatabaseOwner, typer.Argument(help="Whose database.")] = DatabaseOwner.COORDINATOR,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The service's YAML file.", show_default=False)
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Instead of a config: sqlite:///PATH or postgresql://...", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a database to the newest schema. The services do the same when they start."""
    from services.runtime.database import upgrade as upgrade_schema

    if config is not None and url is None:
        target = _url_in(service, config)
    elif url is not None and config is None:
        target = url
    else:
        raise ConfigError("the database is not named", expected="either --config or --url")
    revision = asyncio.run(upgrade_schema(target, f"services.{service.value}:migrations"))
    if as_json:
        print_json({"revision": revision})
    else:
        typer.echo(f"the database is at revision {revision}")


def _url_in(service: DatabaseOwner, config: Path) -> str:
    from services.coordinator.settings import CoordinatorSettings
    from services.keyserver.settings import KeyServerSettings

    if service is DatabaseOwner.COORDINATOR:
        return CoordinatorSettings.from_file(config).database
    return KeyServerSettings.from_file(config).journal_url
