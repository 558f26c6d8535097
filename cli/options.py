"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

CONFIG_VARIABLE = "TACIT_OPERATOR"
CLUSTER_DIR = Path(".tacit")
DEFAULT_CONFIG = CLUSTER_DIR / "operator.yaml"
"""What `tacit up` writes, so that commands in the same folder need no option."""

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar=CONFIG_VARIABLE, help="The operator's YAML file; `tacit up` writes one."),
]

TrainerOption = Annotated[
    str,
    typer.Option(
        "--trainer",
        "-t",
        help="What makes the trainer: `package.module:factory`.",
        metavar="MODULE:FACTORY",
        show_default=False,
    ),
]
