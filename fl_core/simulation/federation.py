"""Whole sessions of secure aggregation in one process: the phase classes of production over an in-memory network.

Every site, the key server and the aggregator run exactly the code that runs behind gRPC; clock, network and identities
are simulated. Hundreds of sites take seconds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from fl_core.crypto.signing import CertificateSigner
from fl_core.errors import NotEnough, PlanError, RemoteProtocolError
from fl_core.secagg import client
from fl_core.secagg.beacon import SecretBeacon
from fl_core.secagg.context import Entropy, SessionContext
from fl_core.secagg.exchange import CollectingAdvertisements, CollectingSealedShares
from fl_core.secagg.masked_sum import Aggregate, AwaitingMask, CollectingMaskedInputs
from fl_core.secagg.messages import (
    KeyAdvertisement,
    KeyDirectory,
    MaskedInput,
    RelayedShares,
    RevealedShares,
    RingVector,
    SealedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.secagg.unmasking import RebuiltSeeds, SharesRelayed
from fl_core.simulation.clock import VirtualClock
from fl_core.simulation.faults import NO_FAULTS, DropoutSchedule, Step
from fl_core.simulation.identity import simulated_signers, verifier_of
from fl_core.simulation.network import Network, SiteMessage, Tap

LATENCY_S = 0.05
PHASE_S = 60.0

M = TypeVar("M", bound=SiteMessage)


@dataclass(frozen=True, slots=True)
class SessionResult:
    """What became of a simulated session: an aggregate or the reason why there is none.

    Args:
        aggregate: the sum in the clear and its survivors; None when the session was aborted.
        failure: why it was aborted; None when it was not.
        dropouts: sites that did not finish, and the first of their messages that was missed.
        refused: messages that a server refused: sender, step and reason.
        stopped: sites that went no further because too few others did: site, step and reason.
        seconds: virtual seconds from the first message to the end.
    """

    aggregate: Aggregate | None
    failure: NotEnough | None
    dropouts: Mapping[int, Step]
    refused: Sequence[tuple[int, Step, RemoteProtocolError]] = field(repr=False)
    stopped: Sequence[tuple[int, Step, NotEnough]] = field(repr=False)
    seconds: float

    @property
    def sum(self) -> RingVector:
        """The sum of the survivors' vectors, (d,).

        Raises:
            NotEnough: the session was aborted, for this reason.
        """
        return self._released().sum

    @property
    def survivors(self) -> tuple[int, ...]:
        """The sites whose vectors are in the sum, by ascending index; errors as of `sum`."""
        return self._released().survivors

    def _released(self) -> Aggregate:
        if self.aggregate is None:
            assert self.failure is not None
            raise self.failure
        return self.aggregate


def simulate_session(
    context: SessionContext,
    vectors: Sequence[RingVector],
    entropy: Entropy,
    *,
    schedule: DropoutSchedule = NO_FAULTS,
    signers: Sequence[CertificateSigner] | None = None,
    beacon: SecretBeacon | None = None,
    tap: Tap | None = None,
) -> SessionResult:
    """Run one session of every site in the roster.

    Args:
        context: the session.
        vectors: one for each site, (d,) in the lane of the ring.
        entropy: source of all secrets; a seeded one makes the session repeatable but for its ECDSA signatures.
        schedule: who vanishes, who is late.
        signers: identities of the sites; made from the entropy when there are none.
        beacon: what the coordinator of a session with a sparse graph keeps.
        tap: sees every message of a site that arrives.

    Raises:
        PlanError: there is not one vector and one identity for each site, or no beacon for a sparse graph.
    """
    signers = simulated_signers(context.size, entropy) if signers is None else signers
    if not len(vectors) == len(signers) == context.size:
        raise PlanError(
            "the simulation needs a vector and an identity for each site",
            expected=context.size,
            got=f"{len(vectors)} vectors and {len(signers)} identities",
        )
    if (beacon is None) != (context.harary is None):
        raise PlanError("a beacon belongs to a sparse graph and to no other")
    return _Session(context, vectors, entropy, schedule, signers, beacon, tap).run()


class _Session:
    """One session in progress. Each method is one round: everybody's messages, then the servers move on."""

    def __init__(
        self,
        context: SessionContext,
        vectors: Sequence[RingVector],
        entropy: Entropy,
        schedule: DropoutSchedule,
        signers: Sequence[CertificateSigner],
        beacon: SecretBeacon | None,
        tap: Tap | None,
    ) -> None:
        self._context = context
        self._vectors = vectors
        self._entropy = entropy
        self._signers = signers
        self._verifier = verifier_of(signers)
        self._beacon = beacon
        self._clock = VirtualClock()
        self._network = Network(self._clock, schedule, LATENCY_S, tap)
        self._dropouts: dict[int, Step] = {}

    def run(self) -> SessionResult:
        aggregate, failure = None, None
        try:
            aggregate = self._aggregate()
        except NotEnough as error:
            failure = error
        ended_s = self._clock.now_s
        self._clock.drain()
        return SessionResult(
            aggregate, failure, dict(self._dropouts), self._network.refused, self._network.stopped, ended_s
        )

    def _aggregate(self) -> Aggregate:
        sites, exchange, directory_of = self._advertise()
        holders, relay, relayed = self._share(sites, exchange, directory_of)
        uploaded, aggregation = self._upload(holders, relay, relayed)
        seeds = self._unmask(uploaded, aggregation, relay)
        return aggregation.step(seeds.combined_mask())

    def _advertise(
        self,
    ) -> tuple[dict[int, client.CollectingDirectory], CollectingSealedShares, Callable[[int], KeyDirectory]]:
        server = CollectingAdvertisements(self._context, self._verifier)
        sites: dict[int, client.CollectingDirectory] = {}

        def make(index: int) -> KeyAdvertisement:
            sites[index], message = client.advertise(
                self._context, index, self._signers[index], self._verifier, self._entropy
            )
            return message

        everybody = range(self._context.size)
        self._exchange(Step.ADVERTISE, everybody, make, lambda _, message: server.receive(message), server)
        if self._beacon is None:
            exchange, directory = server.close()
            return sites, exchange, lambda _: directory
        frozen = server.freeze()
        exchange, excerpts = frozen.step(self._beacon.reveal(self._context.binding, frozen.digest))
        return sites, exchange, excerpts.__getitem__

    def _share(
        self,
        sites: dict[int, client.CollectingDirectory],
        server: CollectingSealedShares,
        directory_of: Callable[[int], KeyDirectory],
    ) -> tuple[dict[int, client.CollectingShares], SharesRelayed, dict[int, RelayedShares]]:
        following: dict[int, client.CollectingShares] = {}

        def make(index: int) -> SealedShares:
            following[index], message = sites.pop(index).step(directory_of(index))
            return message

        self._exchange(Step.SHARE, server.members, make, server.receive, server)
        relay, relayed = server.close()
        return following, relay, relayed

    def _upload(
        self,
        sites: dict[int, client.CollectingShares],
        relay: SharesRelayed,
        relayed: dict[int, RelayedShares],
    ) -> tuple[dict[int, client.AwaitingSurvivors], AwaitingMask]:
        server = CollectingMaskedInputs(self._context)
        following: dict[int, client.AwaitingSurvivors] = {}

        def make(index: int) -> MaskedInput:
            # What a site has used is let go: in a sparse cohort of thousands there is a million of shares.
            following[index], message = sites.pop(index).step(relayed.pop(index)).step(self._vectors[index])
            return message

        self._exchange(Step.UPLOAD, relay.participants, make, lambda _, message: server.add(message), server)
        aggregation, _ = server.freeze(relay.participants)
        return following, aggregation

    def _unmask(
        self, sites: dict[int, client.AwaitingSurvivors], aggregation: AwaitingMask, relay: SharesRelayed
    ) -> RebuiltSeeds:
        survivor_set = SurvivorSet(aggregation.survivors)
        signatures = relay.freeze(survivor_set)
        following: dict[int, client.AwaitingProof] = {}

        def sign(index: int) -> SurvivorSignature:
            following[index], message = sites.pop(index).step(survivor_set)
            return message

        self._exchange(
            Step.SIGN, aggregation.survivors, sign, lambda _, message: signatures.receive(message), signatures
        )
        reveals, proof = signatures.close()

        def reveal(index: int) -> RevealedShares:
            _, message = following.pop(index).step(proof)
            return message

        self._exchange(Step.REVEAL, reveals.signers, reveal, lambda _, message: reveals.receive(message), reveals)
        return reveals.close()

    def _exchange(
        self,
        step: Step,
        senders: Iterable[int],
        make: Callable[[int], M],
        receive: Callable[[int, M], None],
        server: "_Collecting",
    ) -> None:
        """Let the senders send, until all of them were heard or the phase is over; who was not heard dropped out."""
        senders = tuple(senders)
        for index in senders:
            self._network.send(index, step, partial(make, index), partial(receive, index))
        self._clock.run(self._clock.now_s + PHASE_S, lambda: len(server.received) == len(senders))
        self._dropouts.update(dict.fromkeys(set(senders) - server.received, step))


class _Collecting(Protocol):
    @property
    def received(self) -> frozenset[int]: ...
