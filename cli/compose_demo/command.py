"""`tacit compose-demo`: the parts of docker-compose.yml that a true federation does by hand."""

import os
import re
import socket
from pathlib import Path
from typing import Annotated

import typer

compose_demo_app = typer.Typer(
    help="Parts of the demo in docker-compose.yml. Its CA signs whoever asks: **never for data that matters.**",
    no_args_is_help=True,
)

ENROLMENT_TIMEOUT_S = 180.0

DeskOption = Annotated[Path, typer.Option("--desk", help="The folder that desk and sites share.", show_default=False)]


@compose_demo_app.command()
def init(
    out: Annotated[Path, typer.Option("--out", help="Everything goes below this folder.", show_default=False)],
) -> None:
    """Make the CA, the certificates of services and operator, passwords, and the first model. Run again: no change."""
    from cli.compose_demo.digit_trainer import DigitTrainer
    from cli.compose_demo.identities import make_identities
    from cli.model_files import save_model

    make_identities(out)
    model = out / "operator" / "init.safetensors"
    if not model.exists():
        save_model(dict(DigitTrainer().initial_parameters()), model)
    typer.echo(f"the demo federation is ready in {out}")


@compose_demo_app.command()
def desk(
    ca: Annotated[Path, typer.Option("--ca", help="The folder of the demo's CA.", show_default=False)], desk: DeskOption
) -> None:
    """Sign the request of every site that asks, until SIGTERM. Refuses every CA but that of the demo."""
    from cli.compose_demo.enrolment import Desk, run_desk
    from cli.compose_demo.identities import open_demo_authority
    from cli.up import terminated_as_interrupt

    try:
        with terminated_as_interrupt():
            run_desk(Desk(desk), open_demo_authority(ca), lambda site, outcome: typer.echo(f"{site}: {outcome}"))
    except KeyboardInterrupt:
        typer.echo("the desk is closed")


@compose_demo_app.command()
def site(
    coordinator: Annotated[str, typer.Option("--coordinator", help="host:port.", show_default=False)],
    desk: DeskOption,
    state: Annotated[Path, typer.Option("--state", help="A folder of this site alone.", show_default=False)],
    name: Annotated[str, typer.Option("--name", help="Id of the site; from the host's name when left out.")] = "",
) -> None:
    """Enrol under the host's name and take part, until SIGTERM. So replicas of one container are sites of their own."""
    from cli.compose_demo.digit_trainer import DigitTrainer
    from cli.compose_demo.enrolment import Desk, enrol
    from client_sdk import Site, SiteConfig
    from client_sdk.config import LogConfig

    client_id = name or site_name(os.environ.get("HOSTNAME") or socket.gethostname())
    identity = state / "identity"
    enrol(Desk(desk), client_id, identity, ENROLMENT_TIMEOUT_S)
    config = SiteConfig(
        coordinator=coordinator,
        certificate=identity / "certificate.pem",
        key=identity / "key.pem",
        ca=identity / "ca.pem",
        crl=identity / "crl.pem",
        state_dir=state / "state",
        client_id=client_id,
        log=LogConfig("info", "json"),
    )
    Site(config).run(DigitTrainer(client_id))


def site_name(host: str) -> str:
    """The id of the site on a host: letters, digits and dashes of its name."""
    return f"site-{re.sub(r'[^a-z0-9-]+', '-', host.lower()).strip('-')[:48]}"
