"""The key server in rounds 3 and 4: one survivor set, signed by a threshold of sites; then shares, seeds, one mask.

It never holds a vector. What leaves it is the sum of masks, of which nobody can tell the parts.

Source: Bonawitz et al. 2017, figure 4, server side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl_core.crypto.shamir import Words, parse_shares
from fl_core.errors import LocalProtocolError, RemoteProtocolError, SessionFrozen
from fl_core.secagg.blame import Blame
from fl_core.secagg.commitments import CommitmentBook, ShareKind
from fl_core.secagg.context import RosterVerifier, SessionContext
from fl_core.secagg.directory import Directory, check_enough, survivors_statement
from fl_core.secagg.index_sets import check_equal, check_subset
from fl_core.secagg.masks import MaskJob, MaskTerm, expand_terms, self_term, split_jobs, terms_of_pairs
from fl_core.secagg.messages import (
    ConsistencyProof,
    RevealedShare,
    RevealedShares,
    RingVector,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.secagg.noise_seeds import check_seed_length, excess_parts, noise_commitment, part_keys
from fl_core.secagg.phase import Turn
from fl_core.secagg.rebuilding import RebuildJob, Rebuilt, ShareRows, join_rebuilt, rebuild_jobs


@dataclass(frozen=True, slots=True)
class Unmasking:
    """The frozen facts of rounds 3 and 4: U1 with its keys, U2 and U3."""

    directory: Directory = field(repr=False)
    verifier: RosterVerifier = field(repr=False)
    participants: tuple[int, ...]
    survivors: tuple[int, ...]
    commitments: CommitmentBook = field(repr=False)
    uploads_root: bytes = b""
    survived: frozenset[int] = field(init=False, repr=False)
    """U3."""
    dropped: tuple[int, ...] = field(init=False)
    """U2 less U3, by ascending index."""
    _gone: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        survived = frozenset(self.survivors)
        dropped = tuple(index for index in self.participants if index not in survived)
        object.__setattr__(self, "survived", survived)
        object.__setattr__(self, "dropped", dropped)
        object.__setattr__(self, "_gone", frozenset(dropped))

    def survivors_near(self, index: int) -> list[int]:
        """Survivors whose shares this site holds, by ascending index."""
        return [owner for owner in self.directory.holders(index) if owner in self.survived]

    def dropped_near(self, index: int) -> list[int]:
        """Dropped sites whose shares this site holds, by ascending index."""
        return [owner for owner in self.directory.holders(index) if owner in self._gone]


class SharesRelayed:
    """Between round 1 and round 3: U2 is frozen, uploads go to the aggregator."""

    __slots__ = ("_commitments", "_directory", "_participants", "_turn", "_verifier")

    def __init__(
        self,
        directory: Directory,
        verifier: RosterVerifier,
        participants: tuple[int, ...],
        commitments: CommitmentBook,
    ) -> None:
        self._directory = directory
        self._commitments = commitments
        self._verifier = verifier
        self._participants = participants
        self._turn = Turn()

    @property
    def context(self) -> SessionContext:
        """The session."""
        return self._directory.context

    @property
    def participants(self) -> tuple[int, ...]:
        """U2, by ascending index."""
        return self._participants

    @property
    def directory_digest(self) -> bytes:
        """What everybody saw of U1, 32 bytes."""
        return self._directory.digest

    @property
    def commitments(self) -> CommitmentBook:
        """What the dealers of U2 committed to."""
        return self._commitments

    def freeze(self, survivor_set: SurvivorSet) -> "CollectingSignatures":
        """Fix U3, once for ever.

        Raises:
            RemoteProtocolError: U3 is no part of U2, not ascending, or names a site twice.
            NotEnough: fewer survivors than the plan demands.
            LocalProtocolError: U3 is fixed already.
        """
        with self._turn:
            survivors = survivor_set.survivors
            check_subset(survivors, self._participants, "the survivors", "U2")
            check_enough(len(survivors), self.context.min_survivors, "survivors")
            facts = Unmasking(
                self._directory,
                self._verifier,
                self._participants,
                survivors,
                self._commitments,
                survivor_set.uploads_root,
            )
            return CollectingSignatures(facts)


class CollectingSignatures:
    """Round 3: collects the signatures of the survivors over the one U3."""

    __slots__ = ("_closed", "_facts", "_signatures", "_statement", "_turn")

    def __init__(self, facts: Unmasking) -> None:
        self._facts = facts
        self._statement = survivors_statement(facts.directory, facts.participants, facts.survivors, facts.uploads_root)
        self._signatures: dict[int, SurvivorSignature] = {}
        self._closed = False
        self._turn = Turn()

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, by ascending index: those who are asked."""
        return self._facts.survivors

    @property
    def received(self) -> frozenset[int]:
        """Indices whose signatures are here."""
        return frozenset(self._signatures)

    def receive(self, signature: SurvivorSignature) -> None:
        """Take the signature of one survivor. A second one that verifies changes nothing: it says the same.

        Raises:
            RemoteProtocolError: the signer is not in U3.
            BadSignature, IdentityError: the signature is not of this site, or of another U3.
            SessionFrozen: the phase is over.
        """
        if signature.index not in self._facts.survived:
            raise RemoteProtocolError("a site outside of U3 signed", expected="a survivor", got=signature.index)
        if self._signatures.get(signature.index) == signature:
            return
        if self._closed:
            raise _over("signature", signature.index)
        certificate = self._facts.directory.advertisements[signature.index].certificate_der
        self._facts.verifier.verify(signature.index, certificate, self._statement, signature.signature)
        self._signatures.setdefault(signature.index, signature)

    def close(self) -> tuple["CollectingReveals", ConsistencyProof]:
        """Freeze U4 and hand out the signatures of the witnesses in it.

        Raises:
            NotEnough: fewer signatures of witnesses than the threshold; more may still come.
            LocalProtocolError: it is closed already.
        """
        with self._turn:
            signers = tuple(sorted(self._signatures))
            directory = self._facts.directory
            witnesses = [index for index in directory.graph.witnesses if index in self._signatures]
            check_enough(len(witnesses), directory.context.threshold, "sites signed the survivors")
            self._closed = True
            proof = ConsistencyProof(tuple(self._signatures[index] for index in witnesses))
            return CollectingReveals(self._facts, signers), proof


