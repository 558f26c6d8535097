"""The key server in rounds 3 and 4: one survivor set, signed by a threshold of sites; then shares, seeds, one mask.

It never holds a vector. What leaves it is the sum of masks, of which nobody can tell the parts.

Source: Bonawitz et al. 2017, figure 4, server side.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice

import numpy as np
import numpy.typing as npt

from fl_core.crypto.agreement import public_key_of
from fl_core.crypto.shamir import combine, lagrange_at_zero, parse_shares
from fl_core.errors import BadShares, RemoteProtocolError, SessionFrozen
from fl_core.secagg.context import RosterVerifier, SessionContext
from fl_core.secagg.directory import Directory, check_enough, check_reach, seed_commitment, survivors_statement
from fl_core.secagg.index_sets import check_equal, check_subset
from fl_core.secagg.masks import MaskJob, MaskTerm, expand_terms, pair_terms, self_term, split_jobs
from fl_core.secagg.messages import (
    ConsistencyProof,
    RevealedShare,
    RevealedShares,
    RingVector,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.secagg.phase import Turn

MAX_TRIALS = 500
"""Sets of holders that are left out, one after the other, when shares do not rebuild a secret."""

ShareRows = Mapping[int, npt.NDArray[np.uint64]]


@dataclass(frozen=True, slots=True)
class Unmasking:
    """The frozen facts of rounds 3 and 4: U1 with its keys, U2 and U3."""

    directory: Directory = field(repr=False)
    verifier: RosterVerifier = field(repr=False)
    participants: tuple[int, ...]
    survivors: tuple[int, ...]
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

    __slots__ = ("_directory", "_participants", "_turn", "_verifier")

    def __init__(self, directory: Directory, verifier: RosterVerifier, participants: tuple[int, ...]) -> None:
        self._directory = directory
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
            return CollectingSignatures(Unmasking(self._directory, self._verifier, self._participants, survivors))


class CollectingSignatures:
    """Round 3: collects the signatures of the survivors over the one U3."""

    __slots__ = ("_closed", "_facts", "_signatures", "_statement", "_turn")

    def __init__(self, facts: Unmasking) -> None:
        self._facts = facts
        self._statement = survivors_statement(facts.directory, facts.participants, facts.survivors)
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
    """Round 4: collects the shares of U4."""

    __slots__ = ("_asked", "_closed", "_facts", "_messages", "_rows", "_signers", "_turn")

    def __init__(self, facts: Unmasking, signers: tuple[int, ...]) -> None:
        self._facts = facts
        self._signers = signers
        self._asked = frozenset(signers)
        self._messages: dict[int, RevealedShares] = {}
        self._rows: dict[int, ShareRows] = {}
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

    def receive(self, revealed: RevealedShares) -> None:
        """Take the shares of one site: exactly one for each owner it holds shares of, and of the right kind.

        Raises:
            RemoteProtocolError: the site is not in U4, sent other shares before, or its owners are not exactly those
                whose share of this kind is needed.
            BadShares: a share has the wrong length or is no field element.
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
        rows = self._parsed(revealed)
        self._messages[index], self._rows[index] = revealed, rows

    def close(self) -> "RebuiltSeeds":
        """Freeze U5 and rebuild the seed of every survivor and the mask key of every dropped site.

        Every secret was committed to, so that false shares show. As long as more than a threshold of sites revealed,
        those whose shares are false are found and left out; in a large cohort only the first few of them.

        Raises:
            NotEnough: fewer sites than the threshold revealed; more may still come.
            BadShares: what was rebuilt is not what its owner committed to.
            LocalProtocolError: it is closed already.
        """
        with self._turn:
            facts = self._facts
            check_enough(len(self._rows), facts.directory.context.threshold, "sites revealed shares")
            owners = (*facts.survivors, *facts.dropped)
            for owner in owners:
                check_reach(facts.directory, owner, self._rows, f"sites revealed shares of site {owner}")
            secrets, false_holders = _rebuild_without_liars(facts, self._rows)
            self_seeds = {owner: secrets[owner] for owner in facts.survivors}
            mask_keys = {owner: secrets[owner] for owner in facts.dropped}
            self._closed = True
            return RebuiltSeeds(facts, tuple(sorted(self._rows)), self_seeds, mask_keys, false_holders)

    def _parsed(self, revealed: RevealedShares) -> ShareRows:
        facts, index = self._facts, revealed.index
        seeds, keys = revealed.self_seed_shares, revealed.mask_key_shares
        check_equal(_owners(seeds), facts.survivors_near(index), f"the seed shares of site {index}")
        check_equal(_owners(keys), facts.dropped_near(index), f"the key shares of site {index}")
        rows = parse_shares([revealed_share.share for revealed_share in (*seeds, *keys)])
        return dict(zip([*_owners(seeds), *_owners(keys)], rows, strict=True))


