"""Starting, answering, failing and stopping of a server."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fl_core.errors import ConfigError, InternalError, PeerLost, SessionFrozen, StreamError, UnknownSession
from fl_core.transport.channel import MAX_REQUEST_BYTES, open_channel
from fl_core.transport.identity import Role, pinned_name
from fl_core.transport.peer import call_unary, read_stream, send_stream
from fl_core.wire.v1 import aggregator_pb2, status_pb2, tensors_pb2
from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceStub
from services.runtime.identity import role_table
from services.runtime.server import EXIT_REFUSED, run_program, running_server
from services.runtime.settings import ServiceSettings

SERVICE = "fl_core.wire.v1.AggregatorService"
ROOT = Path(__file__).resolve().parents[2]


async def collect(events: AsyncIterator[Any], into: list[Any]) -> None:
    async for event in events:
        into.append(event)


async def test_health_answers_for_every_service(serving: Any, federation: Any) -> None:
    async with (
        serving() as address,
        open_channel(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        first = await stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20).read()
        assert first.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_service(serving: Any, federation: Any) -> None:
    async with (
        serving() as address,
        open_channel(address, federation.credentials(Role.OPERATOR, "o"), Role.AGGREGATOR) as channel,
    ):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=20)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        await call.done_writing()
        assert SERVICE in {service.name for service in answer.list_services_response.service}


async def test_a_port_in_use_is_one_clear_error(serving: Any, federation: Any) -> None:
    async with serving() as address:
        port = address.rsplit(":", 1)[1]
        settings = federation.settings(ServiceSettings, Role.KEYSERVER, "k", listen=address)
        other = running_server(settings, role=Role.KEYSERVER, roles_by_method={}, add_servicers=lambda _server: None)
        with pytest.raises(ConfigError, match=rf"^port {port} is in use on 127.0.0.1: .*; stop that program"):
            await other.__aenter__()


async def test_an_address_of_another_machine_is_one_clear_error(federation: Any) -> None:
    settings = federation.settings(ServiceSettings, Role.KEYSERVER, "k", listen="192.0.2.1:7001")
    other = running_server(settings, role=Role.KEYSERVER, roles_by_method={}, add_servicers=lambda _server: None)
    with pytest.raises(ConfigError, match=r"cannot listen on 192.0.2.1:7001: .*got Cannot assign requested address"):
        await other.__aenter__()


async def test_a_certificate_of_another_role_does_not_start_a_service(federation: Any) -> None:
    settings = federation.settings(ServiceSettings, Role.SITE, "a")
    server = running_server(settings, role=Role.AGGREGATOR, roles_by_method={}, add_servicers=lambda _server: None)
    with pytest.raises(ConfigError, match="has the wrong role: expected aggregator, got site"):
        await server.__aenter__()


async def test_an_error_of_ours_keeps_class_and_sentence(serving: Any, connect: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(UnknownSession) as caught:
            await call_unary(stub.GetUpload, aggregator_pb2.GetUploadRequest(), timeout_s=20)
        sentence = "no such session: expected an open one, got 0102; wait for the next attempt"
        assert str(caught.value) == sentence


async def test_a_crash_never_shows_its_text(serving: Any, connect: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.AbandonAggregation(aggregator_pb2.AbandonAggregationRequest(), timeout=20)
        with pytest.raises(InternalError, match=r"incident [0-9a-f]{8}; its log has the details"):
            await call_unary(stub.AbandonAggregation, aggregator_pb2.AbandonAggregationRequest(), timeout_s=20)
        # The next call is not disturbed.
        await call_unary(stub.GetStatus, status_pb2.GetStatusRequest(), timeout_s=20)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    everything = f"{caught.value.details()} {caught.value.trailing_metadata()} {caught.value.debug_error_string()}"
    assert "4711" not in everything
    assert "ValueError" not in everything


async def test_a_crash_in_the_middle_of_a_stream_never_shows_its_text(serving: Any, connect: Any) -> None:
    received: list[Any] = []
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        request = aggregator_pb2.WatchAggregationRequest(session_id=b"crash")
        with pytest.raises(InternalError) as caught:
            await collect(read_stream(stub.WatchAggregation, request, timeout_s=20), received)
    assert len(received) == 3
    assert "4711" not in str(caught.value)


def update_parts(count: int) -> Any:
    async def parts() -> Any:
        for index in range(count):
            yield aggregator_pb2.UpdateParametersRequest(chunk=tensors_pb2.Chunk(index=index))

    return parts()


async def test_an_error_inside_a_task_group_reaches_the_caller_as_itself(serving: Any, connect: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(SessionFrozen):
            await send_stream(stub.UpdateParameters, update_parts(3), timeout_s=20)


async def test_an_error_of_the_sender_is_raised_at_the_sender(serving: Any, connect: Any) -> None:
    async def parts() -> Any:
        yield aggregator_pb2.UpdateParametersRequest()
        raise StreamError("the file ended early")

    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(StreamError, match="ended early"):
            await send_stream(stub.UpdateParameters, parts(), timeout_s=20)


async def test_a_generator_is_closed_when_its_caller_leaves(serving: Any, connect: Any, servicer: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        call = stub.WatchAggregation(aggregator_pb2.WatchAggregationRequest(), timeout=30)
        await call.read()
        call.cancel()
        async with asyncio.timeout(30):
            await servicer.closed.wait()


async def test_a_message_that_is_too_large_is_refused(serving: Any, connect: Any) -> None:
    request = aggregator_pb2.GetUploadRequest(session_id=bytes(MAX_REQUEST_BYTES + 1))
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(StreamError, match=r"too large: expected up to 4194304 bytes, got 41943\d\d bytes; send it"):
            await call_unary(stub.GetUpload, request, timeout_s=20)


async def test_a_service_refuses_what_is_too_large_of_a_caller_without_limits(serving: Any, federation: Any) -> None:
    request = aggregator_pb2.GetUploadRequest(session_id=bytes(MAX_REQUEST_BYTES + 1))
    credentials = federation.credentials(Role.SITE, "a").channel_credentials()
    name = ("grpc.ssl_target_name_override", pinned_name(Role.AGGREGATOR))
    async with serving() as address, grpc.aio.secure_channel(address, credentials, (name,)) as channel:
        with pytest.raises(StreamError, match="a message is too large"):
            await call_unary(AggregatorServiceStub(channel).GetUpload, request, timeout_s=20)


async def test_a_compressed_message_is_refused(serving: Any, connect: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetUpload(
                aggregator_pb2.GetUploadRequest(session_id=bytes(10_000)), timeout=5, compression=grpc.Compression.Gzip
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_late_answer_is_worth_trying_again(serving: Any, connect: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(PeerLost):
            async for _ in read_stream(stub.WatchAggregation, aggregator_pb2.WatchAggregationRequest(), timeout_s=0.3):
                pass


async def test_a_stopping_server_ends_open_streams_within_its_grace(serving: Any, connect: Any, servicer: Any) -> None:
    loop = asyncio.get_running_loop()
    async with serving(grace_seconds=0.3) as address, connect(address, Role.SITE, "a") as stub:
        call = stub.WatchAggregation(aggregator_pb2.WatchAggregationRequest(), timeout=30)
        await call.read()
        started = loop.time()
    assert loop.time() - started < 3
    assert servicer.closed.is_set()


def test_a_role_table_must_name_every_method() -> None:
    with pytest.raises(ConfigError, match=r"does not fit its methods: expected \['AbandonAggregation'"):
        role_table(SERVICE, {"GetStatus": {Role.SITE}})


def test_a_program_says_its_error_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        raise ExceptionGroup("tasks", [ConfigError("port 1 is in use", fix="choose another")])

    assert run_program(main) == EXIT_REFUSED
    assert capsys.readouterr().err == "error: port 1 is in use; choose another\n"


def test_a_program_does_not_hide_a_bug() -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_program(main)


def test_a_program_runs_on_uvloop() -> None:
    seen: list[str] = []

    async def main() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__)

    assert run_program(main) == 0
    assert seen == ["uvloop"]


PROGRAM = """
import asyncio, sys
from services.runtime.server import run_program, serve
from services.runtime.settings import ServiceSettings
from fl_core.transport.identity import Role

