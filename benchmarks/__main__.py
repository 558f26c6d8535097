"""`python -m benchmarks NAME [--json] [--quick]`: run one benchmark and print its figures."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module

from benchmarks.figures import Figure, machine_facts
from fl_core.errors import TacitError

MODULES = {
    "round": "benchmarks.round_path",
    "scaling": "benchmarks.scaling",
    "transport": "benchmarks.transport",
    "secagg": "benchmarks.secagg",
    "secaggplus": "benchmarks.secaggplus",
    "masking": "benchmarks.masking",
    "codecs": "benchmarks.codecs",
    "crowd": "benchmarks.crowd",
    "privacy": "benchmarks.privacy",
    "paillier": "benchmarks.paillier",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure one part of Tacit.")
    parser.add_argument("name", choices=sorted(MODULES))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args(arguments)
    try:
        figures: list[Figure] = import_module(MODULES[options.name]).measure(quick=options.quick)
    except TacitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        results = [figure.to_json() for figure in figures]
        print(json.dumps({"benchmark": options.name, "machine": machine_facts(), "results": results}))
    else:
        _print_table(options.name, figures)
    return 0


def _print_table(name: str, figures: Sequence[Figure]) -> None:
    from rich import box
    from rich.table import Table

    from cli.output import console

    facts = machine_facts()
    title = f"{name}: {facts['processor']}, {facts['cores']} cores, Python {facts['python']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("figure", "value", "unit", "baseline", "ratio"):
        table.add_column(column, justify="left" if column in ("figure", "unit") else "right")
    for figure in figures:
        table.add_row(figure.name, _text(figure.value), figure.unit, _text(figure.baseline), _text(figure.ratio))
    console().print(table)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
