"""docs/operations.md names what the code has: keys of config files, reasons, errors, events, metrics."""

import importlib.util
import re
from enum import StrEnum
from pathlib import Path

import pytest
from pages import DOCS, ROOT, section_of, table_of, tables_of, yaml_blocks_of

from cli.operator import OperatorConfig
from client_sdk import SiteConfig
from fl_core.rounds.machine import AbandonReason, DropoutReason
from services.aggregator.settings import AggregatorSettings
from services.coordinator.settings import CoordinatorSettings
from services.keyserver.settings import KeyServerSettings
from services.runtime import metrics

PAGE = (DOCS / "operations.md").read_text()
_spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate_docs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate_docs)
CONFIGS = {
    "The coordinator": CoordinatorSettings,
    "The aggregator": AggregatorSettings,
    "The key server": KeyServerSettings,
    "A site": SiteConfig,
    "An operator": OperatorConfig,
}


def test_the_generated_tables_are_current() -> None:
    assert generate_docs.generated(PAGE) == PAGE, "run `python docs/generate.py`"


def test_a_table_that_is_not_current_is_noticed() -> None:
    wrong = PAGE.replace("| `peer_lost` | `UNAVAILABLE`", "| `peer_gone` | `UNAVAILABLE`")
    assert wrong != PAGE
    assert generate_docs.generated(wrong) == PAGE


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="errors"):
        generate_docs.generated(PAGE.replace("<!-- generated: errors -->", ""))


@pytest.mark.parametrize(
    ("heading", "reasons"),
    [("Why a site dropped out", DropoutReason), ("Why an attempt was abandoned", AbandonReason)],
)
def test_every_reason_is_explained_and_no_other(heading: str, reasons: type[StrEnum]) -> None:
    (table,) = tables_of(section_of(PAGE, heading))
    assert [row[0] for row in table.rows] == list(reasons)
    assert all(len(row) == 3 and all(row) for row in table.rows)


def test_there_is_something_to_do_about_every_error_and_no_other() -> None:
    table = table_of(PAGE, "error")
    assert sorted(row[0] for row in table.rows) == sorted(kind.code for kind in generate_docs.error_kinds())
    assert all(len(row) == 3 and all(row) for row in table.rows)


@pytest.mark.parametrize("heading", sorted(CONFIGS))
def test_every_example_of_a_config_is_read(heading: str, tmp_path: Path) -> None:
    (example,) = yaml_blocks_of(section_of(PAGE, heading))
    (tmp_path / "config.yaml").write_text(example)
    read = CONFIGS[heading].from_file(tmp_path / "config.yaml")
    assert Path(read.certificate) == tmp_path / "certificate.pem"


def test_every_log_event_of_the_page_is_logged_somewhere() -> None:
    sources = "".join(
        path.read_text() for folder in ("services", "client_sdk") for path in (ROOT / folder).rglob("*.py")
    )
    for events, *_ in table_of(PAGE, "event").rows:
        for event in events.split(", "):
            assert f'"{event}"' in sources, event


def test_every_metric_of_the_page_is_served() -> None:
    named = set(re.findall(r"`(tacit_rpc_\w+)`", PAGE))
    served = {sample.name for family in metrics.REGISTRY.collect() for sample in family.samples}
    families = {family.name for family in metrics.REGISTRY.collect()}
    assert named
    for name in named:
        assert name in served | families or name.removesuffix("_total") in families, name