@dataclass(frozen=True, slots=True)
class RebuiltSeeds:
    """The secrets of which the combined mask is made: seeds of survivors, mask keys of dropped sites."""

    facts: Unmasking
    revealed: tuple[int, ...]
    """U5, by ascending index."""
    self_seeds: Mapping[int, bytes] = field(repr=False)
    mask_keys: Mapping[int, bytes] = field(repr=False)
    false_holders: tuple[int, ...] = ()
    """Sites of U5 whose shares were false, as far as they stood in the way, by ascending index."""

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, by ascending index."""
        return self.facts.survivors

    @property
    def owners(self) -> tuple[int, ...]:
        """Every site whose masks are part of the combined mask; `terms_of` may be asked for each in any thread."""
        return (*self.facts.survivors, *self.facts.dropped)

    def terms_of(self, owner: int) -> list[MaskTerm]:
        """The masks that one site leaves in the sum: a survivor its own, a dropped site those of its surviving peers.

        A dropped site costs one key agreement for each surviving neighbour: this is most of the work of unmasking. A
        pair of which both dropped out masks nothing, and a pair of survivors cancels.
        """
        directory = self.facts.directory
        if owner in self.self_seeds:
            return [self_term(directory, owner, self.self_seeds[owner])]
        terms = pair_terms(directory, owner, self.facts.survivors_near(owner), self.mask_keys[owner])
        # The term is the dropped site's; what is left in the sum is its peer's, of the other sign.
        return [MaskTerm(term.key, not term.negative) for term in terms]

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
        return [term for owner in self.owners for term in self.terms_of(owner)]


def _rebuild_without_liars(facts: Unmasking, rows: Mapping[int, ShareRows]) -> tuple[dict[int, bytes], tuple[int, ...]]:
    """Every secret, checked, and the holders that had to be left out for it.

    The fewest are left out, and of holders in order the first are used. So nobody honest is left out: without him in
    that set the same liars would be in use, and a smaller set would have done. Only liars whose errors cancel out can
    shift the blame among holders, and even they never change a secret: each is checked against its commitment.
    """
    refusal: BadShares | None = None
    for left_out in _sets_to_leave_out(rows, len(rows) - facts.directory.context.threshold):
        kept = {holder: row for holder, row in rows.items() if holder not in left_out}
        try:
            return _checked_secrets(facts, kept), left_out
        except BadShares as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _sets_to_leave_out(holders: Iterable[int], spare: int) -> Iterator[tuple[int, ...]]:
    """Nobody, then each holder, then each two of them, as long as the others are enough."""
    ordered = sorted(holders)
    sets = chain.from_iterable(combinations(ordered, count) for count in range(spare + 1))
    return islice(sets, MAX_TRIALS)


def _checked_secrets(facts: Unmasking, rows: Mapping[int, ShareRows]) -> dict[int, bytes]:
    secrets = _rebuild(facts.directory, (*facts.survivors, *facts.dropped), rows)
    for owner in facts.survivors:
        _check_seed(facts.directory, owner, secrets[owner])
    for owner in facts.dropped:
        _check_key(facts.directory, owner, secrets[owner])
    return secrets


def _rebuild(directory: Directory, owners: Sequence[int], rows: Mapping[int, ShareRows]) -> dict[int, bytes]:
    """Rebuild one secret of each owner. Owners with the same holders share their coefficients and go together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for owner in owners:
        holders = [holder for holder in directory.holders(owner) if holder in rows]
        groups.setdefault(tuple(holders[: directory.context.threshold]), []).append(owner)
    secrets: dict[int, bytes] = {}
    for shared_by, group in groups.items():
        shares = np.stack([np.stack([rows[holder][owner] for owner in group]) for holder in shared_by])
        secrets.update(zip(group, combine(lagrange_at_zero(shared_by), shares), strict=True))
    return secrets


def _check_seed(directory: Directory, owner: int, seed: bytes) -> None:
    committed = directory.advertisements[owner].self_seed_commitment
    if seed_commitment(directory.context, owner, seed) != committed:
        raise _not_committed(owner, "self-mask seed")


def _check_key(directory: Directory, owner: int, secret_key: bytes) -> None:
    if public_key_of(secret_key) != directory.advertisements[owner].mask_public_key:
        raise _not_committed(owner, "mask key")


def _not_committed(owner: int, what: str) -> BadShares:
    return BadShares(
        f"the shares of site {owner} do not rebuild its {what}",
        expected="the secret that the site committed to in its advertisement",
        fix="run the round again; the site or one of its holders sent false shares",
    )


def _owners(shares: Sequence[RevealedShare]) -> list[int]:
    return [share.owner for share in shares]


def _over(what: str, index: int) -> SessionFrozen:
    return SessionFrozen(f"the {what} of site {index} comes too late", expected="before the phase was closed")
