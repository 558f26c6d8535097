"""Logs without secrets, metrics of calls, and work in threads."""

import asyncio
import json
import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
import structlog

from fl_core.errors import ConfigError
from fl_core.transport.identity import Role
from fl_core.transport.peer import call_unary
from fl_core.wire.v1 import aggregator_pb2, status_pb2
from services.runtime.logs import REDACTED, configure_logging
from services.runtime.metrics import REGISTRY, metrics_endpoint
from services.runtime.offload import offload
from services.runtime.settings import LogSettings


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]


def test_a_line_has_event_level_time_and_what_was_bound(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(), role="aggregator", service_id="agg-1")
    structlog.get_logger("x").info("round_committed", round_id=3, session_id=b"\x01\x02")
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "round_committed",
        "level": "info",
        "role": "aggregator",
        "service_id": "agg-1",
        "round_id": 3,
        "session_id": "0102",
    }


def test_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(level="warning"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_and_vectors_never_reach_the_log(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format=form))
    structlog.get_logger().info(
        "step",
        self_seed=b"topsecret",
        nested={"share_key": "topsecret", "n": 1},
        update=np.array([4711.0, 4711.0]),
        sealed=b"topsecret" * 10,
        shares=7,
    )
    text = capsys.readouterr().err
    assert "topsecret" not in text
    assert "4711" not in text
    assert REDACTED in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variables(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format=form))
    mask_words = "".join(["top", "secret"])
    try:
        raise ValueError(len(mask_words))
    except ValueError:
        structlog.get_logger().exception("failed")
    text = capsys.readouterr().err
    assert "ValueError" in text
    assert "topsecret" not in text


def test_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(), service_id="agg-1")
    logging.getLogger("some.library").warning("careful: %d", 5)
    (line,) = lines(capsys)
    assert (line["event"], line["service_id"]) == ("careful: 5", "agg-1")


async def test_each_call_is_one_line_with_its_caller(
    serving: Any, connect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogSettings())
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        await call_unary(stub.GetStatus, status_pb2.GetStatusRequest(), timeout_s=20)
        with pytest.raises(Exception, match="may not call"):
            await call_unary(stub.SubmitMask, iter(()), timeout_s=20)
    calls = [line for line in lines(capsys) if line["event"].startswith("rpc_")]
    assert [(line["event"], line["method"], line["code"]) for line in calls] == [
        ("rpc_finished", "GetStatus", "OK"),
        ("rpc_refused", "SubmitMask", "PERMISSION_DENIED"),
    ]
    assert calls[0]["caller"] == "site/a"
    assert "site/a may not call SubmitMask" in calls[1]["reason"]


async def test_a_crash_is_in_the_log_under_the_number_that_the_caller_got(
    serving: Any, connect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogSettings())
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(Exception, match="incident") as caught:
            await call_unary(stub.AbandonAggregation, aggregator_pb2.AbandonAggregationRequest(), timeout_s=20)
    (failed,) = [line for line in lines(capsys) if line["event"] == "rpc_failed"]
    assert failed["incident"] in str(caught.value)
    assert failed["exception"][0]["exc_type"] == "ValueError"


async def test_calls_are_counted_and_served_to_prometheus(serving: Any, connect: Any, free_port: Any) -> None:
    labels = {"method": "/fl_core.wire.v1.AggregatorService/GetStatus", "role": "site", "code": "OK"}
    before = REGISTRY.get_sample_value("tacit_rpc_finished_total", labels) or 0
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        await call_unary(stub.GetStatus, status_pb2.GetStatusRequest(), timeout_s=20)
    assert REGISTRY.get_sample_value("tacit_rpc_finished_total", labels) == before + 1
    port = free_port()
    with metrics_endpoint(f"127.0.0.1:{port}"):
        text = await offload(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
        with pytest.raises(ConfigError, match="cannot be served"), metrics_endpoint(f"127.0.0.1:{port}"):
            pass
    assert "tacit_rpc_finished_total{" in text


async def test_connections_without_a_certificate_are_counted(serving: Any) -> None:
    before = REGISTRY.get_sample_value("tacit_tls_handshakes_total") or 0
    async with serving() as address:
        host, _, port = address.rpartition(":")
        for _ in range(20):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"no TLS at all")
            writer.close()
        async with asyncio.timeout(30):
            while (REGISTRY.get_sample_value("tacit_tls_handshakes_total") or 0) < before + 20:
                await asyncio.sleep(0.02)


async def test_offloaded_work_runs_in_another_thread_and_sees_context_variables() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("here")

    def work(factor: int, *, plus: int) -> tuple[int, str, int]:
        return factor + plus, variable.get(), threading.get_ident()

    total, seen, thread = await offload(work, 2, plus=3)
    assert (total, seen) == (5, "here")
    assert thread != threading.get_ident()


async def test_an_error_of_offloaded_work_is_raised_here() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await offload(work)
