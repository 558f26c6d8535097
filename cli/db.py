"""`tacit db`: the database of the coordinator."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonOption, print_json
from fl_core.errors import ConfigError

db_app = typer.Typer(help="The database of the coordinator.", no_args_is_help=True)


@db_app.callback()
def db() -> None:
    """The database of the coordinator."""


@db_app.command()
def upgrade(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The coordinator's YAML file.", show_default=False)
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Instead of a config: sqlite:///PATH or postgresql://...", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the database to the newest schema. The coordinator does the same when it starts."""
    from services.coordinator.database import upgrade_database
    from services.coordinator.settings import CoordinatorSettings

    if (config is None) == (url is None):
        raise ConfigError("the database is not named", expected="either --config or --url")
    target = url if config is None else CoordinatorSettings.from_file(config).database
    revision = asyncio.run(upgrade_database(str(target)))
    if as_json:
        print_json({"revision": revision})
    else:
        typer.echo(f"the database is at revision {revision}")
