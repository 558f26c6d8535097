"""Rounds 3 and 4 of secure aggregation from the site's side: sign who survived, then reveal shares, once.

That a session is unmasked stands in the journal before the first share leaves the site. Only the very same message may
be sent again, and only by the process that made it: after a restart the session is gone.
"""

import asyncio
from typing import TYPE_CHECKING

from client_sdk.journal import SiteJournal
from client_sdk.policy import SitePolicy, check_survivors
from client_sdk.streams import finish, receive, send
from fl_core.errors import RemoteProtocolError
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.client import AwaitingProof, AwaitingSurvivors
from fl_core.secagg.inclusion import check_included
from fl_core.secagg.messages import ConsistencyProof, RevealedShares, SurvivorSet, SurvivorSignature
from fl_core.secagg.noise_seeds import excess_parts, part_keys
from fl_core.transport.true_status import call_errors
from fl_core.wire.convert import (
    inclusion_path_from_proto,
    proof_from_proto,
    revealed_to_proto,
    signature_to_proto,
    survivors_from_proto,
)
from fl_core.wire.v1 import keyserver_pb2

if TYPE_CHECKING:
    import grpc

    from fl_core.wire.v1.keyserver_pb2_grpc import KeyServerServiceAsyncStub

    _Call = grpc.aio.StreamStreamCall[keyserver_pb2.RevealSharesRequest, keyserver_pb2.RevealSharesResponse]


class Unmasking:
    """One unmasking, whatever the number of streams that it takes.

    Args:
        plan: the attempt.
        index: this site's place in the roster.
        awaiting: the phase that follows the masked upload.
        upload_sha256: of what was uploaded, 32 bytes.
        journal: where the session is recorded before anything is revealed.
        policy: what the owner asks of a sum.
    """

    def __init__(
        self,
        plan: RoundPlan,
        index: int,
        awaiting: AwaitingSurvivors,
        upload_sha256: bytes,
        journal: SiteJournal,
        policy: SitePolicy,
    ) -> None:
        self._plan = plan
        self._policy = policy
        self._session_id = plan.session_id
        self._context = plan.session_context()
        self._index = index
        self._upload_sha256 = upload_sha256
        self._hello = keyserver_pb2.SessionHello(session_id=plan.session_id, index=index)
        self._awaiting = awaiting
        self._journal = journal
        self._survivors: SurvivorSet | None = None
        self._signed: tuple[AwaitingProof, SurvivorSignature] | None = None
        self._revealed: RevealedShares | None = None

    @property
    def excess_keys(self) -> tuple[bytes, ...]:
        """The keys of the noise whose seed was revealed, so that it is taken away; empty where none was."""
        if self._revealed is None or self._survivors is None or not self._revealed.excess_seed:
            return ()
        known = excess_parts(self._context, len(self._survivors.survivors)).start
        return part_keys(self._context, self._index, self._revealed.excess_seed, known)

    async def run(self, keyserver: "KeyServerServiceAsyncStub", timeout_s: float) -> None:
        """Sign and reveal over one stream. After a `retryable` error it may be called again.

        Args:
            keyserver: the service.
            timeout_s: how long the stream may take, the wait for the other sites' uploads included.

        Raises:
            TacitError: the key server or a peer broke the protocol, or the connection broke.
            LocalProtocolError: this session was unmasked before.
        """
        call = keyserver.RevealShares(timeout=timeout_s)
        try:
            async with call_errors(call):
                await self._converse(call)
        finally:
            call.cancel()

    async def _converse(self, call: "_Call") -> None:
        await send(call, keyserver_pb2.RevealSharesRequest(hello=self._hello))
        told = (await _receive(call, "survivors")).survivors
        signature = await self._sign(survivors_from_proto(told), inclusion_path_from_proto(told))
        await send(call, keyserver_pb2.RevealSharesRequest(signature=signature_to_proto(signature)))
        shares = await self._reveal(proof_from_proto((await _receive(call, "proof")).proof))
        await send(call, keyserver_pb2.RevealSharesRequest(shares=revealed_to_proto(shares)))
        await _receive(call, "done")
        await finish(call)

    async def _sign(self, survivors: SurvivorSet, path: tuple[bytes, ...]) -> SurvivorSignature:
        if self._signed is None:
            self._awaiting.check(survivors.survivors)
            check_included(self._context, survivors, self._index, self._upload_sha256, path)
            job_id = self._plan.job_id
            earlier = self._journal.survivors_signed()
            names = check_survivors(self._plan, self._index, survivors.survivors, self._policy, earlier)
            await asyncio.to_thread(self._journal.record_survivors, job_id, names)
            self._signed = self._awaiting.step(survivors)
            self._survivors = survivors
        if survivors != self._survivors:
            raise RemoteProtocolError(
                "the key server changed the survivors of a session", fix="do not continue with this key server"
            )
        return self._signed[1]

    async def _reveal(self, proof: ConsistencyProof) -> RevealedShares:
        if self._revealed is None:
            assert self._signed is not None
            _, shares = await asyncio.to_thread(self._signed[0].step, proof)
            await asyncio.to_thread(self._journal.record_unmasked, self._session_id)
            self._revealed = shares
        return self._revealed


async def _receive(call: "_Call", wanted: str) -> keyserver_pb2.RevealSharesResponse:
    response = await receive(call)
    kind = response.WhichOneof("message")
    if kind != wanted:
        raise RemoteProtocolError("a message of the key server is out of turn", expected=wanted, got=kind)
    return response
