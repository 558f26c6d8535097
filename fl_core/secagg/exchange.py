"""The key server in rounds 0 and 1: it collects signed keys, publishes the directory, and relays sealed shares.

A session object takes messages one by one, in any order. What it refuses changes nothing; the same message again is
accepted again, so that a broken stream may be opened once more.

Source: Bonawitz et al. 2017, figure 4, server side.
"""

from fl_core.errors import BadShares, LocalProtocolError, RemoteProtocolError, SessionFrozen
from fl_core.secagg.commitments import CommitmentBook, check_pair_length
from fl_core.secagg.context import RosterVerifier, SessionContext
from fl_core.secagg.directory import (
    Directory,
    FrozenKeys,
    advertisement_statement,
    check_advertisement,
    check_enough,
    claim_keys,
    freeze_keys,
)
from fl_core.secagg.index_sets import check_equal
from fl_core.secagg.messages import Beacon, KeyAdvertisement, KeyDirectory, RelayedShares, SealedShare, SealedShares
from fl_core.secagg.phase import Turn
from fl_core.secagg.sealing import check_sealed_length
from fl_core.secagg.unmasking import SharesRelayed


class CollectingAdvertisements:
    """Round 0: collects signed keys until it is closed.

    Args:
        context: the session.
        verifier: who may be at each index of the roster.
    """

    __slots__ = ("_advertisements", "_closed", "_context", "_key_owners", "_turn", "_verifier")

    def __init__(self, context: SessionContext, verifier: RosterVerifier) -> None:
        self._context = context
        self._verifier = verifier
        self._advertisements: dict[int, KeyAdvertisement] = {}
        self._key_owners: dict[bytes, int] = {}
        self._closed = False
        self._turn = Turn()

    @property
    def context(self) -> SessionContext:
        """The session."""
        return self._context

    @property
    def received(self) -> frozenset[int]:
        """Indices whose keys are here."""
        return frozenset(self._advertisements)

    def receive(self, advertisement: KeyAdvertisement) -> None:
        """Take the keys of one site.

        Raises:
            RemoteProtocolError: the index is not in the roster, or the site sent other keys before.
            BadKey: a key may not be used, or is known already.
            BadSignature, IdentityError: the site did not sign its keys for this session.
            SessionFrozen: the phase is over.
        """
        known = self._advertisements.get(advertisement.index)
        if known == advertisement:
            return
        if self._closed:
            raise _over("keys", advertisement.index)
        if known is not None:
            raise _different("keys", advertisement.index)
        check_advertisement(self._context, advertisement)
        statement = advertisement_statement(self._context, advertisement)
        self._verifier.verify(advertisement.index, advertisement.certificate_der, statement, advertisement.signature)
        claim_keys(self._key_owners, advertisement)
        self._advertisements[advertisement.index] = advertisement

    def close(self) -> tuple["CollectingSealedShares", KeyDirectory]:
        """Freeze U1 of a complete graph and publish its directory, the same for all.

        Raises:
            NotEnough: fewer sites than must survive; more may still come.
            LocalProtocolError: it is closed already, or the graph is sparse.
        """
        if self._context.harary is not None:
            raise LocalProtocolError("a sparse graph needs a beacon", expected="freeze, and a beacon for its digest")
        with self._turn:
            keys = self._freeze()
            return CollectingSealedShares(keys.directory(None), self._verifier), KeyDirectory(keys.advertisements)

    def freeze(self) -> "AwaitingBeacon":
        """Freeze U1 of a sparse graph; the coordinator has to answer its digest with the beacon.

        Raises:
            NotEnough: fewer sites than must survive; more may still come.
            LocalProtocolError: it is closed already, or the graph is complete.
        """
        if self._context.harary is None:
            raise LocalProtocolError("a complete graph needs no beacon", expected="close")
        with self._turn:
            return AwaitingBeacon(self._freeze(), self._verifier)

    def _freeze(self) -> FrozenKeys:
        keys = freeze_keys(self._context, [self._advertisements[index] for index in sorted(self._advertisements)])
        self._closed = True
        return keys


class AwaitingBeacon:
    """Between round 0 and round 1 of a sparse graph: U1 is frozen, the graph is not known to anybody."""

    __slots__ = ("_keys", "_turn", "_verifier")

    def __init__(self, keys: FrozenKeys, verifier: RosterVerifier) -> None:
        self._keys = keys
        self._verifier = verifier
        self._turn = Turn()

    @property
    def members(self) -> tuple[int, ...]:
        """U1, by ascending index."""
        return self._keys.members

    @property
    def digest(self) -> bytes:
        """32 bytes that stand for U1 and its keys; the coordinator reveals the beacon for them, once."""
        return self._keys.digest

    def step(self, beacon: Beacon) -> tuple["CollectingSealedShares", "Excerpts"]:
        """Make the graph; returns what to show to each site.

        Raises:
            RemoteProtocolError: the beacon is not the one of the plan.
            BadSignature: the coordinator signed another directory.
            LocalProtocolError: the phase has moved already.
        """
        with self._turn:
            directory = self._keys.directory(beacon)
            return CollectingSealedShares(directory, self._verifier), Excerpts(self._keys, directory, beacon)


