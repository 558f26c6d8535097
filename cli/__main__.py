"""`python -m cli` is `tacit`."""

from cli.main import run

run()
