"""Rounds 0 and 1 of secure aggregation from the site's side: keys and sealed shares through the key server.

It runs while the site trains. A broken stream is opened again and says the same once more; what the key server said
before must not change.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from client_sdk.streams import finish, receive, send
from fl_core.crypto.mask_prg import engine_for
from fl_core.errors import RemoteProtocolError
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.client import CollectingDirectory, CollectingShares, MaskExpanded, advertise
from fl_core.secagg.context import Entropy, RosterVerifier, Signer
from fl_core.secagg.messages import KeyDirectory, SealedShares
from fl_core.transport.true_status import call_errors
from fl_core.wire.convert import (
    advertisement_to_proto,
    directory_from_proto,
    relayed_shares_from_proto,
    sealed_shares_to_proto,
)
from fl_core.wire.v1 import keyserver_pb2, secagg_pb2

if TYPE_CHECKING:
    from fl_core.wire.v1.keyserver_pb2_grpc import KeyServerServiceAsyncStub

log = structlog.get_logger(__name__)


class KeyExchange:
    """One exchange, whatever the number of streams that it takes.

    Args:
        plan: the attempt.
        index: this site's place in the roster.
        signer: the key of this site's certificate.
        verifier: who may be at each index.
        entropy: source of uniform bytes.
    """

    def __init__(self, plan: RoundPlan, index: int, signer: Signer, verifier: RosterVerifier, entropy: Entropy) -> None:
        self._hello = keyserver_pb2.SessionHello(session_id=plan.session_id, index=index)
        self._collecting: CollectingDirectory
        self._collecting, self._advertisement = advertise(plan.session_context(), index, signer, verifier, entropy)
        self._directory: KeyDirectory | None = None
        self._sealed: tuple[CollectingShares, SealedShares] | None = None

    async def run(
        self, keyserver: "KeyServerServiceAsyncStub", timeout_s: float, on_shared: Callable[[], None]
    ) -> MaskExpanded:
        """Exchange keys over one stream and make the mask. After a `retryable` error it may be called again.

        Args:
            keyserver: the service.
            timeout_s: how long the stream may take.
            on_shared: told once the shares of the others are here.

        Raises:
            TacitError: the key server or a peer broke the protocol, or the connection broke.
        """
        call = keyserver.ExchangeKeys(timeout=timeout_s)
        try:
            async with call_errors(call):
                relayed = await self._converse(call)
        finally:
            call.cancel()
        assert self._sealed is not None
        ready = await asyncio.to_thread(self._sealed[0].step, relayed_shares_from_proto(relayed))
        on_shared()
        expanded = await asyncio.to_thread(ready.expand_mask)
        log.info(
            "masks_expanded",
            masks=len(expanded.participants),
            engine=engine_for(len(expanded.participants) * expanded.mask.nbytes).name,
        )
        return expanded

    async def _converse(self, call: "_Call") -> secagg_pb2.RelayedShares:
        await send(call, keyserver_pb2.ExchangeKeysRequest(hello=self._hello))
        await send(call, keyserver_pb2.ExchangeKeysRequest(advertisement=advertisement_to_proto(self._advertisement)))
        sealed = await self._seal(directory_from_proto((await _receive(call, "directory")).directory))
        await send(call, keyserver_pb2.ExchangeKeysRequest(shares=sealed_shares_to_proto(sealed)))
        relayed = (await _receive(call, "shares")).shares
        await finish(call)
        return relayed

    async def _seal(self, directory: KeyDirectory) -> SealedShares:
        if self._sealed is None:
            # Checks a signature and seals a share for every other site.
            self._sealed = await asyncio.to_thread(self._collecting.step, directory)
            self._directory = directory
        if directory != self._directory:
            raise RemoteProtocolError(
                "the key server changed the directory of a session", fix="do not continue with this key server"
            )
        return self._sealed[1]


async def _receive(call: "_Call", wanted: str) -> keyserver_pb2.ExchangeKeysResponse:
    response = await receive(call)
    kind = response.WhichOneof("message")
    if kind != wanted:
        raise RemoteProtocolError("a message of the key server is out of turn", expected=wanted, got=kind)
    return response


if TYPE_CHECKING:
    import grpc

    _Call = grpc.aio.StreamStreamCall[keyserver_pb2.ExchangeKeysRequest, keyserver_pb2.ExchangeKeysResponse]
