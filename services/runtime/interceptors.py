"""The edge of a service: every call is admitted, logged, counted, and its errors mapped, in this one place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from inspect import isasyncgenfunction
from secrets import token_hex
from time import perf_counter
from typing import Any, TypeAlias

import grpc
import structlog

from fl_core.errors import InternalError, RemoteProtocolError, TacitError
from fl_core.transport.errors import from_rpc_error, to_status
from fl_core.transport.identity import Identity, Role
from fl_core.transport.tracing import continued, incoming
from services.runtime.identity import OPEN_METHODS, Context, Gatekeeper, connection_of
from services.runtime.metrics import RPC_FINISHED, RPC_OPEN, RPC_REFUSED, RPC_SECONDS
from services.runtime.quotas import Quotas, is_mistake

log = structlog.get_logger(__name__)

Behaviour = Callable[[Any, Context], Any]
# gRPC's handler is generic in its type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]]"


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it came: its size in bytes, and None where it could not be read."""

    size: int
    message: Any


def reading(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Received]:
    """Reads messages so that one that cannot be read reaches the handler's boundary, instead of gRPC's own log."""
    parse = deserialize or bytes

    def read(data: bytes) -> Received:
        try:
            return Received(len(data), parse(data))
        except Exception:
            return Received(len(data), None)

    return read


class _Messages:
    """The messages of a client stream, each opened as it comes."""

    def __init__(self, received: AsyncIterator[Received], open_one: Callable[[Received], Awaitable[Any]]) -> None:
        self._received = received
        self._open_one = open_one
        # Begun with the first message: gRPC warns of an iteration that is begun and never read.
        self._reading: AsyncIterator[Received] | None = None

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        if self._reading is None:
            self._reading = aiter(self._received)
        return await self._open_one(await anext(self._reading))


class CallBoundary(grpc.aio.ServerInterceptor):
    """Wraps every handler: who calls, may they, how did it end.

    An error of ours reaches the caller with its class and sentence. Anything else is logged with an incident number
    and reaches the caller as `InternalError` with that number and nothing more.

    Args:
        gatekeeper: admits or refuses calls.
        quotas: of each site; other parties are few and trusted to be busy.
    """

    def __init__(self, gatekeeper: Gatekeeper, quotas: Quotas) -> None:
        self._gatekeeper = gatekeeper
        self._quotas = quotas

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> MaybeHandler:
        """Give gRPC the wrapped handler of the method. An unknown method stays unknown, and is a mistake."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(self._unknown)
        return self._wrap(_text(handler_call_details.method), handler)

    def _wrap(self, method: str, handler: Handler) -> Handler:
        make: Any = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
        behaviour: Behaviour = getattr(handler, _kind(handler))
        wrapped = self._streaming(method, behaviour) if handler.response_streaming else self._single(method, behaviour)
        wrapped_handler: Handler = make(wrapped, reading(handler.request_deserializer), handler.response_serializer)
        return wrapped_handler

    async def _unknown(self, _request: bytes, context: Context) -> None:
        identity = self._gatekeeper.recheck(connection_of(context))
        if identity.role is Role.SITE:
            await self._quotas.mistaken(identity.name)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    def _single(self, method: str, behaviour: Behaviour) -> Behaviour:
        async def respond(request: Any, context: Context) -> Any:
            async with self._boundary(method, context) as caller:
                return await behaviour(await self._opened(request, caller), context)

        return respond

    async def _opened(self, request: Any, caller: Identity) -> Any:
        """The message of a call, or its messages, without what came with them."""
        if isinstance(request, Received):
            return await self._counted(request, caller)
        return _Messages(request, lambda received: self._counted(received, caller))

    async def _counted(self, received: Received, caller: Identity) -> Any:
        if caller.role is Role.SITE:
            await self._quotas.received(caller.name, received.size)
        if received.message is None:
            raise RemoteProtocolError("a message cannot be read", expected="protobuf", got=f"{received.size} bytes")
        return received.message

    def _streaming(self, method: str, behaviour: Behaviour) -> Behaviour:
        # A generator is driven here and closed here: gRPC would leave the clean-up of a cancelled one to the
        # garbage collector.
        async def respond(request: Any, context: Context) -> None:
            async with self._boundary(method, context) as caller:
                opened = await self._opened(request, caller)
                if not isasyncgenfunction(behaviour):
                    await behaviour(opened, context)
                    return
                connection = connection_of(context)
                async with aclosing(behaviour(opened, context)) as responses:
                    async for response in responses:
                        self._gatekeeper.recheck(connection)
                        await context.write(response)

        return respond

    @asynccontextmanager
    async def _boundary(self, method: str, context: Context) -> AsyncIterator[Identity]:
        call, site = _Call(method), ""
        try:
            identity = self._gatekeeper.admit(method, context)
            call.admitted(identity.name, identity.role.value)
            site = identity.name if identity.role is Role.SITE else ""
            traced = continued(incoming(context.invocation_metadata()), method.rsplit("/", 1)[-1], caller=identity.name)
            async with self._within_quota(site, context.peer()):
                with traced:
                    yield identity
        except asyncio.CancelledError:
            call.finish("CANCELLED")
            raise
        except grpc.aio.AbortError:
            call.finish("ABORTED_BY_HANDLER")
            raise
        except Exception as error:
            refusal = known_error(error) or _incident(method, error)
            if site and is_mistake(refusal):
                await self._quotas.mistaken(site)
            status = to_status(refusal)
            call.finish(status.code.name, refusal)
            await context.abort(status.code, status.details, status.metadata)
        else:
            call.finish("OK")

    def _within_quota(self, site: str, peer: str) -> AbstractAsyncContextManager[None]:
        return self._quotas.call(site, peer) if site else nullcontext()


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