async def drain(patience_s):
    print("draining", flush=True)
    await asyncio.sleep(min(patience_s, float(sys.argv[2])))

async def main():
    settings = ServiceSettings.from_file(sys.argv[1])
    warm_up = lambda: print("warmed up", file=sys.stderr)
    nothing = lambda server: None
    await serve(settings, role=Role.KEYSERVER, roles_by_method={}, add_servicers=nothing, drain=drain, warm_up=warm_up)

sys.exit(run_program(main))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_says_when_it_is_ready_and_stops_on_a_signal(
    federation: Any, tmp_path: Path, number: signal.Signals
) -> None:
    files = federation.issue(Role.KEYSERVER, "k")
    config = tmp_path / "keyserver.yaml"
    config.write_text(
        f"service_id: k\nlisten: 127.0.0.1:0\ncertificate: {files.certificate}\nkey: {files.key}\n"
        f"ca: {files.ca}\ncrl: {files.crl}\nstate_dir: state\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert program.stdout is not None
    ready = program.stdout.readline()
    program.send_signal(number)
    _, log = program.communicate(timeout=20)
    assert ready.startswith("ready keyserver k 127.0.0.1:")
    assert program.returncode == 0, log
    assert '"event": "service_stopped"' in log
    # Warm before it is ready, not in its first round.
    assert 0 <= log.index("warmed up") < log.index('"event": "service_ready"')
    assert "PRIVATE KEY" not in log


@pytest.mark.e2e
def test_a_second_signal_ends_the_drain(federation: Any, tmp_path: Path) -> None:
    files = federation.issue(Role.KEYSERVER, "k")
    config = tmp_path / "keyserver.yaml"
    config.write_text(
        f"service_id: k\nlisten: 127.0.0.1:0\ncertificate: {files.certificate}\nkey: {files.key}\n"
        f"ca: {files.ca}\ncrl: {files.crl}\nstate_dir: state\ndrain_seconds: 600\n"
    )
    command = [sys.executable, "-c", PROGRAM, str(config), "600"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.send_signal(signal.SIGTERM)
        assert program.stdout.readline() == "draining\n"
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=20)
    assert program.returncode == 0


def test_grpc_that_came_first_is_found_out(federation: Any, tmp_path: Path) -> None:
    """Without the setting that fl_core makes, TLS 1.2 would be accepted; the start must fail."""
    files = federation.issue(Role.KEYSERVER, "k")
    config = tmp_path / "keyserver.yaml"
    config.write_text(
        f"service_id: k\nlisten: 127.0.0.1:0\ncertificate: {files.certificate}\nkey: {files.key}\n"
        f"ca: {files.ca}\nstate_dir: state\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_SSL_CIPHER_SUITES"}
    done = subprocess.run(
        [sys.executable, "-c", "import grpc\n" + PROGRAM, str(config), "0"],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
        timeout=30,
        check=False,
    )
    assert done.returncode == EXIT_REFUSED
    assert "the server would accept TLS 1.2" in done.stderr
