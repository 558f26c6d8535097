"""Traces of rounds by OpenTelemetry: one round is one trace, across services and sites. Off, it costs one comparison.

A coordinator opens the trace of a round. Its calls to the services carry the trace in their metadata, its invitations
carry it to the sites, and theirs carry it on. Spans hold ids and counts; no vector, key, seed or share is ever given
to one.

The format of the trace context is that of https://www.w3.org/TR/trace-context/.
"""

import re
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import grpc

from fl_core.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Attribute = str | int | float | bool

METADATA_KEY = "traceparent"

_TRACE_CONTEXT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NOTHING: AbstractContextManager[Any] = nullcontext()

_tracer: "Tracer | None" = None


def trace_to(endpoint: str, party: str) -> "TracerProvider":
    """Send spans of this process to a collector, by OTLP over gRPC.

    Args:
        endpoint: such as http://127.0.0.1:4317.
        party: role and id, under which the spans stand.

    Returns:
        The provider; `shutdown` sends what is left.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "traces need OpenTelemetry", got=str(error), fix="pip install 'tacit[tracing]', or take tracing out"
        ) from error
    resource = Resource.create({"service.name": f"tacit-{party.partition('/')[0]}", "service.instance.id": party})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    use_provider(provider)
    return provider


@contextmanager
def tracing(endpoint: str, party: str) -> Iterator[None]:
    """Trace while the block runs; does nothing when `endpoint` is empty.

    Raises:
        ConfigError: as `trace_to`.
    """
    if not endpoint:
        yield
        return
    provider = trace_to(endpoint, party)
    try:
        yield
    finally:
        use_provider(None)
        provider.shutdown()


def use_provider(provider: "TracerProvider | None") -> None:
    """Take spans from a provider of the program's own, or stop tracing."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("tacit")


def span(name: str, **attributes: Attribute) -> "AbstractContextManager[Span | None]":
    """A span for the length of the block, inside the one around it. An exception ends it as failed, by its class."""
    if _tracer is None:
        return _NOTHING
    return _span(_tracer, name, attributes)


def round_span(job_id: str, round_id: int, attempt: int) -> AbstractContextManager[Any]:
    """The span of an attempt. All attempts at a round are one trace, also across restarts of the coordinator."""
    if _tracer is None:
        return _NOTHING
    # The ids are those of the round itself, so whoever knows the round finds its trace.
    digest = sha256(f"tacit round {job_id}/{round_id}".encode()).hexdigest()
    return _continued(
        _tracer,
        f"00-{digest[:32]}-{digest[32:48]}-01",
        "round",
        {"job_id": job_id, "round_id": round_id, "attempt": attempt},
    )


def continued(trace_context: str, name: str, **attributes: Attribute) -> AbstractContextManager[Any]:
    """A span inside one of another party. Without a valid trace context there is none."""
    if _tracer is None or not _TRACE_CONTEXT.fullmatch(trace_context):
        return _NOTHING
    return _continued(_tracer, trace_context, name, attributes)


def trace_context() -> str:
    """The span that is open here, as it travels to another party; empty without one."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def traced(
    name: str,
) -> Callable[[Callable[Arguments, Coroutine[Any, Any, Result]]], Callable[Arguments, Coroutine[Any, Any, Result]]]:
    """A coroutine function whose every call is a span."""

    def wrap(
        work: Callable[Arguments, Coroutine[Any, Any, Result]],
    ) -> Callable[Arguments, Coroutine[Any, Any, Result]]:
        @wraps(work)
        async def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with span(name):
                return await work(*args, **kwargs)

        return run

    return wrap


def incoming(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The trace context that a call brought, or an empty text."""
    if _tracer is None:
        return ""
    found = (value for key, value in metadata or () if key == METADATA_KEY)
    value = next(found, "")
    return value if isinstance(value, str) else ""


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """What makes a channel carry the trace context with every call; nothing when tracing is off."""
    return [] if _tracer is None else [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]


@contextmanager
def _span(tracer: "Tracer", name: str, attributes: dict[str, Attribute]) -> "Iterator[Span]":
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as opened:
        opened.set_attributes(attributes)
        try:
            yield opened
        except BaseException as error:
            _mark_failed(opened, error)
            raise


@contextmanager
def _continued(tracer: "Tracer", trace_context: str, name: str, attributes: dict[str, Attribute]) -> "Iterator[Span]":
    from opentelemetry import context, trace

    _, trace_id, span_id, flags = trace_context.split("-")
    remote = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(remote)))
    try:
        with _span(tracer, name, attributes) as opened:
            yield opened
    finally:
        context.detach(token)


def _mark_failed(opened: "Span", error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    # The class alone: messages are for the log, which redacts.
    opened.set_attribute("error.type", type(error).__name__)
    opened.set_status(Status(StatusCode.ERROR))


def _with_context(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
    carried = trace_context()
    if not carried:
        return details
    metadata = grpc.aio.Metadata(*(details.metadata or ()), (METADATA_KEY, carried))
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Awaitable[Any]], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Awaitable[Any]], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: Callable[..., Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(_with_context(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: Callable[..., Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(_with_context(client_call_details), request_iterator)
