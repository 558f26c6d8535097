"""One session at the key server: the exchange of keys by deadline and quorum, and one unmasking.

Sites come in by `advertise` ... `reveal`, each over streams that may break and come again; the coordinator's side is
`run_exchange` and `unmask`. The protocol itself, and what it refuses, is in the phases of `fl_core.secagg`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from math import floor
from typing import TypeVar

import structlog

from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import (
    BadAggregate,
    BadKey,
    BadShares,
    BadSignature,
    IdentityError,
    NotEnough,
    PeerLost,
    RemoteProtocolError,
    SessionFrozen,
    TacitError,
    UnknownSession,
)
from fl_core.rounds.machine import AbandonReason, DropoutReason
from fl_core.rounds.plan import PhaseBounds, RoundPlan
from fl_core.secagg.blame import Blame, FalseDealing
from fl_core.secagg.context import RosterVerifier
from fl_core.secagg.exchange import AwaitingBeacon, CollectingAdvertisements, CollectingSealedShares, Excerpts
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.messages import (
    Beacon,
    ConsistencyProof,
    KeyAdvertisement,
    RevealedShares,
    SealedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.secagg.unmasking import CollectingReveals, CollectingSignatures, RebuiltSeeds, SharesRelayed
from fl_core.wire.convert import directory_to_proto, relayed_shares_to_proto
from fl_core.wire.v1 import keyserver_pb2
from services.keyserver.excess import remove_excess
from services.keyserver.expansion import add_own_noise, expand_mask, rebuild_seeds
from services.keyserver.facts import Closed, Dropped, ExchangeFact, Failed, Frozen, Phase, Traffic, Unmasked
from services.keyserver.gathering import Gathering
from services.runtime.events import EventLog, Notice
from services.runtime.offload import offload

log = structlog.get_logger(__name__)

BEACON_TIMEOUT_S = 10.0
"""How long the coordinator may take to answer that U1 is frozen."""

T = TypeVar("T")
Record = Callable[[RoundPlan, tuple[int, ...]], Awaitable[None]]
Deliver = Callable[[RoundPlan, tuple[int, ...], RingVector], Awaitable[None]]


class _Failure(Exception):
    """Leaves a phase that cannot be finished, with the reason for the coordinator."""

    def __init__(self, reason: AbandonReason, error: TacitError) -> None:
        super().__init__(str(error))
        self.reason = reason
        self.error = error


class ExchangeSession:
    """One attempt.

    Args:
        plan: of the attempt.
        verifier: who may be at each index of the roster.
    """

    def __init__(self, plan: RoundPlan, verifier: RosterVerifier) -> None:
        self.plan = plan
        self.facts: EventLog[ExchangeFact] = EventLog()
        self.traffic = Traffic()
        self._notice = Notice()
        self._phase = Phase.ADVERTISING
        self._ended: TacitError | None = None
        self._lost: set[int] = set()
        self._refused: dict[int, TacitError] = {}
        self._blamed: set[int] = set()
        self._dropouts: list[Dropped] = []
        self._advertising: CollectingAdvertisements | None = CollectingAdvertisements(plan.session_context(), verifier)
        self._frozen: AwaitingBeacon | None = None
        self._beacon: Beacon | None = None
        self._beacon_lock = asyncio.Lock()
        self._directory: keyserver_pb2.ExchangeKeysResponse | None = None
        self._excerpts: Excerpts | None = None
        self._members: frozenset[int] = frozenset()
        self._sharing: CollectingSealedShares | None = None
        self._relayed: dict[int, keyserver_pb2.ExchangeKeysResponse] | None = None
        self._participants: frozenset[int] = frozenset()
        self._uploading: SharesRelayed | None = None
        self._uploads: UploadTree | None = None
        self._signing: CollectingSignatures | None = None
        self._proof: ConsistencyProof | None = None
        self._revealing: CollectingReveals | None = None
        everybody = range(len(plan.roster))
        self._gathering = Gathering(everybody, (), plan.min_survivors, plan.schedule.advertising, self._notice)

    @property
    def phase(self) -> Phase:
        """What the session waits for."""
        return self._phase

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come of the session."""
        return self._phase in (Phase.FINISHED, Phase.FAILED)

    def counts(self) -> dict[str, int]:
        """Numbers for the status."""
        return {
            "invited": len(self.plan.roster),
            "advertised": len(self._members),
            "shared": len(self._participants),
            "answered": len(self._gathering.answered),
            "lost": len(self._lost),
            "refused": len(self._refused),
        }

    def mark_lost(self, indices: Iterable[int]) -> None:
        """Do not wait for these sites. One that answers in time all the same takes part."""
        lost = set(indices)
        self._lost |= lost
        self._gathering.drop(lost)

    def end(self, error: TacitError) -> None:
        """Drop everything; `error` is raised to everybody who waits or still asks."""
        if self._ended is None:
            self._ended = error
        if self._phase is not Phase.FINISHED:
            self._phase = Phase.FAILED
        self._drop_secrets()
        self.facts.fail(error)
        self._notice.announce()

    @contextmanager
    def judging(self, index: int) -> Iterator[None]:
        """Take one message of the site that is known to be at `index` inside the block.

        A wrong message refuses the site for good, and nobody waits for it any more. One that only comes late, or
        differs from what the site said before in this phase, is refused alone.

        Raises:
            TacitError: the session was ended, or the site was refused before, for the reason that is raised again.
        """
        self._check_alive()
        if index in self._refused:
            raise self._refused[index]
        try:
            yield
        except SessionFrozen:
            raise
        except TacitError as error:
            self._refuse(index, error)
            raise

    # Sites, rounds 0 and 1. Messages are taken inside `judging`.

    def advertise(self, index: int, advertisement: KeyAdvertisement) -> None:
        """Take the keys of the site that is known to be at `index`; the same keys again change nothing.

        Raises:
            RemoteProtocolError, BadKey, BadSignature, IdentityError: they are wrong.
            SessionFrozen: they come too late.
        """
        _check_own_index(index, advertisement.index)
        collecting = _present(self._advertising, "keys")
        if self._phase is not Phase.ADVERTISING and index not in self._members:
            raise _too_late("keys", index)
        collecting.receive(advertisement)
        if self._phase is Phase.ADVERTISING:
            self._gathering.answer(index)

    async def directory(self, index: int) -> keyserver_pb2.ExchangeKeysResponse:
        """Wait for the signed keys of U1; with a sparse graph those that the site needs.

        Raises:
            SessionFrozen: the site's keys came too late to be in it.
            TacitError: the session was ended.
        """
        await self._until(lambda: self._sharing is not None)
        if index not in self._members:
            raise _too_late("keys", index)
        if self._excerpts is None:
            return _present(self._directory, "directory")
        response = await offload(_excerpt_for, self._excerpts, index)
        self.traffic.down[index] += response.ByteSize()
        return response

    def share(self, index: int, sealed: SealedShares) -> None:
        """Take what a site sealed for the others; the same shares again change nothing.

        Raises:
            RemoteProtocolError, BadShares: they are wrong.
            SessionFrozen: they come too late.
        """
        collecting = _present(self._sharing, "shares")
        if self._phase is not Phase.SHARING and index not in self._participants:
            raise _too_late("shares", index)
        collecting.receive(index, sealed)
        if self._phase is Phase.SHARING:
            self._gathering.answer(index)

    async def relayed(self, index: int) -> keyserver_pb2.ExchangeKeysResponse:
        """Wait for what the others of U2 sealed for a site.

        Raises:
            SessionFrozen: the site's own shares came too late.
            TacitError: the session was ended.
        """
        await self._until(lambda: self._relayed is not None)
        if index not in self._participants:
            raise _too_late("shares", index)
        return _present(self._relayed, "relayed shares")[index]

    # Sites, rounds 3 and 4. Messages are taken inside `judging`.

    async def survivors(self, index: int) -> SurvivorSet:
        """Wait for U3.

        Raises:
            SessionFrozen: the site is not in it.
            TacitError: the session was ended.
        """
        await self._until(lambda: self._signing is not None)
        signing = _present(self._signing, "survivors")
        if index not in signing.survivors:
            raise SessionFrozen(
                f"site {index} is not among the survivors",
                expected="an upload before they were frozen",
                fix="wait for the next attempt",
            )
        return SurvivorSet(signing.survivors, self._uploads_tree().root)

    def inclusion_path(self, index: int) -> tuple[bytes, ...]:
        """The proof that the upload of a survivor is among those that are summed."""
        return self._uploads_tree().path(index)

    def sign(self, index: int, signature: SurvivorSignature) -> None:
        """Take a survivor's signature; the same again changes nothing.

        Raises:
            RemoteProtocolError, BadSignature: it is wrong.
            SessionFrozen: it comes too late.
        """
        _check_own_index(index, signature.index)
        _present(self._signing, "signature").receive(signature)
        if self._phase is Phase.SIGNING:
            self._gathering.answer(index)

    async def proof(self, index: int) -> ConsistencyProof:
        """Wait for the signatures of U4.

        Raises:
            SessionFrozen: the site's own signature came too late.
            TacitError: the session was ended.
        """
        await self._until(lambda: self._proof is not None)
        if index not in _present(self._revealing, "proof").signers:
            raise _too_late("signature", index)
        return _present(self._proof, "proof")

    def reveal(self, index: int, revealed: RevealedShares) -> None:
        """Take the shares that a site reveals; the same again change nothing.

        Raises:
            RemoteProtocolError, BadShares: they are wrong.
            SessionFrozen: they come too late.
        """
        _check_own_index(index, revealed.index)
        revealing = _present(self._revealing, "shares")
        if self._phase is not Phase.REVEALING and index not in self._gathering.answered:
            raise _too_late("shares", index)
        revealing.receive(revealed)
        if revealing.is_blamed(index):
            self._blame([index], DropoutReason.FALSE_REVEAL)
        elif self._phase is Phase.REVEALING:
            self._gathering.answer(index)

    # The coordinator.

    async def run_exchange(self) -> None:
        """Run rounds 0 and 1 to their end, good or bad; it is told by `facts` and never raised."""
        try:
            await self._exchange_keys()
            await self._exchange_shares()
        except _Failure as failure:
            self._fail_exchange(failure.reason, failure.error)
        except TacitError as error:
            self._fail_exchange(AbandonReason.SERVICE_LOST, error)
        except Exception as error:
            log.error("exchange_broken", session_id=self.plan.session_id.hex(), exc_info=error)
            self._fail_exchange(AbandonReason.SERVICE_LOST, SessionFrozen("the key server failed in the exchange"))

    async def reveal_beacon(self, beacon: Beacon) -> None:
        """Make the sparse graph of the frozen U1; the same beacon again changes nothing.

        Raises:
            RemoteProtocolError: the beacon is not the one of the plan, or another one was revealed before.
            BadSignature: it was revealed for another directory.
            SessionFrozen: the session does not wait for a beacon.
        """
        async with self._beacon_lock:
            self._check_alive()
            if self._beacon == beacon:
                return
            if self._beacon is not None:
                raise RemoteProtocolError("another beacon was revealed before", expected="the same again, or none")
            sharing, excerpts = await offload(_present(self._frozen, "beacon").step, beacon)
            self._check_alive()
            self._beacon, self._excerpts, self._frozen = beacon, excerpts, None
            self._begin_sharing(sharing)

    async def unmask(self, uploads: UploadTree, record: Record, deliver: Deliver, threads: int) -> Unmasked:
        """Run rounds 3 and 4 for these survivors, and hand out the combined mask. Once.

        Args:
            uploads: of U3, as the aggregator stated them.
            record: writes down, durably, that the session is unmasked; called before any site is asked.
            deliver: hands the mask to the aggregator.
            threads: that expand masks.

        Raises:
            SessionFrozen: the exchange is not over, or the session is unmasked already.
            RemoteProtocolError: the survivors are no part of U2.
            NotEnough: they are fewer than the plan demands.
            StorageError: the record cannot be written; nothing was asked.
        """
        survivors = uploads.survivors
        signing = self._freeze(uploads)
        outcome = Unmasked()
        try:
            await record(self.plan, survivors)
            await self._run_unmasking(signing, outcome, deliver, threads)
        except _Failure as failure:
            outcome.failure, outcome.detail = failure.reason, str(failure.error)
            self.end(failure.error)
        except BaseException as error:
            self.end(error if isinstance(error, TacitError) else SessionFrozen("the unmasking was broken off"))
            raise
        else:
            self._phase = Phase.FINISHED
            self.end(_over())
        outcome.dropouts = list(self._dropouts)
        outcome.bytes_up, outcome.bytes_down = dict(self.traffic.up), dict(self.traffic.down)
        return outcome

    async def _exchange_keys(self) -> None:
        advertising = _present(self._advertising, "keys")
        await self._gather(AbandonReason.TOO_FEW_KEYS, DropoutReason.ADVERTISE_TIMEOUT, "sites sent their keys")
        self._members = self._gathering.answered
        # From here on the phase only accepts repetitions, so that a thread may close it.
        self._phase = Phase.FREEZING
        if self.plan.graph is None:
            sharing, directory = await offload(_close_advertising, advertising)
            self._check_alive()
            self._directory = directory
            self.traffic.down.update(dict.fromkeys(self._members, directory.ByteSize()))
            self._begin_sharing(sharing)
        else:
            await self._await_beacon(await offload(advertising.freeze))

    async def _await_beacon(self, frozen: AwaitingBeacon) -> None:
        self._check_alive()
        self._frozen = frozen
        self.facts.append(Frozen(frozen.digest))
        self._notice.announce()
        try:
            async with asyncio.timeout(BEACON_TIMEOUT_S):
                await self._until(lambda: self._beacon is not None)
        except TimeoutError:
            error = SessionFrozen("the coordinator did not reveal the beacon in time", fix="wait for the next attempt")
            raise _Failure(AbandonReason.DEADLINE, error) from None

    def _begin_sharing(self, sharing: CollectingSealedShares) -> None:
        self._phase = Phase.SHARING
        self._gathering = self._gather_from(self._members, self.plan.min_survivors, self.plan.schedule.sharing)
        self._sharing = sharing
        self._notice.announce()

    async def _exchange_shares(self) -> None:
        sharing = _present(self._sharing, "shares")
        await self._gather(AbandonReason.TOO_FEW_SHARES, DropoutReason.SHARE_TIMEOUT, "sites shared their secrets")
        self._participants = self._gathering.answered
        self._phase = Phase.UPLOADING
        uploading, relayed = await offload(_close_sharing, sharing)
        self._check_alive()
        self._uploading, self._relayed = uploading, relayed
        self.traffic.down.update({index: message.ByteSize() for index, message in relayed.items()})
        members, participants = tuple(sorted(self._members)), tuple(sorted(self._participants))
        closed = Closed(
            members,
            participants,
            dict(self.traffic.up),
            dict(self.traffic.down),
            uploading.directory_digest,
            uploading.commitments.root,
            self._beacon,
        )
        self.facts.append(closed)
        self.facts.close()
        self._notice.announce()
        log.info("exchange_closed", advertised=len(members), shared_by=len(participants))

    def _uploads_tree(self) -> UploadTree:
        return _present(self._uploads, "survivors")

    def _freeze(self, uploads: UploadTree) -> CollectingSignatures:
        self._check_alive()
        if self._phase is not Phase.UPLOADING or self._uploading is None:
            raise SessionFrozen(
                "the session cannot be unmasked now",
                expected="one unmasking, after the exchange of keys",
                got=f"a request in phase {self._phase.value}",
                fix="run the round again as the next attempt",
            )
        signing = self._uploading.freeze(SurvivorSet(uploads.survivors, uploads.root))
        self._uploads = uploads
        self._uploading = None
        self._phase = Phase.SIGNING
        return signing

    async def _run_unmasking(
        self, signing: CollectingSignatures, outcome: Unmasked, deliver: Deliver, threads: int
    ) -> None:
        self.traffic, self._dropouts = Traffic(), []
        # The threshold of a sparse graph counts neighbours; of all sites as many as the plan lets stay must answer.
        needed = self.plan.threshold if self.plan.graph is None else self.plan.min_survivors
        schedule = self.plan.schedule
        self._gathering = self._gather_from(signing.survivors, needed, schedule.signing)
        self._signing = signing
        self._notice.announce()
        await self._gather(AbandonReason.TOO_FEW_SIGNATURES, DropoutReason.UNMASK_TIMEOUT, "sites signed")
        revealing, proof = _close_signing(signing)
        outcome.signed = revealing.signers
        self._phase = Phase.REVEALING
        self._gathering = self._gather_from(revealing.signers, needed, schedule.revealing)
        self._revealing, self._proof = revealing, proof
        self._notice.announce()
        try:
            await self._gather(AbandonReason.TOO_FEW_REVEALS, DropoutReason.UNMASK_TIMEOUT, "sites revealed shares")
        finally:
            self._judge_complaints(revealing.blame)
            outcome.revealed = tuple(sorted(self._gathering.answered))
        self._phase = Phase.EXPANDING
        seeds = await self._rebuild(revealing, threads)
        mask = await self._expand(seeds, threads)
        self._check_alive()
        await self._deliver(deliver, signing.survivors, mask)

    async def _rebuild(self, revealing: CollectingReveals, threads: int) -> RebuiltSeeds:
        try:
            return await rebuild_seeds(revealing, threads)
        except NotEnough as error:
            raise _Failure(AbandonReason.TOO_FEW_REVEALS, error) from error
        except FalseDealing as error:
            self._blame(error.dealers, DropoutReason.FALSE_DEALING)
            raise _Failure(AbandonReason.BAD_SHARES, error) from error

    async def _expand(self, seeds: RebuiltSeeds, threads: int) -> RingVector:
        try:
            mask = await expand_mask(self.plan, seeds, threads)
            await remove_excess(self.plan, seeds, mask, threads)
            await add_own_noise(self.plan, mask)
        except TacitError as error:
            raise _Failure(AbandonReason.BAD_SHARES, error) from error
        return mask

    async def _deliver(self, deliver: Deliver, survivors: tuple[int, ...], mask: RingVector) -> None:
        try:
            await deliver(self.plan, survivors, mask)
        except BadAggregate as error:
            raise _Failure(AbandonReason.BAD_AGGREGATE, error) from error
        except (PeerLost, UnknownSession) as error:
            raise _Failure(AbandonReason.SERVICE_RESTARTED, error) from error
        except TacitError as error:
            raise _Failure(AbandonReason.SERVICE_LOST, error) from error

    def _gather_from(self, asked: Iterable[int], needed: int, bounds: PhaseBounds) -> Gathering:
        return Gathering(asked, self._lost | self._refused.keys(), needed, bounds, self._notice)

    async def _gather(self, failure: AbandonReason, absent: DropoutReason, what: str) -> None:
        gathering = self._gathering
        is_met = await gathering.is_met(self._check_alive)
        for index in sorted(gathering.missing):
            self._drop(index, absent)
        if not is_met:
            error = NotEnough(
                f"too few {what}",
                expected=f"at least {gathering.needed}",
                got=len(gathering.answered),
                fix="wait for the next attempt",
            )
            raise _Failure(failure, error)

    def _fail_exchange(self, reason: AbandonReason, error: TacitError) -> None:
        if self._ended is not None:
            return
        self.facts.append(Failed(reason, str(error)))
        self.facts.close()
        self.end(error)
        log.warning("exchange_failed", session_id=self.plan.session_id.hex(), reason=reason.value, detail=str(error))

    def _refuse(self, index: int, error: TacitError) -> None:
        if index in self._gathering.answered:
            return
        self._refused[index] = error
        self._drop(index, _dropout_reason(error))
        self._gathering.drop([index])

    def _judge_complaints(self, blame: Blame) -> None:
        # No more complaints than this may all be lies of sites that want to get rid of an honest one: the plan holds
        # while fewer than a threshold of a site's holders collude, and while n_C sites of the cohort do at most.
        liars = min(max(1, floor(self.plan.max_corrupt * len(self.plan.roster))), self.plan.threshold - 1)
        self._blame(blame.dealers(liars), DropoutReason.FALSE_DEALING)
        self._blame(blame.complainers(liars), DropoutReason.FALSE_REVEAL)
        for dealer, holders in sorted(blame.complaints.items()):
            log.warning("unusable_shares", dealer=dealer, complaints=len(holders))

    def _blame(self, indices: Iterable[int], reason: DropoutReason) -> None:
        for index in sorted(set(indices) - self._blamed):
            self._blamed.add(index)
            self._drop(index, reason)
            self._gathering.drop([index])
            log.warning("site_blamed", index=index, reason=reason.value)

    def _drop(self, index: int, reason: DropoutReason) -> None:
        dropped = Dropped(index, reason)
        self._dropouts.append(dropped)
        if self._phase in (Phase.ADVERTISING, Phase.SHARING):
            self.facts.append(dropped)

    async def _until(self, is_there: Callable[[], bool]) -> None:
        while True:
            self._check_alive()
            if is_there():
                return
            await self._notice.wait()

    def _check_alive(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _drop_secrets(self) -> None:
        self._advertising = self._sharing = self._uploading = self._signing = self._revealing = None
        self._frozen = self._excerpts = self._directory = self._relayed = self._proof = None


def _close_advertising(
    advertising: CollectingAdvertisements,
) -> tuple[CollectingSealedShares, keyserver_pb2.ExchangeKeysResponse]:
    sharing, directory = advertising.close()
    return sharing, keyserver_pb2.ExchangeKeysResponse(directory=directory_to_proto(directory))


def _excerpt_for(excerpts: Excerpts, index: int) -> keyserver_pb2.ExchangeKeysResponse:
    return keyserver_pb2.ExchangeKeysResponse(directory=directory_to_proto(excerpts[index]))


def _close_signing(signing: CollectingSignatures) -> tuple[CollectingReveals, ConsistencyProof]:
    try:
        return signing.close()
    except NotEnough as error:
        # Enough sites signed, but too few of the witnesses.
        raise _Failure(AbandonReason.TOO_FEW_SIGNATURES, error) from error


def _close_sharing(
    sharing: CollectingSealedShares,
) -> tuple[SharesRelayed, dict[int, keyserver_pb2.ExchangeKeysResponse]]:
    uploading, relayed = sharing.close()
    messages = {
        index: keyserver_pb2.ExchangeKeysResponse(shares=relayed_shares_to_proto(shares))
        for index, shares in relayed.items()
    }
    return uploading, messages


def _dropout_reason(error: TacitError) -> DropoutReason:
    match error:
        case BadSignature() | IdentityError():
            return DropoutReason.BAD_SIGNATURE
        case BadKey():
            return DropoutReason.BAD_KEY
        case BadShares():
            return DropoutReason.BAD_SHARES
    return DropoutReason.PROTOCOL_VIOLATION


def _check_own_index(index: int, claimed: int) -> None:
    if claimed != index:
        raise RemoteProtocolError("a site speaks for another one", expected=f"index {index}", got=claimed)


def _present(phase: T | None, what: str) -> T:
    if phase is None:
        raise SessionFrozen(
            f"the session takes no {what} now",
            expected=f"{what} in the phase for them",
            got=f"{what} before or after it",
            fix="wait for the next attempt",
        )
    return phase


def _over() -> SessionFrozen:
    return SessionFrozen(
        "the session is over",
        expected="a message before it was unmasked",
        got="one after that",
        fix="wait for the next attempt",
    )


def _too_late(what: str, index: int) -> SessionFrozen:
    return SessionFrozen(
        f"the {what} of site {index} come too late",
        expected=f"{what} before the phase was closed",
        got=f"{what} after that",
        fix="wait for the next attempt",
    )
