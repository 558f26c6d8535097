"""Which aggregator and which key server a session gets: one that answers, and of those one with little to do."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from fl_core.errors import IdentityError, PeerLost, TacitError
from fl_core.rounds.plan import ServiceEndpoint
from fl_core.transport.identity import Role
from fl_core.transport.retry import Backoff
from services.coordinator.peers import AggregatorPeer, KeyServerPeer

log = structlog.get_logger(__name__)

PeerT = TypeVar("PeerT", AggregatorPeer, KeyServerPeer)

REST_S = 30.0
"""A replica that did not answer is not looked at for so long, as long as another one answers."""


@dataclass(frozen=True, slots=True)
class Placed(Generic[PeerT]):
    """A replica that answered, and what a plan says about it."""

    peer: PeerT
    endpoint: ServiceEndpoint


class ServicePool(Generic[PeerT]):
    """The replicas of one service.

    Args:
        peers: one for each replica, at least one.
        patience_s: how long all of them may be out of reach.
    """

    def __init__(self, peers: Sequence[PeerT], patience_s: float) -> None:
        self.peers: tuple[PeerT, ...] = tuple(peers)
        self._patience_s = patience_s
        self._resting: dict[PeerT, float] = {}

    @property
    def role(self) -> Role:
        """Of the service."""
        return self.peers[0].role

    async def place(self, count: int) -> list[Placed[PeerT]]:
        """A replica for each of `count` sessions: the least busy ones of those that answer, in turn.

        Raises:
            IdentityError: none answers, and one is not what it should be.
            PeerLost: none answers for longer than the patience.
        """
        healthy = await self._answering()
        load = {placed.peer: placed.peer.load for placed in healthy}
        chosen = []
        for _ in range(count):
            placed = min(healthy, key=lambda one: load[one.peer])
            load[placed.peer] += 1
            chosen.append(placed)
        return chosen

    async def close(self) -> None:
        """Close the connections."""
        for peer in self.peers:
            await peer.close()

    async def _answering(self) -> list[Placed[PeerT]]:
        loop = asyncio.get_running_loop()
        deadline, backoff = loop.time() + self._patience_s, Backoff(max_s=1.0)
        while True:
            awake = [peer for peer in self.peers if self._resting.get(peer, 0.0) <= loop.time()]
            healthy, errors = await self._look_at(awake or self.peers)
            if not healthy and 0 < len(awake) < len(self.peers):
                healthy, errors = await self._look_at(self.peers)
            if healthy:
                return healthy
            lost = next((error for error in errors if not error.retryable), errors[0])
            if not lost.retryable or loop.time() > deadline:
                raise lost
            await asyncio.sleep(backoff.next_delay())

    async def _look_at(self, peers: Sequence[PeerT]) -> tuple[list[Placed[PeerT]], list[TacitError]]:
        outcomes = await asyncio.gather(*(self._look(peer) for peer in peers))
        healthy = [outcome for outcome in outcomes if isinstance(outcome, Placed)]
        return healthy, [outcome for outcome in outcomes if isinstance(outcome, TacitError)]

    async def _look(self, peer: PeerT) -> Placed[PeerT] | TacitError:
        try:
            placed = Placed(peer, await peer.endpoint())
        except (PeerLost, IdentityError) as error:
            self._resting[peer] = asyncio.get_running_loop().time() + REST_S
            log.warning("service_not_answering", address=peer.address, error=str(error))
            return error
        self._resting.pop(peer, None)
        return placed
