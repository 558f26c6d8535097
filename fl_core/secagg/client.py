"""The phases of a site, one class each. A phase moves once: `next_phase, message = phase.step(incoming)`.

    advertise -> CollectingDirectory -> CollectingShares -> ReadyToMask
              -> AwaitingSurvivors -> AwaitingProof -> Revealed

The site trusts its pinned federation CA and nobody else: it checks everything that a server tells it, works out for
itself who dropped out, and reveals one kind of share per peer, once. A step that raises has changed nothing and sent
nothing; secrets leave a phase as soon as no later phase needs them.

Source: Bonawitz et al. 2017, figure 4, with the lines of the active-adversary variant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fl_core.crypto.agreement import KeyPair, draw_secret, generate_key_pair
from fl_core.crypto.mask_prg import reduce_ring
from fl_core.crypto.shamir import split_secrets
from fl_core.errors import LocalProtocolError, RemoteProtocolError
from fl_core.secagg.blame import open_relayed
from fl_core.secagg.context import Entropy, RosterVerifier, SessionContext, Signer
from fl_core.secagg.directory import (
    Directory,
    advertisement_statement,
    check_enough,
    check_reach,
    read_directory,
    seed_commitment,
    survivors_statement,
)
from fl_core.secagg.gap_audit import check_gaps
from fl_core.secagg.graph import HararyGraph
from fl_core.secagg.index_sets import check_subset
from fl_core.secagg.masks import MaskTerm, apply_terms, check_vector, expand_terms, pair_terms, self_term
from fl_core.secagg.messages import (
    ConsistencyProof,
    KeyAdvertisement,
    KeyDirectory,
    MaskedInput,
    RelayedShares,
    RevealedShare,
    RevealedShares,
    RingVector,
    SealedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.secagg.noise_seeds import SEED_BYTES, excess_parts, noise_commitment, part_keys, seed_of_part
from fl_core.secagg.phase import Turn
from fl_core.secagg.sealing import (
    HeldShares,
    agree_share_keys,
    check_sealed_length,
    commit_to,
    seal_shares,
)


@dataclass(frozen=True, slots=True)
class Member:
    """Who a site is in one session, and how it signs and checks."""

    context: SessionContext
    index: int
    signer: Signer = field(repr=False)
    verifier: RosterVerifier = field(repr=False)


@dataclass(frozen=True, slots=True)
class SiteSecrets:
    """What a site draws for one session; the first two are shared among its neighbours."""

    mask_secret_key: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)
    noise_seed: bytes = field(default=b"", repr=False)
    """The first of the seeds of our noise, which is not shared; empty where there is no such noise."""


def advertise(
    context: SessionContext,
    index: int,
    signer: Signer,
    verifier: RosterVerifier,
    entropy: Entropy,
) -> tuple["CollectingDirectory", KeyAdvertisement]:
    """Round 0: draw fresh keys and a fresh seed for one attempt, and sign the public part.

    Args:
        context: the session.
        index: our place in the roster.
        signer: the key of our certificate.
        verifier: who may be at each index of the roster.
        entropy: source of uniform bytes, also for the shares of round 1.

    Raises:
        LocalProtocolError: the index is outside of the roster.
    """
    if not 0 <= index < context.size:
        raise LocalProtocolError("the site is not in the roster", expected=f"0 to {context.size - 1}", got=index)
    cipher_keys, mask_keys, self_seed = generate_key_pair(entropy), generate_key_pair(entropy), draw_secret(entropy)
    noise_seed = entropy(SEED_BYTES) if context.noise_tiers else b""
    unsigned = KeyAdvertisement(
        index=index,
        cipher_public_key=cipher_keys.public_key,
        mask_public_key=mask_keys.public_key,
        self_seed_commitment=seed_commitment(context, index, self_seed),
        certificate_der=signer.certificate_der,
        signature=b"",
        noise_commitment=noise_commitment(context, index, noise_seed),
    )
    advertisement = replace(unsigned, signature=signer.sign(advertisement_statement(context, unsigned)))
    member = Member(context, index, signer, verifier)
    secrets = SiteSecrets(mask_keys.secret_key, self_seed, noise_seed)
    return CollectingDirectory(member, advertisement, cipher_keys, secrets, entropy), advertisement


@dataclass(frozen=True, slots=True)
class CollectingDirectory:
    """Round 1 begins: waits for the signed keys of the neighbours."""

    member: Member
    advertisement: KeyAdvertisement
    cipher_keys: KeyPair
    secrets: SiteSecrets
    entropy: Entropy = field(repr=False)
    _turn: Turn = field(default_factory=Turn, repr=False)

    def step(self, incoming: KeyDirectory) -> tuple["CollectingShares", SealedShares]:
        """Check the directory and the neighbours' keys, then seal a share of our two secrets for each neighbour.

        Raises:
            RemoteProtocolError: an index is unknown, out of order or stands twice, our own keys are missing or were
                replaced, or the graph is not the one that follows from the plan.
            BadKey: a key has a low order, is not canonical, has the wrong length or stands twice.
            BadSignature, IdentityError: a site did not sign its keys for this session, or the coordinator not the
                directory.
            NotEnough: fewer sites than must survive.
            LocalProtocolError: the phase has moved already.
        """
        with self._turn:
            directory = self._checked(incoming)
            held = self._split(directory)
            index = self.member.index
            keys = agree_share_keys(directory, index, self.cipher_keys.secret_key)
            sealed = tuple(seal_shares(directory, index, peer, keys[peer].sealing, held[peer]) for peer in keys)
            opening_keys = {peer: keys[peer].opening for peer in keys}
            own = held.get(index)
            commitments = b"" if own is None else commit_to(directory, index, index, own)
            following = CollectingShares(self.member, directory, self.secrets, own, opening_keys)
            return following, SealedShares(sealed, commitments)

    def _checked(self, incoming: KeyDirectory) -> Directory:
        context, index = self.member.context, self.member.index
        directory = read_directory(context, index, incoming)
        if directory.advertisements.get(index) != self.advertisement:
            raise RemoteProtocolError(
                "our own keys are missing from the directory or were replaced",
                expected=f"the advertisement that site {index} sent",
                fix="do not continue with this key server",
            )
        for neighbour in directory.graph.neighbours(index):
            advertisement = directory.advertisements[neighbour]
            statement = advertisement_statement(context, advertisement)
            self.member.verifier.verify(neighbour, advertisement.certificate_der, statement, advertisement.signature)
        return directory

    def _split(self, directory: Directory) -> Mapping[int, HeldShares]:
        holders = directory.holders(self.member.index)
        secrets = [self.secrets.mask_secret_key, self.secrets.self_seed]
        shares = split_secrets(secrets, self.member.context.threshold, holders, self.entropy)
        return {holder: HeldShares(*pair) for holder, pair in zip(holders, shares, strict=True)}


@dataclass(frozen=True, slots=True)
class CollectingShares:
    """Round 1 ends: waits for what the neighbours sealed for us. Its senders and we are U2, as far as we know it."""

    member: Member
    directory: Directory = field(repr=False)
    secrets: SiteSecrets
    own_shares: HeldShares | None
    """With a complete graph a site holds shares of its own secrets too."""
    opening_keys: Mapping[int, bytes] = field(repr=False)
    _turn: Turn = field(default_factory=Turn, repr=False)

    def step(self, incoming: RelayedShares) -> "ReadyToMask":
        """Open the shares, which tells who is in U2.

        They are opened now, while training runs, so that a site that cannot help to unmask never uploads. A dealer
        whose shares do not open, or are not what it committed to, stays in U2: we hold no share of it and complain.

        Raises:
            RemoteProtocolError: a share is for somebody else, or its sender is no neighbour, out of order or stands
                twice.
            BadShares: fewer shares than the threshold are usable; the others do not open in this session, are none,
                or are not what their dealers committed to.
            NotEnough: fewer sites than must survive.
            LocalProtocolError: the phase has moved already.
        """
        with self._turn:
            index = self.member.index
            self._check(incoming)
            # Of a sparse graph a site holds no shares of its own: those of its neighbours have to be enough.
            needed = self.member.context.threshold - (self.own_shares is not None)
            held = open_relayed(self.directory, index, incoming.shares, self.opening_keys, needed)
            if self.own_shares is not None:
                held[index] = self.own_shares
            participants = tuple(sorted((*(sealed.sender for sealed in incoming.shares), index)))
            return ReadyToMask(self.member, self.directory, participants, self.secrets, held)

    def _check(self, incoming: RelayedShares) -> None:
        index, senders = self.member.index, [sealed.sender for sealed in incoming.shares]
        check_subset(senders, self.opening_keys, "the senders of shares", "the neighbours in U1")
        for sealed in incoming.shares:
            if sealed.recipient != index:
                raise RemoteProtocolError(
                    "a share is for somebody else", expected=f"recipient {index}", got=sealed.recipient
                )
            check_sealed_length(sealed)
        if self.member.context.harary is None:
            check_enough(len(senders) + 1, self.member.context.min_survivors, "sites shared their secrets")
        check_reach(self.directory, index, [*senders, index], "neighbours shared their secrets")


@dataclass(frozen=True, slots=True)
class ReadyToMask:
    """Round 2: waits for the site's own vector."""

    member: Member
    directory: Directory = field(repr=False)
    participants: tuple[int, ...]
    """U2 by ascending index; with a sparse graph its part among our neighbours and us."""
    secrets: SiteSecrets
    held_shares: Mapping[int, HeldShares] = field(repr=False)
    _turn: Turn = field(default_factory=Turn, repr=False)

    @property
    def noise_keys(self) -> tuple[bytes, ...]:
        """The key of each part of the noise that our vector needs; empty where it needs none of this kind."""
        return self._following().noise_keys

    def expand_mask(self) -> "MaskExpanded":
        """Make the whole mask now, in one vector of memory, so that nothing but an addition is left after training.

        Raises:
            LocalProtocolError: the phase has moved already.
        """
        with self._turn:
            mask = expand_terms(self._terms(), self.member.context)
            return MaskExpanded(mask, self._following())

    def step(self, vector: RingVector) -> tuple["AwaitingSurvivors", MaskedInput]:
        """Mask our vector with our own mask and one for each neighbour in U2.

        Args:
            vector: (d,) in the lane of the ring, each below 2**ring_bits; it is not changed.

        Raises:
            LocalProtocolError: the vector does not fit the session, or the phase has moved already.
        """
        with self._turn:
            context = self.member.context
            check_vector(context, vector)
            masked = np.array(vector, order="C")
            apply_terms(self._terms(), masked)
            reduce_ring(masked, context.ring_bits)
            return self._following(), MaskedInput(self.member.index, masked)

    def _terms(self) -> list[MaskTerm]:
        index = self.member.index
        peers = [peer for peer in self.participants if peer != index]
        pairs = pair_terms(self.directory, index, peers, self.secrets.mask_secret_key)
        return [self_term(self.directory, index, self.secrets.self_seed), *pairs]

    def _following(self) -> "AwaitingSurvivors":
        return AwaitingSurvivors(
            self.member, self.directory, self.participants, self.held_shares, self.secrets.noise_seed
        )


