"""Writes the tables of docs/operations.md that are facts of the code: error codes and the keys of every config file.

`python docs/generate.py` writes them, `python docs/generate.py --check` says whether they are current.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic_core import PydanticUndefined

import client_sdk
import fl_core
import services
from cli.operator import OperatorConfig
from client_sdk import LogConfig, SiteConfig, SitePolicy
from fl_core import errors
from fl_core.transport.errors import error_classes, status_code
from services.aggregator.settings import AggregatorSettings
from services.coordinator import measures
from services.coordinator.settings import CoordinatorSettings
from services.keyserver.settings import KeyServerSettings
from services.runtime import metrics
from services.runtime.settings import LogSettings, QuotaSettings, ServiceSettings

PAGE = Path(__file__).parent / "operations.md"

FAULTS = {
    errors.Fault.CALLER: "the caller",
    errors.Fault.PEER: "the other end",
    errors.Fault.SERVICE: "the service",
    errors.Fault.NETWORK: "nobody; the network",
}
COMPUTED = {"mask_threads": "one for each processor"}
"""Defaults that depend on the machine."""

OUR_METRICS = [
    metric
    for module in (metrics, measures)
    for metric in vars(module).values()
    if isinstance(metric, MetricWrapperBase)
]
"""Every metric that a service serves, beside `process_*`."""

Row = tuple[str, ...]


def error_rows() -> Iterator[Row]:
    """Code, gRPC status, who must act, whether trying again helps, and meaning; the general ones first."""
    for kind in error_kinds():
        status = status_code(kind.__new__(kind)).name
        meaning = _sentence(inspect.getdoc(kind) or "")
        yield f"`{kind.code}`", f"`{status}`", FAULTS[kind.fault], "yes" if kind.retryable else "no", meaning


def error_kinds() -> list[type[errors.TacitError]]:
    """Every class of error that has a code of its own, wherever it is defined: those of `fl_core.errors` first."""
    for package in (fl_core, client_sdk, services):
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            # Adapters bring libraries of their own, migrations and programs are run by others.
            if not any(part in module.name for part in (".adapters", ".migrations", ".__main__")):
                import_module(module.name)
    general = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    by_code = error_classes()
    others = sorted((kind for kind in by_code.values() if kind not in general), key=lambda kind: kind.code)
    return [kind for kind in (*general, *others) if kind in by_code.values() and kind is not errors.TacitError]


def settings_rows(kind: type[Any], *, without: Iterable[str] = (), prefix: str = "") -> Iterator[Row]:
    """Key, default and meaning of each field of a class of settings, from its fields and its docstring."""
    meanings = _meanings(inspect.getdoc(kind) or "")
    for name, default in _defaults(kind):
        if name not in without:
            yield f"`{prefix}{name}`", _shown(name, default), meanings[name]


def metric_rows() -> Iterator[Row]:
    """Name as Prometheus stores it, kind, labels and meaning of every metric of ours, by name."""
    for metric in sorted(OUR_METRICS, key=lambda each: str(each._name)):
        suffix = "_total" if metric._type == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
        yield f"`{metric._name}{suffix}`", metric._type, labels, _cell(metric._documentation)


def tables() -> dict[str, str]:
    """Every generated table by its name in the page."""
    settings: Row = ("key", "default", "meaning")
    common = list(ServiceSettings.model_fields)
    return {
        "errors": _table(("code", "gRPC status", "who must act", "try again", "meaning"), error_rows()),
        "service": _table(
            settings,
            [
                *settings_rows(ServiceSettings, without=["log", "quota"]),
                *settings_rows(LogSettings, prefix="log."),
                *settings_rows(QuotaSettings, prefix="quota."),
            ],
        ),
        "coordinator": _table(settings, settings_rows(CoordinatorSettings, without=common)),
        "aggregator": _table(settings, settings_rows(AggregatorSettings, without=common)),
        "keyserver": _table(settings, settings_rows(KeyServerSettings, without=common)),
        "site": _table(
            settings,
            [
                *settings_rows(SiteConfig, without=["policy", "log"]),
                *settings_rows(SitePolicy, prefix="policy."),
                *settings_rows(LogConfig, prefix="log."),
            ],
        ),
        "metrics": _table(("metric", "kind", "labels", "meaning"), metric_rows()),
        "operator": _table(settings, settings_rows(OperatorConfig)),
    }


def generated(page: str) -> str:
    """The page with every generated table as the code has it.

    Raises:
        ValueError: a table has no place in the page, or more than one.
    """
    for name, table in tables().items():
        place = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, count = place.subn(partial(_put, table), page)
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name!r}")
    return page


def _put(table: str, place: re.Match[str]) -> str:
    return f"{place[1]}{table}{place[2]}"


def main(arguments: list[str]) -> int:
    """Write the page, or with --check compare it; 1 when it was not current."""
    page = PAGE.read_text()
    current = generated(page)
    if "--check" in arguments:
        sys.stdout.write("" if current == page else f"{PAGE} is not current; run python docs/generate.py\n")
        return int(current != page)
    PAGE.write_text(current)
    return 0


def _defaults(kind: type[Any]) -> Iterator[tuple[str, object]]:
    if dataclasses.is_dataclass(kind):
        for entry in dataclasses.fields(kind):
            yield entry.name, entry.default
        return
    for name, info in kind.model_fields.items():
        yield name, PydanticUndefined if info.is_required() else info.default


def _shown(name: str, default: object) -> str:
    if name in COMPUTED:
        return COMPUTED[name]
    if default in (PydanticUndefined, dataclasses.MISSING):
        return "needed"
    if default in (None, ""):
        return "none"
    match default:
        case bool():
            return f"`{str(default).lower()}`"
        case int():
            return f"{default:,}"
        case float():
            return f"{default:g}"
    return f"`{default}`"


def _meanings(docstring: str) -> dict[str, str]:
    """What the section Args of a docstring says, by argument."""
    section = docstring.split("Args:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: _cell(text) for name, text in entries}


def _sentence(docstring: str) -> str:
    return _cell(docstring.split("\n\n", 1)[0]).removesuffix(".")


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().removesuffix(".").replace("|", "\\|")


def _table(headings: Row, rows: Iterable[Row]) -> str:
    return _line(headings) + "|" + "---|" * len(headings) + "\n" + "".join(map(_line, rows))


def _line(cells: Row) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
