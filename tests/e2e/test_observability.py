"""What an operator sees of a round: one trace over every party, logs with ids, and never a secret."""

import base64
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent import futures
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import grpc
import numpy as np
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from whole_federation import Steps, WholeFederation, running_federation

import fl_core.secagg.client
import fl_core.secagg.masks
import fl_core.secagg.sealing
from fl_core.rounds.machine import RoundState
from fl_core.transport import tracing
from services.coordinator import measures, privacy_desk
from services.runtime.logs import configure_logging
from services.runtime.metrics import REGISTRY
from services.runtime.settings import LogSettings

SITES = ("alpha", "beta", "gamma", "delta")
SHORTEST_SECRET = 16
SOURCES = {
    "split_secrets": "shares",
    "agree_many": "agreements",
    "agree_each": "agreements",
    "derive_key": "derived keys",
    "join_rebuilt": "rebuilt",
}
"""What gives secrets, wherever a module of secure aggregation uses it, and what they are."""


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Keeps every span; the whole process traces while the test runs."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use_provider(provider)
    yield kept
    tracing.use_provider(None)
    provider.shutdown()


@pytest.fixture
async def whole(federation: Any, tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[WholeFederation]:
    async with running_federation(federation, tmp_path, free_port()) as running:
        yield running


def by_trace(spans: Iterable[ReadableSpan]) -> dict[int, list[ReadableSpan]]:
    traces: dict[int, list[ReadableSpan]] = {}
    for span in spans:
        traces.setdefault(span.context.trace_id, []).append(span)
    return traces


async def test_a_round_is_one_trace_with_spans_of_every_party(
    exporter: InMemorySpanExporter, whole: WholeFederation
) -> None:
    for name in SITES:
        whole.join(name)
    reports = await whole.run_job(rounds=2)
    await whole.stack.aclose()
    assert all(report.state is RoundState.COMMITTED for report in reports)
    traces = by_trace(exporter.get_finished_spans())
    assert len(traces) == 2
    for spans in traces.values():
        names = [span.name for span in spans]
        (coordinator,) = [span for span in spans if span.name == "round"]
        assert coordinator.attributes["round_id"] in (1, 2)
        assert {span.attributes["client_id"] for span in spans if span.name == "take_part"} == set(SITES)
        # The aggregator's and the key server's own spans, each inside one of the party that called.
        for method in ("OpenAggregation", "UpdateParameters", "FreezeSurvivors", "SubmitMask"):
            assert method in names, "the aggregator"
        for method in ("OpenExchange", "ExchangeKeys", "Unmask", "RevealShares"):
            assert method in names, "the key server"
        for method in ("ReportAggregate", "GetParameters"):
            assert method in names, "the coordinator, called back"
        for step in ("exchange", "train", "encode", "upload", "reveal"):
            assert names.count(step) == len(SITES)
        ids = {span.context.span_id for span in spans}
        orphans = [span for span in spans if span.parent is None or span.parent.span_id not in ids]
        assert orphans == [coordinator]
        callers = {span.attributes["caller"] for span in spans if span.name == "UpdateParameters"}
        assert callers == {f"site/{name}" for name in SITES}


async def test_spans_hold_ids_and_counts_alone(exporter: InMemorySpanExporter, whole: WholeFederation) -> None:
    for name in SITES:
        whole.join(name)
    await whole.run_job(rounds=1)
    allowed = {"job_id", "round_id", "attempt", "client_id", "caller", "error.type"}
    for span in exporter.get_finished_spans():
        assert set(span.attributes or ()) <= allowed, span.name
        assert not span.events


def test_off_it_does_nothing() -> None:
    assert tracing.client_interceptors() == []
    assert tracing.span("x", a=1) is tracing.round_span("job", 1, 1) is tracing.continued("00-1", "y")
    assert tracing.trace_context() == ""
    assert tracing.incoming((("traceparent", "00-1"),)) == ""


@pytest.mark.parametrize(
    "context",
    ["", "x", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01", f"01-{'1' * 32}-{'1' * 16}-01", "é" * 55],
)
def test_a_trace_context_that_is_none_is_left_alone(exporter: InMemorySpanExporter, context: str) -> None:
    with tracing.continued(context, "x"):
        assert tracing.trace_context() == ""
    assert not exporter.get_finished_spans()


def test_attempts_at_one_round_are_one_trace(exporter: InMemorySpanExporter) -> None:
    for round_id, attempt in ((1, 1), (1, 2), (2, 1)):
        with tracing.round_span("job", round_id, attempt), tracing.span("inside"):
            pass
    sizes = sorted(len(spans) for spans in by_trace(exporter.get_finished_spans()).values())
    assert sizes == [2, 4]


def test_a_failed_span_says_the_class_of_the_error_and_not_its_words(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="seed 4711"), tracing.round_span("job", 1, 1):
        raise ValueError("seed 4711")
    (span,) = exporter.get_finished_spans()
    assert "4711" not in span.to_json()
    assert span.attributes == {"job_id": "job", "round_id": 1, "attempt": 1, "error.type": "ValueError"}
    assert not span.status.is_ok


async def test_the_budget_of_a_private_job_is_shown_while_it_runs(
    whole: WholeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float | None, float | None]] = []

    def spent(job_id: str) -> float | None:
        return REGISTRY.get_sample_value("tacit_privacy_epsilon_spent", {"job_id": job_id})

    def show(job_id: str, epsilon: float, limit: float) -> None:
        measures.show_budget(job_id, epsilon, limit)
        seen.append((spent(job_id), REGISTRY.get_sample_value("tacit_privacy_epsilon_limit", {"job_id": job_id})))

    monkeypatch.setattr(privacy_desk, "show_budget", show)
    for number, name in enumerate(SITES):
        whole.join(name, Steps(0.001 * (number + 1)))
    budget = {"epsilon": 20.0, "delta": 1e-5, "clip": 1.0, "mechanism": "central"}
    reports = await whole.run_job(rounds=2, privacy=budget)
    (first, limit), (second, _) = seen
    assert first is not None
    assert second is not None
    assert 0 < first < second <= 20.0 == limit
    assert spent(reports[0].job_id) is None, "a job that has ended is still shown"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans by OTLP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            party = {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.instance.id"]
            self.spans += [(party, span.name) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_collector_under_the_name_of_their_party() -> None:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with tracing.tracing(f"http://127.0.0.1:{port}", "site/alpha"), tracing.round_span("job", 1, 1):
            pass
    finally:
        server.stop(None).wait()
    assert collector.spans == [("site/alpha", "round")]
    assert tracing.client_interceptors() == []


class Secrets:
    """Everything secret that came up in this process: what was drawn, agreed, derived, split and rebuilt."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, set[bytes]] = {}
        self._patch = patch
        self._watch(os, "urandom", "drawn", lambda drawn: [drawn])
        for module in iter_modules(fl_core.secagg.__path__, "fl_core.secagg."):
            for name, kind in SOURCES.items():
                if name in vars(import_module(module.name)):
                    self._watch(import_module(module.name), name, kind, _leaves)

    def _watch(self, owner: Any, name: str, kind: str, parts: Callable[[Any], Iterable[Any]]) -> None:
        original = getattr(owner, name)
        kept = self.found.setdefault(kind, set())

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            # Shares are drawn from one large block; what is secret in it is found as the shares themselves.
            kept.update(part for part in map(bytes, parts(result)) if SHORTEST_SECRET <= len(part) <= 128)
            return result

        self._patch.setattr(owner, name, watched)

    def in_text(self, text: str) -> list[str]:
        """Kinds of the secrets that stand in a text, in any form in which bytes are usually written."""
        lower = text.lower()
        return [kind for kind, secrets in self.found.items() for secret in secrets if _stands_in(secret, text, lower)]


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def _stands_in(secret: bytes, text: str, lower: str) -> bool:
    return (
        secret.hex() in lower
        or base64.b64encode(secret).decode().rstrip("=") in text
        or base64.urlsafe_b64encode(secret).decode().rstrip("=") in text
        or repr(secret)[2:-1] in text
        or str(list(secret))[1:-1] in text
    )


@pytest.mark.usefixtures("restored_logging")
async def test_the_logs_of_a_round_hold_ids_and_no_secret(
    federation: Any,
    tmp_path: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secrets = Secrets(monkeypatch)
    configure_logging(LogSettings(level="debug"))
    async with running_federation(federation, tmp_path, free_port()) as whole:
        for name in SITES:
            whole.join(name)
        # One whose trainer fails in round 2, so that drop-outs, refusals and tracebacks are in the logs too.
        whole.join("aaron", Steps(spoil=lambda parameters: {name: part * np.nan for name, part in parameters.items()}))
        reports = await whole.run_job(rounds=2, cohort={"min": 4, "max": 5})
        job_id = reports[0].job_id
    text = "".join(capfd.readouterr())
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    for kind in ("drawn", *SOURCES.values()):
        assert secrets.found[kind], f"nothing {kind} was seen"
    assert secrets.in_text(text) == []
    for secret in [next(iter(kept)) for kept in secrets.found.values()]:
        for form in (secret.hex(), base64.b64encode(secret).decode(), repr(secret), str(list(secret))):
            assert secrets.in_text(f"{text}{form}"), "a secret in the log would not be found"
    for path in tmp_path.rglob("key.pem"):
        assert path.read_text().splitlines()[1] not in text
    events = {line["event"] for line in lines}
    assert {"cohort_invited", "round_committed", "attempt_left", "session_unmasked", "rpc_finished"} <= events
    unmasked = [line for line in lines if line["event"] == "session_unmasked"]
    assert all(line["round_id"] and line["session_id"] for line in unmasked)
    committed = [line for line in lines if line["event"] == "round_committed"]
    assert [(line["job_id"], line["round_id"], line["attempt"]) for line in committed] == [
        (job_id, 1, 1),
        (job_id, 2, 1),
    ]
