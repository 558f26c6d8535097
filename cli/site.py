"""`tacit site`: run a site in this process until it is told to stop."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import TrainerOption


def site(
    config: Annotated[Path, typer.Option("--config", "-c", help="The site's YAML file.", show_default=False)],
    trainer: TrainerOption,
) -> None:
    """Take part in the federation with your trainer, until SIGTERM or Ctrl-C.

    The same in Python: Site(SiteConfig.from_file("site.yaml")).run(trainer).
    """
    from cli.trainers import load_trainer
    from client_sdk import Site, SiteConfig

    settings = SiteConfig.from_file(config)
    Site(settings).run(load_trainer(trainer))
