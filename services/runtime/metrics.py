"""Prometheus metrics: one registry per process, and the endpoint that serves it."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from fl_core.errors import ConfigError
from services.runtime.settings import split_address

REGISTRY = CollectorRegistry()
"""Services register their own metrics here."""

RPC_FINISHED = Counter(
    "tacit_rpc_finished",
    "Calls by method, role of the caller and status.",
    ("method", "role", "code"),
    registry=REGISTRY,
)
RPC_SECONDS = Histogram("tacit_rpc_seconds", "Duration of calls by method.", ("method",), registry=REGISTRY)
RPC_OPEN = Gauge("tacit_rpc_open", "Calls that are running, by method.", ("method",), registry=REGISTRY)


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
