"""Prometheus metrics: one registry per process, what every service measures, and the endpoint that serves it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from fl_core import __version__
from fl_core.errors import ConfigError, TacitError
from fl_core.transport.tls import LiveCredentials
from services.runtime.settings import split_address

REGISTRY = CollectorRegistry()
"""Services register their own metrics here."""

LAG_INTERVAL_S = 0.5
_RPC_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)
_LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

# Resident memory, processor seconds, open files: process_*.
ProcessCollector(registry=REGISTRY)

BUILD_INFO = Gauge("tacit_build_info", "1 for the version that runs.", ("version", "role"), registry=REGISTRY)
RPC_FINISHED = Counter(
    "tacit_rpc_finished",
    "Calls by method, role of the caller and status.",
    ("method", "role", "code"),
    registry=REGISTRY,
)
RPC_SECONDS = Histogram(
    "tacit_rpc_seconds", "Duration of calls by method.", ("method",), buckets=_RPC_BUCKETS, registry=REGISTRY
)
RPC_OPEN = Gauge("tacit_rpc_open", "Calls that are running, by method.", ("method",), registry=REGISTRY)
RPC_REFUSED = Counter(
    "tacit_rpc_refused", "Calls that ended with an error of ours, by its code.", ("error_code",), registry=REGISTRY
)
QUOTA_EXCEEDED = Counter(
    "tacit_quota_exceeded", "Calls and messages of a caller beyond a quota, by quota.", ("quota",), registry=REGISTRY
)
HANDSHAKES = Counter("tacit_tls_handshakes", "TLS handshakes that began, whether or not they ended.", registry=REGISTRY)
CONNECTIONS_OPEN = Gauge(
    "tacit_connections_open", "Connections to the port, with and without a certificate.", registry=REGISTRY
)
QUEUE_WAITING = Gauge("tacit_queue_waiting", "What waits for its turn, by queue.", ("queue",), registry=REGISTRY)
SESSIONS_OPEN = Gauge("tacit_sessions_open", "Sessions that are open at this service.", registry=REGISTRY)
STAGING_USED = Gauge("tacit_staging_used_bytes", "Memory that staged streams take.", registry=REGISTRY)
STAGING_BUDGET = Gauge("tacit_staging_budget_bytes", "Memory that staged streams may take.", registry=REGISTRY)
LOOP_LAG = Histogram(
    "tacit_event_loop_lag_seconds",
    "How late the event loop wakes a timer, twice a second: what every call waits on top.",
    buckets=_LAG_BUCKETS,
    registry=REGISTRY,
)
CERTIFICATE_END = Gauge(
    "tacit_certificate_not_after_timestamp_seconds", "When our own certificate expires.", registry=REGISTRY
)
REVOCATIONS_END = Gauge(
    "tacit_revocations_next_update_timestamp_seconds",
    "When the revocation list that we use is out of date; 0 without one.",
    registry=REGISTRY,
)


@asynccontextmanager
async def in_turn(semaphore: asyncio.Semaphore, queue: str) -> AsyncIterator[None]:
    """Hold a place for the length of the block; who waits for one is counted."""
    with QUEUE_WAITING.labels(queue).track_inprogress():
        await semaphore.acquire()
    try:
        yield
    finally:
        semaphore.release()


def watch_sessions(open_sessions: Callable[[], int]) -> None:
    """Ask this for the number of open sessions, whenever metrics are read."""
    SESSIONS_OPEN.set_function(open_sessions)


def watch_staging(free_bytes: Callable[[], int], budget_bytes: int) -> None:
    """Ask this for the free part of the budget, whenever metrics are read."""
    STAGING_BUDGET.set(budget_bytes)
    STAGING_USED.set_function(lambda: budget_bytes - free_bytes())


def watch_credentials(live: LiveCredentials, role: str) -> None:
    """Say until when the certificate and the revocation list are good, as their files are then."""
    BUILD_INFO.labels(__version__, role).set(1)
    CERTIFICATE_END.set_function(lambda: _end_of_certificate(live))
    REVOCATIONS_END.set_function(lambda: _end_of_revocations(live))


def _end_of_certificate(live: LiveCredentials) -> float:
    return live.current.identity.not_after.timestamp()


def _end_of_revocations(live: LiveCredentials) -> float:
    with suppress(TacitError):
        ends = live.trust.revocations_end
        return ends.timestamp() if ends else 0.0
    return 0.0


async def measure_loop_lag() -> None:
    """Observe how late timers are, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        LOOP_LAG.observe(max(0.0, loop.time() - due))


@asynccontextmanager
async def measuring() -> AsyncIterator[None]:
    """Measure the event loop while the block runs."""
    task = asyncio.create_task(measure_loop_lag())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


@contextmanager
def metrics_endpoint(address: str) -> Iterator[None]:
    """Serve the registry over HTTP while the block runs; does nothing when `address` is empty.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if not address:
        yield
        return
    host, port = split_address(address)
    try:
        server, thread = start_http_server(port, host, registry=REGISTRY)
    except OSError as error:
        raise ConfigError(f"the metrics cannot be served at {address}", got=error.strerror) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
