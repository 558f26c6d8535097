"""What commands print: results on stdout, as JSON or for people; everything else on stderr."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

KB = 1000
PLAIN_WIDTH = 120


def print_json(result: Mapping[str, object]) -> None:
    """Print one result as one JSON object on stdout, on one line."""
    typer.echo(json.dumps(result))


@cache
def console() -> "Console":
    """Where results for people go."""
    return _console(to_stderr=False)


@cache
def progress_console() -> "Console":
    """Where progress and hints go, so that stdout holds results alone."""
    return _console(to_stderr=True)


def _console(*, to_stderr: bool) -> "Console":
    from rich.console import Console

    console = Console(stderr=to_stderr, highlight=False)
    # A file or a pipe has no width of its own; tables must not be cut there.
    return console if console.is_terminal else Console(stderr=to_stderr, highlight=False, width=PLAIN_WIDTH)


def say(line: str) -> None:
    """One line of progress on stderr, at once even when nobody looks at a terminal."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def bytes_text(count: float) -> str:
    """A size for people: 999 B, 43.1 kB, 400.0 MB; kB is 1000 bytes."""
    for unit in ("B", "kB", "MB"):
        if count < KB:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= KB
    return f"{count:.1f} GB"


def seconds_text(seconds: float) -> str:
    """A duration for people, in seconds with as many digits as matter."""
    return f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"


def percent_text(share: float | None) -> str:
    """A share of one as per cent; a dash when there is none."""
    return "-" if share is None else f"{100 * share:.1f}%"
