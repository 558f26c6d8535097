"""`tacit serve`: run one service in this process until it is told to stop."""

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer


class ServiceName(StrEnum):
    """The services of a federation."""

    COORDINATOR = "coordinator"
    AGGREGATOR = "aggregator"
    KEYSERVER = "keyserver"


def serve(
    service: Annotated[ServiceName, typer.Argument(help="Which service.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="Its YAML file.", show_default=False)],
) -> None:
    """Run the coordinator, the aggregator or the key server until SIGTERM or Ctrl-C.

    It is the same program as `python -m services.coordinator --config F` and its two siblings.
    """
    module = import_module(f"services.{service.value}.program")
    raise typer.Exit(module.main(["--config", str(config)]))
