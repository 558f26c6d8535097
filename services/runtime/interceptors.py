"""The edge of a service: every call is admitted, logged, counted, and its errors mapped, in this one place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from inspect import isasyncgenfunction
from secrets import token_hex
from time import perf_counter
from typing import Any, TypeAlias

import grpc
import structlog

from fl_core.errors import InternalError, TacitError
from fl_core.transport.errors import from_rpc_error, to_status
from fl_core.transport.tracing import continued, incoming
from services.runtime.identity import OPEN_METHODS, Context, Gatekeeper, connection_of
from services.runtime.metrics import RPC_FINISHED, RPC_OPEN, RPC_REFUSED, RPC_SECONDS

log = structlog.get_logger(__name__)

Behaviour = Callable[[Any, Context], Any]
# gRPC's handler is generic in its type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]]"


class CallBoundary(grpc.aio.ServerInterceptor):
    """Wraps every handler: who calls, may they, how did it end.

    An error of ours reaches the caller with its class and sentence. Anything else is logged with an incident number
    and reaches the caller as `InternalError` with that number and nothing more.

    Args:
        gatekeeper: admits or refuses calls.
    """

    def __init__(self, gatekeeper: Gatekeeper) -> None:
        self._gatekeeper = gatekeeper

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> MaybeHandler:
        """Give gRPC the wrapped handler of the method. An unknown method stays unknown."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        return self._wrap(_text(handler_call_details.method), handler)

    def _wrap(self, method: str, handler: Handler) -> Handler:
        make: Any = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
        behaviour: Behaviour = getattr(handler, _kind(handler))
        wrapped = self._streaming(method, behaviour) if handler.response_streaming else self._single(method, behaviour)
        wrapped_handler: Handler = make(wrapped, handler.request_deserializer, handler.response_serializer)
        return wrapped_handler

    def _single(self, method: str, behaviour: Behaviour) -> Behaviour:
        async def respond(request: Any, context: Context) -> Any:
            async with self._boundary(method, context):
                return await behaviour(request, context)

        return respond

    def _streaming(self, method: str, behaviour: Behaviour) -> Behaviour:
        # A generator is driven here and closed here: gRPC would leave the clean-up of a cancelled one to the
        # garbage collector.
        async def respond(request: Any, context: Context) -> None:
            async with self._boundary(method, context):
                if not isasyncgenfunction(behaviour):
                    await behaviour(request, context)
                    return
                connection = connection_of(context)
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        self._gatekeeper.recheck(connection)
                        await context.write(response)

        return respond

    @asynccontextmanager
    async def _boundary(self, method: str, context: Context) -> AsyncIterator[None]:
        call = _Call(method)
        try:
            identity = self._gatekeeper.admit(method, context)
            call.admitted(identity.name, identity.role.value)
            with continued(incoming(context.invocation_metadata()), method.rsplit("/", 1)[-1], caller=identity.name):
                yield
        except asyncio.CancelledError:
            call.finish("CANCELLED")
            raise
        except grpc.aio.AbortError:
            call.finish("ABORTED_BY_HANDLER")
            raise
        except Exception as error:
            refusal = known_error(error) or _incident(method, error)
            status = to_status(refusal)
            call.finish(status.code.name, refusal)
            await context.abort(status.code, status.details, status.metadata)
        else:
            call.finish("OK")


def known_error(error: BaseException) -> TacitError | None:
    """The error of ours behind an exception: itself, a peer's refusal, or the first one in a group."""
    if isinstance(error, TacitError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    if isinstance(error, BaseExceptionGroup):
        return next((known for part in error.exceptions if (known := known_error(part))), None)
    return None


class _Call:
    """Log line and metrics of one call. Each call runs in a task of its own, so what it binds ends with it."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._role = "unknown"
        self._started = perf_counter()
        self._emit = log.debug if method in OPEN_METHODS else log.info
        RPC_OPEN.labels(method).inc()
        structlog.contextvars.bind_contextvars(method=method.rsplit("/", 1)[-1])

    def admitted(self, name: str, role: str) -> None:
        self._role = role
        structlog.contextvars.bind_contextvars(caller=name)

    def finish(self, code: str, error: TacitError | None = None) -> None:
        seconds = perf_counter() - self._started
        RPC_OPEN.labels(self._method).dec()
        RPC_SECONDS.labels(self._method).observe(seconds)
        RPC_FINISHED.labels(self._method, self._role, code).inc()
        if error is None:
            self._emit("rpc_finished", code=code, seconds=round(seconds, 4))
            return
        RPC_REFUSED.labels(error.code).inc()
        log.warning("rpc_refused", code=code, seconds=round(seconds, 4), error_code=error.code, reason=str(error))


def _incident(method: str, error: Exception) -> InternalError:
    number = token_hex(4)
    log.error("rpc_failed", incident=number, method=method, exc_info=error)
    return InternalError("the service failed on this call", got=f"incident {number}", fix="its log has the details")


def _kind(handler: Handler) -> str:
    request = "stream" if handler.request_streaming else "unary"
    response = "stream" if handler.response_streaming else "unary"
    return f"{request}_{response}"


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
