"""Dashboard and alerts ask for metrics that are served, by labels that they have, in PromQL that parses."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from fl_core.errors import TacitError
from fl_core.rounds.machine import AbandonReason, DropoutReason
from fl_core.transport.errors import error_classes
from services.coordinator import measures
from services.runtime import metrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/tacit.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]
OPERATIONS = (ROOT / "docs/operations.md").read_text()
TARGET_LABELS = {"job", "service", "instance"}
VALUES = {
    "outcome": {"committed", *AbandonReason},
    "reason": set(DropoutReason),
    "error_code": set(error_classes()),
    "queue": {"jobs", "downloads", "uploads"},
    "job": {"tacit"},
}


def served() -> dict[str, set[str]]:
    """Every series by its name, with its labels."""
    series: dict[str, set[str]] = {"up": set(TARGET_LABELS)}
    for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds"):
        series[f"process_{name}"] = set(TARGET_LABELS)
    for metric in (*vars(metrics).values(), *vars(measures).values()):
        if isinstance(metric, MetricWrapperBase):
            labels = {*metric._labelnames, *TARGET_LABELS}
            match metric._type:
                case "counter":
                    series[f"{metric._name}_total"] = labels
                case "histogram":
                    series[f"{metric._name}_bucket"] = labels | {"le"}
                    series |= {f"{metric._name}_{part}": labels for part in ("sum", "count")}
                case _:
                    series[metric._name] = labels
    return series


SERIES = served()


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def parts_of(node: Any) -> Iterator[Any]:
    """A parsed expression and everything inside it."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        child = getattr(node, name, None)
        if child is not None and type(child).__module__ == type(node).__module__:
            yield from parts_of(child)
    for child in getattr(node, "args", None) or []:
        yield from parts_of(child)


def check(expression: str) -> int:
    """Check one expression; gives the number of series that it asks for."""
    count, labels = 0, set(TARGET_LABELS)
    tree = list(parts_of(promql.parse(expression)))
    for part in tree:
        if isinstance(part, promql.VectorSelector):
            assert part.name in SERIES, part.name
            count += 1
            labels |= SERIES[part.name]
            for matcher in part.matchers.matchers:
                assert matcher.name in SERIES[part.name], f"{part.name} has no label {matcher.name}"
                if matcher.name in VALUES:
                    assert set(matcher.value.split("|")) <= VALUES[matcher.name], matcher.value
    for part in tree:
        modifier = getattr(part, "modifier", None)
        named = getattr(modifier, "labels", None) or getattr(getattr(modifier, "matching", None), "labels", None) or []
        assert set(named) <= labels, f"{sorted(set(named) - labels)} in {expression}"
    return count


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_query_asks_for_what_is_served(where: str, expression: str) -> None:
    assert check(expression) >= 1, where


@pytest.mark.parametrize(
    "wrong",
    ["tacit_no_such_metric", 'tacit_rpc_open{color="red"}', "sum by (color) (tacit_rpc_open)", "rate(tacit_rpc_open"],
)
def test_a_wrong_query_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(wrong)


def test_the_expression_walk_reaches_everything() -> None:
    quantile = "histogram_quantile(0.9, sum by (le) (rate(tacit_round_seconds_bucket[5m])))"
    assert check(f"{quantile} > 2 * scalar(-(tacit_sessions_open))") == 2


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert() -> None:
    asked = {
        part.name
        for _, expression in expressions()
        for part in parts_of(promql.parse(expression))
        if isinstance(part, promql.VectorSelector)
    }
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in asked}
    ours = {
        f"{metric._name}_total" if metric._type == "counter" else metric._name
        for metric in (*vars(metrics).values(), *vars(measures).values())
        if isinstance(metric, MetricWrapperBase)
    }
    assert ours - families == {"tacit_quarantines_suspended_total"}


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in (*vars(metrics).values(), *vars(measures).values()):
        if isinstance(metric, MetricWrapperBase):
            assert metric._name.startswith("tacit_")
            assert metric._documentation.endswith(".")
            if metric._type == "histogram":
                assert metric._name.endswith(("_seconds", "_bytes"))


def test_every_alert_is_in_the_runbook_and_no_other() -> None:
    explained = [line.split("`")[1] for line in OPERATIONS.splitlines() if line.startswith("| `Tacit")]
    assert sorted(explained) == sorted(rule["alert"] for rule in RULES)
    assert all(rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"] for rule in RULES)


def test_the_dashboard_is_current_and_fits_its_provisioning() -> None:
    path = ROOT / "deploy/grafana/generate.py"
    spec = importlib.util.spec_from_file_location("generate_dashboard", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--check"]) == 0, "run `python deploy/grafana/generate.py`"
    provisioning = ROOT / "deploy/grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert module.SOURCE["uid"] in {source["uid"] for source in sources}
    (provider,) = yaml.safe_load((provisioning / "dashboards/tacit.yaml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in compose["volumes"]}
    assert (ROOT / mounts[provider["options"]["path"]] / "tacit.json").is_file()


def test_the_error_codes_of_the_alerts_are_those_of_errors() -> None:
    assert issubclass(error_classes()["internal"], TacitError)