class CollectingReveals:
    """Round 4: collects the shares of U4. A wrong share is dropped and its holder blamed; the right ones count."""

    __slots__ = (
        "_asked",
        "_closed",
        "_excess",
        "_facts",
        "_messages",
        "_orders",
        "_rows",
        "_signers",
        "_turn",
        "_wrong",
    )

    def __init__(self, facts: Unmasking, signers: tuple[int, ...]) -> None:
        self._facts = facts
        self._signers = signers
        self._asked = frozenset(signers)
        self._messages: dict[int, RevealedShares] = {}
        self._rows: dict[int, ShareRows] = {}
        self._orders: dict[tuple[int, ...], dict[int, int]] = {}
        self._excess: dict[int, bytes] = {}
        self._wrong: set[int] = set()
        self._closed = False
        self._turn = Turn()

    @property
    def signers(self) -> tuple[int, ...]:
        """U4, by ascending index: those who are asked."""
        return self._signers

    @property
    def received(self) -> frozenset[int]:
        """Indices whose shares are here."""
        return frozenset(self._messages)

    def is_blamed(self, index: int) -> bool:
        """Whether a share that this site revealed is not what its owner committed to, or its noise seed is another."""
        return index in self._wrong

    @property
    def blame(self) -> Blame:
        """Who revealed wrong shares so far, and who complains about whom."""
        complaints: dict[int, set[int]] = {}
        for holder, message in self._messages.items():
            for dealer in message.complaints:
                complaints.setdefault(dealer, set()).add(holder)
        return Blame(frozenset(self._wrong), {dealer: frozenset(who) for dealer, who in complaints.items()})

    def receive(self, revealed: RevealedShares) -> None:
        """Take the shares of one site: exactly one for each owner it holds shares of, and of the right kind.

        A share that is not what its owner committed to is dropped, and so is a noise seed that is not what the site
        committed to; `blame` names the site.

        Raises:
            RemoteProtocolError: the site is not in U4, sent other shares before, or its owners, and those that it
                complains about, are not exactly those whose share of this kind is needed.
            BadShares: a share has the wrong length or is no field element, or there is a noise seed where none is due,
                or none where one is.
            SessionFrozen: the phase is over.
        """
        index = revealed.index
        if index not in self._asked:
            raise RemoteProtocolError("a site outside of U4 revealed shares", expected="a signer", got=index)
        known = self._messages.get(index)
        if known == revealed:
            return
        if self._closed:
            raise _over("shares", index)
        if known is not None:
            raise RemoteProtocolError(f"site {index} revealed different shares before", expected="the same, or none")
        excess = excess_parts(self._facts.directory.context, len(self._facts.survivors))
        check_seed_length(index, revealed.excess_seed, wanted=bool(excess))
        order, rows = self._parsed(revealed)
        wrong = self._wrong_of(revealed)
        if wrong:
            self._wrong.add(index)
        self._rows[index] = ShareRows(self._places(order), rows, wrong.union(revealed.complaints))
        self._messages[index] = revealed
        if excess:
            self._take_seed(index, revealed.excess_seed, excess.start)

    def rebuild_jobs(self, parts: int = 1) -> list[RebuildJob]:
        """Cut the rebuilding of all secrets into at most `parts` jobs over different owners, for as many threads.

        Raises:
            NotEnough: fewer sites than the threshold revealed; more may still come.
        """
        facts = self._facts
        check_enough(len(self._rows), facts.directory.context.threshold, "sites revealed shares")
        # What still comes while the jobs run is not for them.
        rows = dict(self._rows)
        return rebuild_jobs(facts.directory, facts.survivors, facts.dropped, rows, self._wrong, parts)

    def close(self, rebuilt: Sequence[Rebuilt] | None = None) -> "RebuiltSeeds":
        """Freeze U5, with the seed of every survivor and the mask key of every dropped site.

        Args:
            rebuilt: what all of `rebuild_jobs` gave, when the caller already ran them in threads.

        Raises:
            NotEnough: fewer sites than the threshold revealed; more may still come.
            FalseDealing: the right shares of an owner do not rebuild what it advertised.
            LocalProtocolError: it is closed already.
        """
        with self._turn:
            parts = [job.rebuild() for job in self.rebuild_jobs()] if rebuilt is None else rebuilt
            self_seeds, mask_keys = join_rebuilt(parts)
            facts = self._facts
            if self_seeds.keys() != facts.survived or tuple(mask_keys) != facts.dropped:
                raise LocalProtocolError("not every secret was rebuilt", expected="the results of all jobs")
            self._closed = True
            return RebuiltSeeds(facts, tuple(sorted(self._rows)), self_seeds, mask_keys, dict(self._excess))

    def _take_seed(self, index: int, seed: bytes, part: int) -> None:
        directory = self._facts.directory
        committed = directory.advertisements[index].noise_commitment
        if noise_commitment(directory.context, index, seed, part) == committed:
            self._excess[index] = seed
        else:
            self._wrong.add(index)

    def _parsed(self, revealed: RevealedShares) -> tuple[tuple[int, ...], Words]:
        facts, index = self._facts, revealed.index
        seeds, keys, complaints = revealed.self_seed_shares, revealed.mask_key_shares, revealed.complaints
        survivors, dropped = facts.survivors_near(index), facts.dropped_near(index)
        check_subset(complaints, {*survivors, *dropped} - {index}, f"the complaints of site {index}", "its neighbours")
        missing = frozenset(complaints)
        check_equal(_owners(seeds), _without(survivors, missing), f"the seed shares of site {index}")
        check_equal(_owners(keys), _without(dropped, missing), f"the key shares of site {index}")
        rows = parse_shares([revealed_share.share for revealed_share in (*seeds, *keys)])
        return (*_owners(seeds), *_owners(keys)), rows

    def _places(self, order: tuple[int, ...]) -> dict[int, int]:
        # In a complete graph all holders have the same owners, and share one table of them.
        places = self._orders.get(order)
        if places is None:
            places = self._orders[order] = {owner: place for place, owner in enumerate(order)}
        return places

    def _wrong_of(self, revealed: RevealedShares) -> frozenset[int]:
        """Owners of which this site revealed something else than what they committed to."""
        book = self._facts.commitments
        return frozenset(
            sent.owner
            for kind, shares in (
                (ShareKind.SELF_SEED, revealed.self_seed_shares),
                (ShareKind.MASK_KEY, revealed.mask_key_shares),
            )
            for sent in shares
            if not book.is_right(kind, sent.owner, revealed.index, sent.share)
        )


