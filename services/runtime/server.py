"""A gRPC server over mTLS, from its settings to its graceful end."""

import asyncio
import errno
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fl_core.errors import ConfigError, TacitError
from fl_core.transport.channel import SERVER_OPTIONS, Option
from fl_core.transport.identity import Role
from fl_core.transport.tls import Credentials, LiveCredentials, check_role
from fl_core.transport.tracing import tracing
from services.runtime.collector import tune_collector
from services.runtime.identity import OPEN_METHODS, Gatekeeper, RoleTable
from services.runtime.interceptors import CallBoundary, known_error
from services.runtime.listening import counting_connections
from services.runtime.logs import configure_logging
from services.runtime.memory import tune_memory
from services.runtime.metrics import HANDSHAKES, measuring, metrics_endpoint, watch_credentials
from services.runtime.offload import offload
from services.runtime.quotas import Quotas
from services.runtime.settings import ServiceSettings, split_address

log = structlog.get_logger(__name__)

AddServicers = Callable[[grpc.aio.Server], None]
Drain = Callable[[float], Coroutine[Any, Any, None]]

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130

_SELF_TEST_SECONDS = 5.0


@asynccontextmanager
async def running_server(
    settings: ServiceSettings,
    *,
    role: Role,
    roles_by_method: RoleTable,
    add_servicers: AddServicers,
    options: Sequence[Option] = (),
) -> AsyncIterator[str]:
    """Serve while the block runs; calls in flight get `grace_seconds` to finish at its end.

    Args:
        settings: address and certificate.
        role: the role that the certificate must have.
        roles_by_method: who may call what, from `role_table`. A method that is not in it is open to nobody.
        add_servicers: registers the servicers at the server.
        options: of gRPC, beyond those of every service.

    Yields:
        host:port that is bound, with the true port when the settings say 0.

    Raises:
        ConfigError: the port is in use, a file of the certificate is missing or wrong, or TLS 1.2 would be accepted.
    """
    credentials = settings.credentials()
    check_role(credentials, role)
    live = LiveCredentials(credentials, _log_reload)
    watch_credentials(live, role.value)
    gatekeeper = Gatekeeper(lambda: live.trust, {**OPEN_METHODS, **roles_by_method})
    boundary = CallBoundary(gatekeeper, Quotas(settings.quota))
    limit = ("grpc.max_allowed_incoming_connections", settings.max_connections)
    server = grpc.aio.server(interceptors=[boundary], options=(*SERVER_OPTIONS, limit, *options))
    add_servicers(server)
    services = sorted({method.split("/")[1] for method in roles_by_method})
    health_servicer = _add_standard_services(server, services)
    address = _bind(server, settings.listen, live.server_credentials(HANDSHAKES.inc))
    await server.start()
    try:
        await _check_tls_floor(address, credentials)
        for service in services:
            await health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        with counting_connections(address):
            yield address
    finally:
        await health_servicer.enter_graceful_shutdown()
        await server.stop(settings.grace_seconds)