class Excerpts:
    """What each site is shown of a directory with a sparse graph, made when it is asked for."""

    __slots__ = ("_beacon", "_directory", "_keys")

    def __init__(self, keys: FrozenKeys, directory: Directory, beacon: Beacon) -> None:
        self._keys = keys
        self._directory = directory
        self._beacon = beacon

    def __getitem__(self, index: int) -> KeyDirectory:
        """The excerpt of a member of U1."""
        return self._keys.excerpt(self._directory, index, self._beacon)


class CollectingSealedShares:
    """Round 1: collects what each site of U1 sealed for its neighbours until it is closed."""

    __slots__ = ("_closed", "_directory", "_sealed", "_turn", "_verifier")

    def __init__(self, directory: Directory, verifier: RosterVerifier) -> None:
        self._directory = directory
        self._verifier = verifier
        self._sealed: dict[int, SealedShares] = {}
        self._closed = False
        self._turn = Turn()

    @property
    def members(self) -> tuple[int, ...]:
        """U1, by ascending index."""
        return self._directory.members

    @property
    def received(self) -> frozenset[int]:
        """Indices whose shares are here."""
        return frozenset(self._sealed)

    def receive(self, index: int, sealed: SealedShares) -> None:
        """Take the shares of the site that is known to be at `index`.

        Raises:
            RemoteProtocolError: the site is not in U1, sent other shares before, names another sender, or its
                recipients are not exactly its neighbours.
            BadShares: a sealed share has the wrong length.
            SessionFrozen: the phase is over.
        """
        known = self._sealed.get(index)
        if known == sealed:
            return
        if self._closed:
            raise _over("shares", index)
        if known is not None:
            raise _different("shares", index)
        self._check(index, sealed)
        self._sealed[index] = sealed

    def close(self) -> tuple[SharesRelayed, dict[int, RelayedShares]]:
        """Freeze U2; returns what to relay to each of its sites.

        Raises:
            NotEnough: fewer sites than must survive; more may still come.
            LocalProtocolError: it is closed already.
        """
        with self._turn:
            participants = tuple(sorted(self._sealed))
            check_enough(len(participants), self._directory.context.min_survivors, "sites shared their secrets")
            self._closed = True
            book = CommitmentBook(self._directory.context, self._sealed)
            return SharesRelayed(self._directory, self._verifier, participants, book), self._relayed(participants)

    def _check(self, index: int, sealed: SealedShares) -> None:
        if index not in self._directory.advertisements:
            raise RemoteProtocolError("a site outside of U1 sent shares", expected="a site of U1", got=index)
        for share in sealed.shares:
            if share.sender != index:
                raise RemoteProtocolError("a share names another sender", expected=f"sender {index}", got=share.sender)
            check_sealed_length(share)
        self._check_own(index, sealed.own_commitments)
        recipients = [share.recipient for share in sealed.shares]
        check_equal(recipients, self._directory.graph.neighbours(index), "the recipients of shares")

    def _check_own(self, index: int, commitments: bytes) -> None:
        if index in self._directory.holders(index):
            check_pair_length(index, commitments)
        elif commitments:
            raise BadShares(
                f"site {index} commits to shares that it does not hold",
                expected="none: with a sparse graph a site holds no share of its own secrets",
                got=f"{len(commitments)} bytes",
            )

    def _relayed(self, participants: tuple[int, ...]) -> dict[int, RelayedShares]:
        mailboxes: dict[int, list[SealedShare]] = {index: [] for index in participants}
        for sender in participants:
            for share in self._sealed[sender].shares:
                if share.recipient in mailboxes:
                    mailboxes[share.recipient].append(share)
        return {index: RelayedShares(tuple(mailbox)) for index, mailbox in mailboxes.items()}


def _over(what: str, index: int) -> SessionFrozen:
    return SessionFrozen(
        f"the {what} of site {index} come too late",
        expected=f"{what} before the phase was closed",
        fix="take part in the next attempt",
    )


def _different(what: str, index: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"site {index} sent different {what} before",
        expected="the same message again, or none",
        got="another message",
        fix="take part in the next attempt, with fresh keys",
    )
