"""A small aggregator whose handlers fail in every way, served over real mTLS."""
# ruff: noqa: N802 - the names of the handlers are those of the wire

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest

from fl_core.errors import SessionFrozen, UnknownSession
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.wire.v1 import aggregator_pb2, aggregator_pb2_grpc, status_pb2
from services.runtime.identity import ANYONE, caller, role_table
from services.runtime.server import running_server
from services.runtime.settings import ServiceSettings

SERVICE = "fl_core.wire.v1.AggregatorService"
SECRET_TEXT = "seed 4711 of site a"

TABLE = role_table(
    SERVICE,
    {
        "UpdateParameters": {Role.SITE},
        "GetUpload": {Role.SITE},
        "OpenAggregation": {Role.COORDINATOR},
        "WatchAggregation": {Role.COORDINATOR, Role.SITE},
        "AdmitUploads": {Role.COORDINATOR},
        "FreezeSurvivors": {Role.COORDINATOR},
        "SubmitMask": {Role.KEYSERVER},
        "AbandonAggregation": {Role.COORDINATOR, Role.SITE},
        "GetStatus": ANYONE,
    },
)


class FailingAggregator(aggregator_pb2_grpc.AggregatorServiceServicer):
    """Handlers that answer, refuse, crash and hang."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.chunks = 0

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return status_pb2.GetStatusResponse(service_id=caller(context).name)

    async def GetUpload(self, request: Any, context: Any) -> Any:
        raise UnknownSession("no such session", expected="an open one", got="0102", fix="wait for the next attempt")

    async def AbandonAggregation(self, request: Any, context: Any) -> Any:
        raise ValueError(SECRET_TEXT)

    async def UpdateParameters(self, request_iterator: Any, context: Any) -> Any:
        async for _ in request_iterator:
            self.chunks += 1
            if self.chunks == 3:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._freeze())
        return aggregator_pb2.UpdateParametersResponse(session_id=b"s")

    async def _freeze(self) -> None:
        raise SessionFrozen("too late")

    async def WatchAggregation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for _ in range(3):
                yield aggregator_pb2.WatchAggregationResponse()
            if request.session_id == b"crash":
                raise RuntimeError(SECRET_TEXT)
            while request.session_id != b"end":
                yield aggregator_pb2.WatchAggregationResponse()
                await asyncio.sleep(0.02)
        finally:
            self.closed.set()


@pytest.fixture
def servicer() -> FailingAggregator:
    return FailingAggregator()


@pytest.fixture
def serving(federation: Any, servicer: FailingAggregator) -> Callable[..., AbstractAsyncContextManager[str]]:
    """`async with serving() as address`: the servicer behind a real server."""

    @asynccontextmanager
    async def serve(**fields: Any) -> AsyncIterator[str]:
        settings = federation.settings(ServiceSettings, Role.AGGREGATOR, "agg-1", **fields)

        def add(server: grpc.aio.Server) -> None:
            aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server(servicer, server)

        async with running_server(settings, role=Role.AGGREGATOR, roles_by_method=TABLE, add_servicers=add) as address:
            yield address

    return serve


@pytest.fixture
def connect(federation: Any) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """`async with connect(address, Role.SITE, "a") as stub`."""

    @asynccontextmanager
    async def open_stub(address: str, role: Role, subject_id: str) -> AsyncIterator[Any]:
        credentials = federation.credentials(role, subject_id)
        async with open_channel(address, credentials, Role.AGGREGATOR) as channel:
            yield aggregator_pb2_grpc.AggregatorServiceStub(channel)

    return open_stub