@dataclass(frozen=True, slots=True)
class RebuiltSeeds:
    """The secrets of which the combined mask is made: seeds of survivors, mask keys of dropped sites."""

    facts: Unmasking
    revealed: tuple[int, ...]
    """U5, by ascending index."""
    self_seeds: Mapping[int, bytes] = field(repr=False)
    mask_keys: Mapping[int, bytes] = field(repr=False)
    excess_seeds: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    """By site in U5, the seed of the noise that is not needed; a site that revealed none leaves all of its noise."""

    def excess_keys(self) -> list[tuple[bytes, ...]]:
        """The keys of the noise that is not needed: of each site its last parts, and of all sites equally many."""
        context = self.facts.directory.context
        known = excess_parts(context, len(self.survivors)).start
        return [part_keys(context, index, seed, known) for index, seed in sorted(self.excess_seeds.items())]

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, by ascending index."""
        return self.facts.survivors

    @property
    def owners(self) -> tuple[int, ...]:
        """Every site whose masks are in the combined mask; `terms_of` may be asked for any of them in any thread."""
        return (*self.facts.survivors, *self.facts.dropped)

    def terms_of(self, owners: Sequence[int]) -> list[MaskTerm]:
        """The masks that sites leave in the sum: a survivor its own, a dropped site those of its surviving peers.

        A dropped site costs one key agreement for each surviving neighbour: this is most of the work of unmasking. A
        pair of which both dropped out masks nothing, and a pair of survivors cancels.
        """
        directory = self.facts.directory
        own = [self_term(directory, owner, self.self_seeds[owner]) for owner in owners if owner in self.self_seeds]
        pairs = terms_of_pairs(
            directory,
            [
                (owner, peer, self.mask_keys[owner])
                for owner in owners
                if owner in self.mask_keys
                for peer in self.facts.survivors_near(owner)
            ],
        )
        # The term is the dropped site's; what is left in the sum is its peer's, of the other sign.
        return [*own, *(MaskTerm(term.key, not term.negative) for term in pairs)]

    def mask_jobs(self, parts: int = 1, terms: Sequence[MaskTerm] | None = None) -> list[MaskJob]:
        """Cut the expansion into jobs over disjoint parts of one vector, for as many threads.

        Args:
            parts: at most so many jobs.
            terms: all of `terms_of`, of every owner, when the caller already made them in threads.
        """
        return split_jobs(self._terms() if terms is None else terms, self.facts.directory.context, parts)

    def combined_mask(self) -> RingVector:
        """The sum of all masks that are left in the sum of the survivors' vectors, (d,) in the lane of the ring."""
        return expand_terms(self._terms(), self.facts.directory.context)

    def _terms(self) -> list[MaskTerm]:
        return self.terms_of(self.owners)


def _owners(shares: Sequence[RevealedShare]) -> list[int]:
    return [share.owner for share in shares]


def _without(indices: Sequence[int], missing: frozenset[int]) -> list[int]:
    return [index for index in indices if index not in missing]


def _over(what: str, index: int) -> SessionFrozen:
    return SessionFrozen(f"the {what} of site {index} comes too late", expected="before the phase was closed")
