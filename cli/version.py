"""`tacit version`: what is installed."""

import platform
from importlib import metadata

import typer

from cli.output import JsonOption, print_json

PACKAGES = ("grpcio", "protobuf", "cryptography", "numpy", "numba", "torch", "sqlalchemy")


def version(as_json: JsonOption = False) -> None:
    """Print the version of Tacit, of Python and of the packages that matter in a bug report."""
    versions = {"tacit": installed_version("tacit"), "python": platform.python_version()}
    versions |= {name: installed_version(name) for name in PACKAGES}
    if as_json:
        print_json(versions)
        return
    for name, number in versions.items():
        typer.echo(f"{name:13} {number or 'not installed'}")


def installed_version(package: str) -> str | None:
    """The version of an installed distribution; None when it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
