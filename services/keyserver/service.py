"""The RPCs of the key server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import structlog

import fl_core
from fl_core.errors import NotFound, PlanError, RemoteProtocolError
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.transcript import BadTranscript, Body, beacon_body, sign_part, uploads_of
from fl_core.transport.identity import Identity, Role, RosterTrust
from fl_core.transport.tls import LiveCredentials
from fl_core.wire.convert import (
    abandon_reason_to_proto,
    advertisement_from_proto,
    beacon_from_proto,
    custody_from_proto,
    dropout_reason_to_proto,
    indices_from_proto,
    paillier_terms_to_proto,
    part_from_proto,
    part_to_proto,
    plan_from_proto,
    proof_to_proto,
    revealed_from_proto,
    sealed_shares_from_proto,
    session_id_from_proto,
    signature_from_proto,
    survivors_to_proto,
)
from fl_core.wire.v1 import keyserver_pb2, keyserver_pb2_grpc, round_pb2, status_pb2
from services.keyserver.delivery import MaskDelivery
from services.keyserver.facts import Closed, Dropped, ExchangeFact, Failed, Frozen, Unmasked
from services.keyserver.journal import UnmaskJournal
from services.keyserver.session import ExchangeSession
from services.keyserver.settings import KeyServerSettings
from services.runtime.identity import Context, caller, role_table
from services.runtime.membership import check_addressed, check_site
from services.runtime.metrics import watch_sessions
from services.runtime.sessions import SessionTable, StreamSlots
from services.runtime.streams import expect_message

if TYPE_CHECKING:
    # Needs gmpy2, which a key server of masked sums does not have to have.
    from services.keyserver.decryption import DecryptionDesk

log = structlog.get_logger(__name__)

ROLES = role_table(
    "fl_core.wire.v1.KeyServerService",
    {
        "ExchangeKeys": {Role.SITE},
        "RevealShares": {Role.SITE},
        "OpenExchange": {Role.COORDINATOR},
        "WatchExchange": {Role.COORDINATOR},
        "RevealBeacon": {Role.COORDINATOR},
        "MarkLost": {Role.COORDINATOR},
        "Unmask": {Role.COORDINATOR},
        "GetPaillierKey": {Role.COORDINATOR},
        "DecryptSum": {Role.AGGREGATOR},
        "DecryptPartially": {Role.AGGREGATOR},
        "AbandonExchange": {Role.COORDINATOR},
        "GetStatus": set(Role),
    },
)

ExchangeRequests = AsyncIterator[keyserver_pb2.ExchangeKeysRequest]
RevealRequests = AsyncIterator[keyserver_pb2.RevealSharesRequest]


class KeyServerService(keyserver_pb2_grpc.KeyServerServiceServicer):
    """Directory of signed keys, relay of sealed shares, unmasking.

    Args:
        settings: of the key server.
        credentials: its certificate, and whom it trusts, as they are now.
        journal: of unmasked sessions.
        desk: opens encrypted sums; None when this key server has no key for them.
    """

    def __init__(
        self,
        settings: KeyServerSettings,
        credentials: LiveCredentials,
        journal: UnmaskJournal,
        desk: "DecryptionDesk | None" = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._journal = journal
        self._desk = desk
        self._started = monotonic()
        self._sessions: SessionTable[ExchangeSession] = SessionTable(settings.max_sessions)
        self._streams = StreamSlots(settings.streams_per_caller)
        watch_sessions(lambda: len(self._sessions.open_sessions))
        self._exchanges: set[asyncio.Task[None]] = set()
        self._delivery = MaskDelivery(lambda: credentials.current, settings.delivery_timeout_seconds)

    async def drain(self, patience_s: float) -> None:
        """Take no session any more, and wait for those that are open."""
        await self._sessions.drain(patience_s)

    async def close(self) -> None:
        """Drop every session and wait for its exchange to end."""
        self._sessions.close()
        if self._exchanges:
            await asyncio.wait(self._exchanges)

    async def ExchangeKeys(  # noqa: N802 - named by the wire
        self, request_iterator: ExchangeRequests, context: Context
    ) -> AsyncIterator[keyserver_pb2.ExchangeKeysResponse]:
        """Site: rounds 0 and 1."""
        identity = caller(context)
        with self._streams.hold(identity.name):
            requests = aiter(request_iterator)
            hello = await expect_message(requests, "hello", self._settings.message_timeout_seconds)
            session, index = self._join(hello.hello, identity)
            session.traffic.up[index] += hello.ByteSize()
            first = await expect_message(requests, "advertisement", self._settings.message_timeout_seconds)
            session.traffic.up[index] += first.ByteSize()
            with session.judging(index):
                session.advertise(index, advertisement_from_proto(first.advertisement))
            yield await session.directory(index)
            # Sealing shares for everybody takes a while in a large cohort, so the phase itself is the limit.
            second = await expect_message(requests, "shares", session.plan.schedule.sharing.max_seconds)
            session.traffic.up[index] += second.ByteSize()
            with session.judging(index):
                session.share(index, sealed_shares_from_proto(second.shares))
            yield await session.relayed(index)

    async def RevealShares(  # noqa: N802
        self, request_iterator: RevealRequests, context: Context
    ) -> AsyncIterator[keyserver_pb2.RevealSharesResponse]:
        """Site: rounds 3 and 4."""
        identity = caller(context)
        with self._streams.hold(identity.name):
            requests = aiter(request_iterator)
            hello = await expect_message(requests, "hello", self._settings.message_timeout_seconds)
            session, index = self._join(hello.hello, identity)
            schedule = session.plan.schedule
            survivors = await session.survivors(index)
            session.traffic.up[index] += hello.ByteSize()
            told = survivors_to_proto(survivors)
            told.inclusion_path.extend(session.inclusion_path(index))
            yield _counted(session, index, keyserver_pb2.RevealSharesResponse(survivors=told))
            first = await expect_message(requests, "signature", schedule.signing.max_seconds)
            session.traffic.up[index] += first.ByteSize()
            with session.judging(index):
                session.sign(index, signature_from_proto(first.signature))
            proof = await session.proof(index)
            yield _counted(session, index, keyserver_pb2.RevealSharesResponse(proof=proof_to_proto(proof)))
            second = await expect_message(requests, "shares", schedule.revealing.max_seconds)
            session.traffic.up[index] += second.ByteSize()
            with session.judging(index):
                session.reveal(index, revealed_from_proto(second.shares))
            yield _counted(session, index, keyserver_pb2.RevealSharesResponse(done=keyserver_pb2.RevealDone()))

    async def OpenExchange(  # noqa: N802
        self, request: keyserver_pb2.OpenExchangeRequest, context: Context
    ) -> keyserver_pb2.OpenExchangeResponse:
        """Coordinator: begin a session. Opening it again changes nothing; one that was unmasked stays closed."""
        plan = plan_from_proto(request.plan)
        _bind(plan)
        owner = caller(context)
        self._check_plan(plan)
        await self._journal.check_not_unmasked(plan.session_id)
        if self._sessions.find(plan.session_id, owner) is None:
            self._sessions.supersede(plan)
            session = self._new_session(plan)
            self._sessions.add(session, owner)
            self._start(session)
            log.info("exchange_opened", job_id=plan.job_id, sites=len(plan.roster))
        return keyserver_pb2.OpenExchangeResponse(session_id=plan.session_id)

    async def WatchExchange(  # noqa: N802
        self, request: keyserver_pb2.WatchExchangeRequest, context: Context
    ) -> AsyncIterator[keyserver_pb2.WatchExchangeResponse]:
        """Coordinator: drop-outs as they are seen, past ones first, and the end of the exchange."""
        identity = caller(context)
        session = self._sessions.owned(session_id_from_proto(request.session_id), identity)
        with self._streams.hold((identity.name, session.plan.session_id)):
            async for fact in session.facts.follow():
                event = _event(fact)
                if isinstance(fact, Closed):
                    event.closed.part.CopyFrom(self._part("exchanged", _exchanged_body(session, fact)))
                yield event

    async def RevealBeacon(  # noqa: N802
        self, request: keyserver_pb2.RevealBeaconRequest, context: Context
    ) -> keyserver_pb2.RevealBeaconResponse:
        """Coordinator: the beacon of a sparse graph, for the directory that `frozen` named."""
        session = self._sessions.owned(session_id_from_proto(request.session_id), caller(context))
        _bind(session.plan)
        await session.reveal_beacon(beacon_from_proto(request.beacon))
        log.info("graph_made", degree=session.plan.graph and session.plan.graph.degree)
        return keyserver_pb2.RevealBeaconResponse()

    async def MarkLost(  # noqa: N802
        self, request: keyserver_pb2.MarkLostRequest, context: Context
    ) -> keyserver_pb2.MarkLostResponse:
        """Coordinator: do not wait for these sites."""
        session = self._sessions.owned(session_id_from_proto(request.session_id), caller(context))
        session.mark_lost(indices_from_proto(request.indices, len(session.plan.roster)))
        return keyserver_pb2.MarkLostResponse()

    async def Unmask(  # noqa: N802
        self, request: keyserver_pb2.UnmaskRequest, context: Context
    ) -> keyserver_pb2.UnmaskResponse:
        """Coordinator: rounds 3 and 4 for these survivors, once; answers when the aggregate has arrived."""
        session_id = session_id_from_proto(request.session_id)
        # After a restart the session is gone, and the better answer is that it was unmasked before.
        await self._journal.check_not_unmasked(session_id)
        session = self._sessions.owned(session_id, caller(context))
        _bind(session.plan)
        survivors = indices_from_proto(request.survivors, len(session.plan.roster))
        uploads = _uploads(session.plan, survivors, request.frozen)
        try:
            outcome = await session.unmask(
                uploads, self._journal.record, self._delivery.deliver, self._settings.mask_threads
            )
        finally:
            if session.is_over:
                self._sessions.finish(session_id)
        log.info(
            "session_unmasked" if outcome.failure is None else "unmasking_failed",
            survivors=len(survivors),
            signed=len(outcome.signed),
            revealed=len(outcome.revealed),
            failure=None if outcome.failure is None else outcome.failure.value,
        )
        response = _unmask_response(outcome)
        response.part.CopyFrom(self._part("unmasked", _unmasked_body(session, uploads, outcome)))
        return response

    async def GetPaillierKey(  # noqa: N802
        self,
        request: keyserver_pb2.GetPaillierKeyRequest,
        context: Context,  # noqa: ARG002
    ) -> keyserver_pb2.GetPaillierKeyResponse:
        """Coordinator: the key of the next encrypted attempt."""
        terms = await self._decryption().terms(custody_from_proto(request.custody))
        return keyserver_pb2.GetPaillierKeyResponse(terms=paillier_terms_to_proto(terms))

    async def DecryptSum(  # noqa: N802
        self, request_iterator: AsyncIterator[keyserver_pb2.DecryptSumRequest], context: Context
    ) -> AsyncIterator[keyserver_pb2.DecryptSumResponse]:
        """Aggregator: the plaintexts of one blinded sum, without the pads of its sites."""
        identity = caller(context)
        with self._streams.hold(identity.name):
            requests = aiter(request_iterator)
            header = (await expect_message(requests, "header", self._settings.message_timeout_seconds)).header
            async for plaintexts in self._decryption().open(header, identity, requests):
                yield keyserver_pb2.DecryptSumResponse(plaintexts=plaintexts)

    async def DecryptPartially(  # noqa: N802
        self, request_iterator: AsyncIterator[keyserver_pb2.DecryptSumRequest], context: Context
    ) -> AsyncIterator[keyserver_pb2.DecryptPartiallyResponse]:
        """Aggregator: what our share of the private key makes of one blinded sum."""
        identity = caller(context)
        with self._streams.hold(identity.name):
            requests = aiter(request_iterator)
            header = (await expect_message(requests, "header", self._settings.message_timeout_seconds)).header
            async for response in self._decryption().decrypt_partially(header, identity, requests):
                yield response

    async def AbandonExchange(  # noqa: N802
        self,
        request: keyserver_pb2.AbandonExchangeRequest,
        context: Context,  # noqa: ARG002
    ) -> keyserver_pb2.AbandonExchangeResponse:
        """Coordinator, or the replica that took over from it: forget a session. One that is gone stays gone."""
        session_id = session_id_from_proto(request.session_id)
        if self._sessions.knows(session_id):
            self._sessions.drop(session_id, "abandoned")
            log.info("exchange_abandoned", session_id=session_id.hex())
        return keyserver_pb2.AbandonExchangeResponse()

    async def GetStatus(  # noqa: N802
        self,
        request: status_pb2.GetStatusRequest,
        context: Context,  # noqa: ARG002
    ) -> status_pb2.GetStatusResponse:
        """Everyone: open sessions and how far they are."""
        return status_pb2.GetStatusResponse(
            service_id=self._settings.service_id,
            role=Role.KEYSERVER.value,
            version=fl_core.__version__,
            uptime_seconds=monotonic() - self._started,
            sessions=[_status(session) for session in self._sessions if request.job_id in ("", session.plan.job_id)],
        )

    def _decryption(self) -> "DecryptionDesk":
        if self._desk is None:
            raise NotFound(
                "this key server has no Paillier key",
                expected="paillier_key in its configuration",
                fix="make one with `tacit keys make`, or choose aggregation: secagg",
            )
        return self._desk

    def _part(self, kind: str, body: Body) -> round_pb2.SignedPart:
        return part_to_proto(sign_part(kind, body, self._credentials.current.signer()))

    def _join(self, hello: keyserver_pb2.SessionHello, identity: Identity) -> tuple[ExchangeSession, int]:
        session = self._sessions.get(session_id_from_proto(hello.session_id))
        check_site(session.plan, identity, hello.index)
        _bind(session.plan, index=hello.index)
        return session, hello.index

    def _check_plan(self, plan: RoundPlan) -> None:
        if plan.aggregation is not Aggregation.SECAGG:
            raise PlanError("only a masked attempt has an exchange of keys", expected=Aggregation.SECAGG.value)
        check_addressed(plan.keyserver, self._credentials.current.identity)
        if len(plan.roster) > self._settings.max_cohort:
            raise PlanError(
                "the cohort is larger than this key server takes",
                expected=f"at most {self._settings.max_cohort} sites",
                got=len(plan.roster),
                fix="lower cohort.max of the job, or raise max_cohort in the configuration of the key server",
            )

    def _new_session(self, plan: RoundPlan) -> ExchangeSession:
        return ExchangeSession(plan, RosterTrust(plan.roster, self._credentials.trust, datetime.now(UTC)))

    def _start(self, session: ExchangeSession) -> None:
        task = asyncio.create_task(self._run_exchange(session))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)

    async def _run_exchange(self, session: ExchangeSession) -> None:
        await session.run_exchange()
        if session.is_over:
            self._sessions.finish(session.plan.session_id)


def _uploads(plan: RoundPlan, survivors: tuple[int, ...], frozen: round_pb2.SignedPart) -> UploadTree:
    if not frozen.kind:
        raise RemoteProtocolError(
            "the uploads are not stated by the aggregator of the plan",
            expected="its signed part of kind 'frozen'",
            got="no part",
            fix="pass on what the aggregator answered to FreezeSurvivors",
        )
    try:
        uploads = uploads_of(part_from_proto(frozen), plan.binding, plan.aggregator.certificate_sha256)
    except BadTranscript as error:
        raise RemoteProtocolError(error.what, expected=error.expected, got=error.got, fix=error.fix) from error
    if uploads.survivors != survivors:
        raise RemoteProtocolError(
            "the aggregator stated the uploads of other survivors",
            expected=f"{len(survivors)} sites",
            got=f"{len(uploads.survivors)} sites",
            fix="pass on what the aggregator answered to FreezeSurvivors",
        )
    return uploads


def _exchanged_body(session: ExchangeSession, closed: Closed) -> Body:
    return {
        "session": session.plan.binding.hex(),
        "directory": closed.directory_digest.hex(),
        "commitments_root": closed.commitments_root.hex(),
        "advertised": list(closed.advertised),
        "shared": list(closed.shared),
        "beacon": beacon_body(closed.beacon),
    }


def _unmasked_body(session: ExchangeSession, uploads: UploadTree, outcome: Unmasked) -> Body:
    return {
        "session": session.plan.binding.hex(),
        "survivors": list(uploads.survivors),
        "uploads_root": uploads.root.hex(),
        "signed": list(outcome.signed),
        "revealed": list(outcome.revealed),
        "dropouts": [[dropped.index, dropped.reason.value] for dropped in outcome.dropouts],
        "failure": outcome.failure.value if outcome.failure else "",
    }


def _bind(plan: RoundPlan, **fields: object) -> None:
    structlog.contextvars.bind_contextvars(round_id=plan.round_id, session_id=plan.session_id.hex(), **fields)


def _counted(
    session: ExchangeSession, index: int, response: keyserver_pb2.RevealSharesResponse
) -> keyserver_pb2.RevealSharesResponse:
    session.traffic.down[index] += response.ByteSize()
    return response


def _event(fact: ExchangeFact) -> keyserver_pb2.WatchExchangeResponse:
    match fact:
        case Dropped():
            return keyserver_pb2.WatchExchangeResponse(dropout=_dropout(fact))
        case Frozen():
            frozen = keyserver_pb2.KeysFrozen(directory_digest=fact.directory_digest)
            return keyserver_pb2.WatchExchangeResponse(frozen=frozen)
        case Closed():
            closed = keyserver_pb2.ExchangeClosed(
                advertised=fact.advertised, shared=fact.shared, bytes_up=fact.bytes_up, bytes_down=fact.bytes_down
            )
            return keyserver_pb2.WatchExchangeResponse(closed=closed)
        case Failed():
            failed = keyserver_pb2.ExchangeFailed(reason=abandon_reason_to_proto(fact.reason), detail=fact.detail)
            return keyserver_pb2.WatchExchangeResponse(failed=failed)


def _dropout(dropped: Dropped) -> keyserver_pb2.IndexedDropout:
    return keyserver_pb2.IndexedDropout(index=dropped.index, reason=dropout_reason_to_proto(dropped.reason))


def _unmask_response(outcome: Unmasked) -> keyserver_pb2.UnmaskResponse:
    return keyserver_pb2.UnmaskResponse(
        failure=abandon_reason_to_proto(outcome.failure),
        detail=outcome.detail,
        dropouts=[_dropout(dropped) for dropped in outcome.dropouts],
        signed=outcome.signed,
        revealed=outcome.revealed,
        bytes_up=outcome.bytes_up,
        bytes_down=outcome.bytes_down,
    )


def _status(session: ExchangeSession) -> status_pb2.SessionStatus:
    plan = session.plan
    return status_pb2.SessionStatus(
        session_id=plan.session_id,
        job_id=plan.job_id,
        round_id=plan.round_id,
        attempt=plan.attempt,
        phase=session.phase.value,
        counts=session.counts(),
    )