@dataclass(frozen=True, slots=True)
class MaskExpanded:
    """Round 2 with the mask made: waits for the site's own vector."""

    mask: RingVector = field(repr=False)
    following: "AwaitingSurvivors"
    _turn: Turn = field(default_factory=Turn, repr=False)

    @property
    def participants(self) -> tuple[int, ...]:
        """U2 by ascending index, as `ReadyToMask` has it."""
        return self.following.participants

    @property
    def noise_keys(self) -> tuple[bytes, ...]:
        """As `ReadyToMask` has them."""
        return self.following.noise_keys

    def step(self, vector: RingVector) -> tuple["AwaitingSurvivors", MaskedInput]:
        """Add the mask to our vector; arguments and errors as of `ReadyToMask.step`. The mask becomes the message."""
        with self._turn:
            context = self.following.member.context
            check_vector(context, vector)
            np.add(self.mask, vector, out=self.mask)
            reduce_ring(self.mask, context.ring_bits)
            return self.following, MaskedInput(self.following.member.index, self.mask)


@dataclass(frozen=True, slots=True)
class AwaitingSurvivors:
    """Round 3: waits to be told who uploaded."""

    member: Member
    directory: Directory = field(repr=False)
    participants: tuple[int, ...]
    """U2 by ascending index; with a sparse graph its part among our neighbours and us."""
    held_shares: Mapping[int, HeldShares] = field(repr=False)
    noise_seed: bytes = field(default=b"", repr=False)
    _turn: Turn = field(default_factory=Turn, repr=False)

    @property
    def noise_keys(self) -> tuple[bytes, ...]:
        """As `ReadyToMask` has them."""
        return part_keys(self.member.context, self.member.index, self.noise_seed) if self.noise_seed else ()

    def step(self, incoming: SurvivorSet) -> tuple["AwaitingProof", SurvivorSignature]:
        """Check U3 and sign it. After this no other U3 is looked at.

        Raises:
            RemoteProtocolError: U3 names a site outside of U2, names one twice or out of order, or leaves us out.
            NotEnough: fewer survivors than we help to unmask, or too few of our neighbours, or drop-outs that may
                have cut the graph.
            LocalProtocolError: the phase has moved already.
        """
        with self._turn:
            self.check(incoming.survivors)
            member = self.member
            statement = survivors_statement(
                self.directory, self.participants, incoming.survivors, incoming.uploads_root
            )
            following = AwaitingProof(
                member,
                self.directory,
                self.participants,
                incoming.survivors,
                statement,
                self.held_shares,
                self._excess_seed(len(incoming.survivors)),
            )
            return following, SurvivorSignature(member.index, member.signer.sign(statement))

    def _excess_seed(self, survivors: int) -> bytes:
        """The seed of what so many survivors do not need of our noise; empty where they need all of it.

        The phases after this one know no seed before it, so that they can reveal no more than is not needed.
        """
        context, index = self.member.context, self.member.index
        excess = excess_parts(context, survivors)
        return seed_of_part(context, index, self.noise_seed, excess.start) if excess else b""

    def check(self, survivors: tuple[int, ...]) -> None:
        """Check U3 and sign nothing: `step` does it too, and this says first what is wrong with it.

        Raises:
            RemoteProtocolError, NotEnough: as `step`.
        """
        index, spec = self.member.index, self.member.context.harary
        _check_in_second_set(self.directory, index, self.participants, survivors)
        if index not in survivors:
            raise RemoteProtocolError(
                "the survivors leave this site out, though it is alive",
                expected=f"{index} among the survivors",
                got=f"{len(survivors)} others",
                fix="do not go on; wait for the next attempt",
            )
        check_enough(len(survivors), self.member.context.min_survivors, "survivors")
        check_reach(self.directory, index, survivors, "neighbours survived")
        if spec is not None and isinstance(self.directory.graph, HararyGraph):
            absent = self.member.context.size - len(self.directory.members)
            check_gaps(self.directory.graph, survivors, spec.audit_need(absent))


