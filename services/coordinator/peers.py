"""Aggregator and key server, as the coordinator calls them: patient with a broken connection, and with nothing else."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from fl_core.errors import PeerLost, RemoteProtocolError, TacitError
from fl_core.rounds.paillier_terms import Custody, PaillierTerms
from fl_core.rounds.plan import RoundPlan, ServiceEndpoint
from fl_core.secagg.messages import Beacon
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.peer import call_unary, read_stream
from fl_core.transport.preflight import check_service
from fl_core.transport.retry import Backoff, retry
from fl_core.transport.tls import Credentials
from fl_core.wire.checks import indices_from_proto
from fl_core.wire.convert import beacon_to_proto, custody_to_proto, paillier_terms_from_proto, plan_to_proto
from fl_core.wire.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    keyserver_pb2,
    keyserver_pb2_grpc,
    round_pb2,
    status_pb2,
)

CALL_TIMEOUT_S = 10.0
ABANDON_TIMEOUT_S = 2.0
LOOK_TIMEOUT_S = 3.0
"""For a look at a service before a session is placed there. One that is slower has none to spare for a session."""
RELEASE_TIMEOUT_S = 900.0
"""For expanding the combined mask and handing over a sum, whatever the size of the model."""

ResponseT = TypeVar("ResponseT")
Connect = Callable[[grpc.aio.Channel], Any]


class ServicePeer:
    """The connection to one service. Channels are opened when they are needed, and again when our certificate changes.

    Args:
        role: of the service.
        address: host:port.
        credentials: gives our certificate as it is now.
        patience_s: how long the service may be out of reach.
        connect: makes the stub.
    """

    def __init__(
        self, role: Role, address: str, credentials: Callable[[], Credentials], patience_s: float, connect: Connect
    ) -> None:
        self._role = role
        self._address = address
        self._credentials = credentials
        self._patience_s = patience_s
        self._connect = connect
        self._channel: grpc.aio.Channel | None = None
        self._shown: Credentials | None = None
        self._stub: Any = None
        self._busy = 0

    @property
    def address(self) -> str:
        """host:port of the service."""
        return self._address

    @property
    def load(self) -> int:
        """Sessions of ours that run there now."""
        return self._busy

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count one session for the length of the block."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    @property
    def role(self) -> Role:
        """Of the service."""
        return self._role

    async def endpoint(self) -> ServiceEndpoint:
        """Where sites find the service and which certificate it must show, learnt by a look at it.

        Raises:
            IdentityError: it is not what it should be.
            PeerLost: nobody listens there or nobody answers in time.
        """
        found = await check_service(self._address, self._credentials(), self._role, timeout_s=LOOK_TIMEOUT_S)
        return ServiceEndpoint(found.identity.id, self._address, found.identity.certificate_sha256)

    async def call(self, method: str, request: object, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Make an idempotent call, again and again while the connection is broken.

        Raises:
            TacitError: what the service raised; PeerLost when it is out of reach for longer than the patience.
        """
        return await retry(lambda: self._call(method, request, timeout_s), deadline_s=timeout_s + self._patience_s)

    async def try_once(self, method: str, request: object, *, timeout_s: float) -> Any:
        """Make a call once.

        Raises:
            TacitError: what the service raised, or PeerLost.
        """
        return await self._call(method, request, timeout_s)

    async def follow(self, method: str, request: object) -> AsyncIterator[Any]:
        """Events of a session; after a broken connection they begin again with the first.

        Raises:
            TacitError: what the service raised; PeerLost when it is out of reach for longer than the patience.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(max_s=1.0)
        heard = loop.time()
        while True:
            try:
                async for event in read_stream(getattr(self._current(), method), request, timeout_s=None):
                    heard = loop.time()
                    backoff.reset()
                    yield event
                return
            except TacitError as error:
                if not error.retryable or loop.time() - heard > self._patience_s:
                    raise
            await asyncio.sleep(backoff.next_delay())

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _call(self, method: str, request: object, timeout_s: float) -> Any:
        return await call_unary(getattr(self._current(), method), request, timeout_s=timeout_s)

    def _current(self) -> Any:
        credentials = self._credentials()
        if self._channel is None or credentials is not self._shown:
            # Calls that run keep the channel that they have; it closes when they let go of it.
            self._channel = open_channel(self._address, credentials, self._role)
            self._shown = credentials
            self._stub = self._connect(self._channel)
        return self._stub


class AggregatorPeer(ServicePeer):
    """The aggregator."""

    def __init__(self, address: str, credentials: Callable[[], Credentials], patience_s: float) -> None:
        super().__init__(Role.AGGREGATOR, address, credentials, patience_s, aggregator_pb2_grpc.AggregatorServiceStub)

    async def holds(self, plan: RoundPlan) -> bool:
        """Whether the aggregator still has a session, as far as it can be asked."""
        try:
            response = await self.call("GetStatus", status_pb2.GetStatusRequest(job_id=plan.job_id))
        except PeerLost:
            return False
        except TacitError:
            # It is there and does not say: then it is believed to be as it was.
            return True
        return any(session.session_id == plan.session_id for session in response.sessions)

    async def open(self, plan: RoundPlan) -> None:
        """Begin a session."""
        response = await self.call("OpenAggregation", aggregator_pb2.OpenAggregationRequest(plan=plan_to_proto(plan)))
        check_session(plan, response.session_id, "aggregator")

    async def uploads(self, plan: RoundPlan) -> AsyncIterator[aggregator_pb2.UploadRecord]:
        """Uploads as they are accepted or refused, until the survivors are frozen."""
        request = aggregator_pb2.WatchAggregationRequest(session_id=plan.session_id)
        async for event in self.follow("WatchAggregation", request):
            yield event.upload

    async def admit(self, plan: RoundPlan, eligible: Sequence[int]) -> None:
        """Let these sites upload, and no others."""
        request = aggregator_pb2.AdmitUploadsRequest(session_id=plan.session_id, eligible=eligible)
        await self.call("AdmitUploads", request)

    async def freeze(self, plan: RoundPlan, eligible: Sequence[int]) -> tuple[tuple[int, ...], round_pb2.SignedPart]:
        """Take no more uploads; gives U3 and what the aggregator states about their uploads.

        In a plain session the sum was reported when this returns.
        """
        request = aggregator_pb2.FreezeSurvivorsRequest(session_id=plan.session_id, eligible=eligible)
        response = await self.call("FreezeSurvivors", request, timeout_s=RELEASE_TIMEOUT_S)
        return indices_from_proto(response.survivors, len(plan.roster)), response.part

    async def abandon(self, session_id: bytes) -> None:
        """Forget a session."""
        request = aggregator_pb2.AbandonAggregationRequest(session_id=session_id)
        await self.try_once("AbandonAggregation", request, timeout_s=ABANDON_TIMEOUT_S)


class KeyServerPeer(ServicePeer):
    """The key server."""

    def __init__(self, address: str, credentials: Callable[[], Credentials], patience_s: float) -> None:
        super().__init__(Role.KEYSERVER, address, credentials, patience_s, keyserver_pb2_grpc.KeyServerServiceStub)

    async def open(self, plan: RoundPlan) -> None:
        """Begin a session."""
        response = await self.call("OpenExchange", keyserver_pb2.OpenExchangeRequest(plan=plan_to_proto(plan)))
        check_session(plan, response.session_id, "key server")

    async def paillier_terms(self, custody: Custody) -> PaillierTerms:
        """The Paillier key of the next encrypted attempt."""
        request = keyserver_pb2.GetPaillierKeyRequest(custody=custody_to_proto(custody))
        response = await self.call("GetPaillierKey", request)
        return paillier_terms_from_proto(response.terms)

    async def exchange(self, plan: RoundPlan) -> AsyncIterator[keyserver_pb2.WatchExchangeResponse]:
        """Drop-outs of the exchange, and its end."""
        request = keyserver_pb2.WatchExchangeRequest(session_id=plan.session_id)
        async for event in self.follow("WatchExchange", request):
            yield event

    async def reveal_beacon(self, plan: RoundPlan, beacon: Beacon) -> None:
        """Answer the key server that has frozen U1 of a sparse graph."""
        request = keyserver_pb2.RevealBeaconRequest(session_id=plan.session_id, beacon=beacon_to_proto(beacon))
        await self.call("RevealBeacon", request)

    async def mark_lost(self, plan: RoundPlan, indices: Sequence[int]) -> None:
        """Do not wait for these sites any more."""
        await self.call("MarkLost", keyserver_pb2.MarkLostRequest(session_id=plan.session_id, indices=indices))

    async def unmask(
        self, plan: RoundPlan, survivors: Sequence[int], frozen: round_pb2.SignedPart
    ) -> keyserver_pb2.UnmaskResponse:
        """Run rounds 3 and 4; when this returns without a failure, the sum was reported."""
        schedule = plan.schedule
        timeout_s = schedule.signing.max_seconds + schedule.revealing.max_seconds + RELEASE_TIMEOUT_S
        request = keyserver_pb2.UnmaskRequest(session_id=plan.session_id, survivors=survivors, frozen=frozen)
        response: keyserver_pb2.UnmaskResponse = await self.call("Unmask", request, timeout_s=timeout_s)
        return response

    async def abandon(self, session_id: bytes) -> None:
        """Forget a session."""
        request = keyserver_pb2.AbandonExchangeRequest(session_id=session_id)
        await self.try_once("AbandonExchange", request, timeout_s=ABANDON_TIMEOUT_S)


def check_session(plan: RoundPlan, session_id: bytes, whose: str) -> None:
    """Check that a service computed the same session from the plan as we did.

    Raises:
        RemoteProtocolError: it did not; then it read another plan.
    """
    if session_id != plan.session_id:
        raise RemoteProtocolError(
            f"the {whose} computed another session from the plan",
            expected=plan.session_id.hex(),
            got=session_id[:32].hex(),
            fix="run the same version of Tacit everywhere",
        )