async def serve(
    settings: ServiceSettings,
    *,
    role: Role,
    roles_by_method: RoleTable,
    add_servicers: AddServicers,
    drain: Drain,
    warm_up: Callable[[], None],
    options: Sequence[Option] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then until the work in hand is done or `drain_seconds` are over.

    Arguments and errors as `running_server`; logging is configured here.

    Args:
        drain: begins nothing new and returns when the work in hand is done, or after the seconds that it is given.
        warm_up: loads what rounds of large models need; it is done before the port is open.
    """
    configure_logging(settings.log, role=role.value, service_id=settings.service_id)
    server = running_server(
        settings, role=role, roles_by_method=roles_by_method, add_servicers=add_servicers, options=options
    )
    traces = tracing(settings.tracing_endpoint, f"{role.value}/{settings.service_id}")
    with traces, stop_signals() as signals, metrics_endpoint(settings.metrics_listen):
        if settings.warm_up:
            await _unless(signals.stop, offload(warm_up))
        async with server as address, measuring():
            announce_ready(settings, role, address)
            await signals.stop.wait()
            log.info("service_draining", drain_seconds=settings.drain_seconds)
            await _unless(signals.hurry, drain(settings.drain_seconds))
            log.info("service_stopping", grace_seconds=settings.grace_seconds)
    log.info("service_stopped")


async def _unless(event: asyncio.Event, working: Coroutine[Any, Any, None]) -> None:
    heard, done = asyncio.create_task(event.wait()), asyncio.create_task(working)
    try:
        await asyncio.wait({heard, done}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        heard.cancel()
        done.cancel()
        await asyncio.gather(heard, done, return_exceptions=True)
    if not done.cancelled():
        done.result()


def announce_ready(settings: ServiceSettings, role: Role, address: str) -> None:
    """Say on stdout that calls are answered: `ready <role> <service_id> <host:port>`, one line."""
    log.info("service_ready", address=address)
    sys.stdout.write(f"ready {role.value} {settings.service_id} {address}\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class StopSignals:
    """What SIGTERM and SIGINT ask for.

    Args:
        stop: set by the first one.
        hurry: set by the second one.
    """

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)

    def heard(self) -> None:
        """A signal came."""
        (self.hurry if self.stop.is_set() else self.stop).set()


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Listens to SIGTERM and SIGINT while the block runs."""
    signals = StopSignals()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.heard)
    try:
        yield signals
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run_program(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run the main coroutine of a service on uvloop where there is one, on asyncio elsewhere.

    Returns:
        Exit status: 0, 2 after an error that is then on stderr in one sentence, 130 after Ctrl-C.
    """
    tune_memory()
    tune_collector()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(main())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (TacitError, ExceptionGroup) as error:
        known = known_error(error)
        if known is None:
            raise
        sys.stderr.write(f"error: {known}\n")
        return EXIT_REFUSED
    return 0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes event loops: uvloop's where it is installed, None for those of asyncio."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _add_standard_services(server: grpc.aio.Server, services: list[str]) -> health.aio.HealthServicer:
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return health_servicer


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials) -> str:
    host, port = split_address(listen)
    try:
        bound = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise _bind_error(host, port) from error
    if bound == 0:
        raise _bind_error(host, port)
    return f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"


def _bind_error(host: str, port: int) -> ConfigError:
    """Why a port could not be bound; gRPC itself does not say."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return ConfigError(
                f"port {port} is in use on {host}",
                expected="a free port",
                got="one that another program listens on",
                fix="stop that program or choose another port in `listen`",
            )
        return ConfigError(
            f"cannot listen on {host}:{port}",
            expected="an address of this machine",
            got=error.strerror,
            fix="correct `listen`",
        )
    return ConfigError(f"cannot listen on {host}:{port}", fix="see the log of gRPC on stderr")


async def _check_tls_floor(address: str, credentials: Credentials) -> None:
    """Try TLS 1.2 on ourselves; it must fail.

    Raises:
        ConfigError: it is accepted, because grpc was imported before fl_core or the setting was changed.
    """
    context = ssl.create_default_context(cafile=str(credentials.ca_path))
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(credentials.certificate_path, credentials.key_path)
    host, port = split_address(address)
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is compared, not bound
    try:
        async with asyncio.timeout(_SELF_TEST_SECONDS):
            _, writer = await asyncio.open_connection(target, port, ssl=context)
    except (OSError, TimeoutError):
        # gRPC has just logged this refusal, which would alarm a reader without an explanation.
        log.info("old_tls_refused", tried="TLS 1.2", by="self-test")
        return
    writer.close()
    raise ConfigError(
        "the server would accept TLS 1.2",
        expected="TLS 1.3 only",
        fix="import fl_core before grpc and leave GRPC_SSL_CIPHER_SUITES alone",
    )


def _log_reload(error: TacitError | None) -> None:
    if error is None:
        log.info("credentials_reloaded")
    else:
        log.error("credentials_reload_failed", reason=str(error))