@dataclass(frozen=True, slots=True)
class AwaitingProof:
    """Round 4: waits for the proof that a threshold of sites were told the same U3."""

    member: Member
    directory: Directory = field(repr=False)
    participants: tuple[int, ...]
    survivors: tuple[int, ...]
    """U3, by ascending index."""
    statement: bytes = field(repr=False)
    held_shares: Mapping[int, HeldShares] = field(repr=False)
    excess_seed: bytes = field(default=b"", repr=False)
    """Of those parts of our noise that the survivors do not need."""
    _turn: Turn = field(default_factory=Turn, repr=False)

    def step(self, incoming: ConsistencyProof) -> tuple["Revealed", RevealedShares]:
        """Check the signatures on our own U3, then reveal one share per peer: of its seed if it survived, else its key.

        The signatures are those of the witnesses, of whom a threshold cannot have signed two different sets.

        Who dropped out, and how much of our noise is not needed, follow from the one U3 that we signed; nobody tells
        us.

        Raises:
            RemoteProtocolError: a signer is no survivor or no witness, stands twice or out of order.
            BadSignature, IdentityError: a signature is not of its site, or of another U3.
            NotEnough: fewer signatures than the threshold.
            LocalProtocolError: the phase has moved already.
        """
        with self._turn:
            self._check(incoming)
            survived = set(self.survivors)
            owners = sorted(self.held_shares)
            revealed = RevealedShares(
                index=self.member.index,
                self_seed_shares=tuple(
                    RevealedShare(owner, self.held_shares[owner].self_seed) for owner in owners if owner in survived
                ),
                mask_key_shares=tuple(
                    RevealedShare(owner, self.held_shares[owner].mask_key) for owner in owners if owner not in survived
                ),
                complaints=tuple(
                    owner for owner in self.participants if owner != self.member.index and owner not in self.held_shares
                ),
                excess_seed=self.excess_seed,
            )
            return Revealed(self.member.context, self.member.index, self.survivors), revealed

    def _check(self, incoming: ConsistencyProof) -> None:
        signers = [signature.index for signature in incoming.signatures]
        check_subset(signers, self.survivors, "the signers", "U3")
        check_subset(signers, self.directory.graph.witnesses, "the signers", "the witnesses")
        check_enough(len(signers), self.member.context.threshold, "sites signed the survivors")
        advertisements, verifier = self.directory.advertisements, self.member.verifier
        for signature in incoming.signatures:
            certificate = advertisements[signature.index].certificate_der
            verifier.verify(signature.index, certificate, self.statement, signature.signature)


@dataclass(frozen=True, slots=True)
class Revealed:
    """The end: this session never unmasks again, and the site holds none of its secrets any more."""

    context: SessionContext
    index: int
    survivors: tuple[int, ...]
    """U3, by ascending index."""


def _check_in_second_set(
    directory: Directory, index: int, participants: Sequence[int], survivors: Sequence[int]
) -> None:
    """Check that no survivor is outside of U2, as far as this site knows it.

    A neighbour that was left out of our U2 and yet survives shares no mask with us: the edge between us is gone, and
    nobody counts it as a drop-out.
    """
    if directory.context.harary is None:
        check_subset(survivors, participants, "the survivors", "U2")
        return
    check_subset(survivors, directory.members, "the survivors", "U1")
    near = frozenset((index, *directory.graph.neighbours(index))).intersection(survivors)
    check_subset(sorted(near), participants, "the survivors", "U2")
