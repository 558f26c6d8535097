"""A session with drop-outs made ready for the server: every message that it gets, so that its own work alone is timed.

Keys, seeds, shares, signatures and vectors are real, and the sum is checked. Two things are spared, neither of which
the server sees: sealed shares are random bytes of the right length, except those for site 0, and in the vectors of the
survivors the masks between two survivors, which cancel, are left out. Every signature is checked every time: the
verifier of the simulation would remember those that it has seen.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import ParamSpec, TypeVar

import numpy as np

from fl_core.crypto.mask_prg import combine_masks, lane_dtype, reduce_ring
from fl_core.crypto.shamir import split_secrets
from fl_core.crypto.signing import verify_signature
from fl_core.errors import IdentityError
from fl_core.secagg import client
from fl_core.secagg.beacon import make_beacon
from fl_core.secagg.commitments import commit_pair
from fl_core.secagg.context import HararySpec, SessionContext
from fl_core.secagg.directory import Directory, freeze_keys, survivors_statement
from fl_core.secagg.exchange import CollectingAdvertisements, CollectingSealedShares
from fl_core.secagg.masked_sum import CollectingMaskedInputs
from fl_core.secagg.masks import pair_term, self_term
from fl_core.secagg.messages import (
    Beacon,
    ConsistencyProof,
    KeyAdvertisement,
    KeyDirectory,
    MaskedInput,
    RelayedShares,
    RevealedShare,
    RevealedShares,
    RingVector,
    SealedShare,
    SealedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.secagg.phase import Turn
from fl_core.secagg.sealing import SEALED_SHARE_BYTES, HeldShares, agree_share_keys, seal_shares
from fl_core.simulation.identity import simulated_signers, verifier_of

T = TypeVar("T")
P = ParamSpec("P")

SURVIVOR = 0
"""The site whose own work can be timed: it survives."""


@dataclass(frozen=True, slots=True)
class ForgetfulVerifier:
    """Checks certificate and signature, each time that it is asked; implements `RosterVerifier`."""

    fingerprints: tuple[bytes, ...] = field(repr=False)

    def verify(self, index: int, certificate_der: bytes, message: bytes, signature: bytes) -> None:
        """Check that the certificate is that of `index` and signed the message."""
        if sha256(certificate_der).digest() != self.fingerprints[index]:
            raise IdentityError("a certificate is not that of the roster", expected=f"the certificate of site {index}")
        verify_signature(certificate_der, message, signature)


@dataclass(frozen=True, slots=True)
class PreparedSession:
    """All messages of one session in which the last sites drop out after they shared their secrets."""

    context: SessionContext
    verifier: ForgetfulVerifier = field(repr=False)
    directory: Directory = field(repr=False)
    beacon: Beacon | None = field(repr=False)
    shown: KeyDirectory = field(repr=False)
    """What site 0 sees of the directory."""
    sites: Mapping[int, client.CollectingDirectory] = field(repr=False)
    advertisements: tuple[KeyAdvertisement, ...] = field(repr=False)
    shares: Mapping[int, Mapping[int, HeldShares]] = field(repr=False)
    survivors: tuple[int, ...]
    inputs: Mapping[int, RingVector] = field(repr=False)
    masked: Mapping[int, RingVector] = field(repr=False)
    signatures: Mapping[int, SurvivorSignature] = field(repr=False)

    @classmethod
    def prepare(
        cls,
        size: int,
        *,
        threshold: int,
        dropped: int,
        length: int,
        ring_bits: int,
        degree: int | None = None,
    ) -> "PreparedSession":
        """Draw everything and bring every site to the end of round 3.

        Args:
            size: sites, n.
            threshold: shares that rebuild a secret, t.
            dropped: sites that drop out after they shared their secrets.
            length: coordinates of the vectors.
            ring_bits: of the ring.
            degree: neighbours of each site, k; without it the graph is complete.
        """
        secret = make_beacon(os.urandom) if degree else None
        # The audit of the sites is asked for gaps that nobody fills: degrees of the literature are not chosen for it.
        spec = HararySpec(degree, secret.commitment, (degree // 2,)) if degree and secret else None
        smallest = size - dropped if degree else threshold
        context = SessionContext(os.urandom(32), size, threshold, smallest, ring_bits, length, spec)
        signers = simulated_signers(size, os.urandom)
        verifier = ForgetfulVerifier(verifier_of(signers).fingerprints)
        begun = [client.advertise(context, i, signers[i], verifier, os.urandom) for i in range(size)]
        sites = {index: phase for index, (phase, _) in enumerate(begun)}
        advertisements = tuple(message for _, message in begun)
        keys = freeze_keys(context, advertisements)
        beacon = secret.reveal(context.binding, keys.digest) if secret else None
        directory = keys.directory(beacon)
        shown = keys.excerpt(directory, SURVIVOR, beacon) if beacon else KeyDirectory(advertisements)
        survivors = tuple(range(size - dropped))
        statement = survivors_statement(directory, range(size), survivors)
        inputs = {index: _vector(length, ring_bits) for index in survivors}
        return cls(
            context,
            verifier,
            directory,
            beacon,
            shown,
            sites,
            advertisements,
            {owner: _shares(directory, phase) for owner, phase in sites.items()},
            survivors,
            inputs,
            {index: _masked(directory, sites[index], inputs[index], len(survivors)) for index in survivors},
            {index: SurvivorSignature(index, signers[index].sign(statement)) for index in survivors},
        )

    def serve(self) -> dict[str, float]:
        """The whole work of key server and aggregator, and a check of the sum; CPU seconds by step."""
        watch = Stopwatch()
        collecting = CollectingAdvertisements(self.context, self.verifier)
        for message in self.advertisements:
            watch("advertising", collecting.receive, message)
        sharing = self._begin_sharing(collecting, watch)
        for index in self.directory.members:
            watch("sharing", sharing.receive, index, self._sealed(index))
        relay, _ = watch("sharing", sharing.close)
        aggregator = CollectingMaskedInputs(self.context)
        for index, vector in self.masked.items():
            watch("adding", aggregator.add, MaskedInput(index, vector))
        awaiting, survivors = watch("adding", aggregator.freeze, relay.participants)
        signing = watch("signing", relay.freeze, survivors)
        for signature in self.signatures.values():
            watch("signing", signing.receive, signature)
        revealing, _ = watch("signing", signing.close)
        for index in self.survivors:
            watch("revealing", revealing.receive, self._revealed(index))
        seeds = watch("rebuilding", revealing.close)
        terms = watch("agreeing", seeds.terms_of, seeds.owners)
        mask = np.empty(self.context.length, lane_dtype(self.context.ring_bits))
        for job in watch("expanding", seeds.mask_jobs, 1, terms):
            watch("expanding", job.expand, mask)
        aggregate = watch("adding", awaiting.step, mask)
        np.testing.assert_array_equal(aggregate.sum, self._expected_sum())
        return watch.seconds

    def take_part(self) -> dict[str, float]:
        """The whole work of site 0, with every signature checked; CPU seconds by step."""
        watch = Stopwatch()
        index, member = SURVIVOR, self.sites[SURVIVOR].member
        begin = partial(client.advertise, self.context, index, member.signer, self.verifier, os.urandom)
        watch("advertising", begin)
        site = replace(self.sites[index], _turn=Turn())
        collecting, _ = watch("sharing", site.step, self.shown)
        relayed = RelayedShares(tuple(self._sealed_for(index)))
        ready = watch("opening", collecting.step, relayed)
        awaiting, _ = watch("masking", ready.step, self.inputs[index])
        proving, _ = watch("signing", awaiting.step, SurvivorSet(self.survivors))
        witnesses = [i for i in self.directory.graph.witnesses if i in self.signatures]
        proof = ConsistencyProof(tuple(self.signatures[i] for i in witnesses))
        watch("revealing", proving.step, proof)
        return watch.seconds

    def _begin_sharing(self, collecting: CollectingAdvertisements, watch: "Stopwatch") -> CollectingSealedShares:
        if self.beacon is None:
            sharing, _ = watch("advertising", collecting.close)
            return sharing
        frozen = watch("advertising", collecting.freeze)
        sharing, excerpts = watch("advertising", frozen.step, self.beacon)
        for index in self.directory.members:
            watch("advertising", excerpts.__getitem__, index)
        return sharing

    def _sealed_for(self, index: int) -> list[SealedShare]:
        secret_key = self.sites[index].cipher_keys.secret_key
        keys = agree_share_keys(self.directory, index, secret_key)
        # What we open with is what the peer seals with: the same agreement, the same direction.
        return [
            seal_shares(self.directory, peer, index, keys[peer].opening, self.shares[peer][index])
            for peer in self.directory.graph.neighbours(index)
        ]

    def _sealed(self, sender: int) -> SealedShares:
        """Random bytes in the place of ciphertexts, which no server opens; the commitments are those of the shares."""
        peers = self.directory.graph.neighbours(sender)
        drawn = os.urandom(SEALED_SHARE_BYTES * len(peers))
        parts = (drawn[at : at + SEALED_SHARE_BYTES] for at in range(0, len(drawn), SEALED_SHARE_BYTES))
        shares = (
            SealedShare(sender, peer, part, self._commitments(sender, peer))
            for peer, part in zip(peers, parts, strict=True)
        )
        holds_own = sender in self.directory.holders(sender)
        return SealedShares(tuple(shares), self._commitments(sender, sender) if holds_own else b"")

    def _commitments(self, owner: int, holder: int) -> bytes:
        held = self.shares[owner][holder]
        return commit_pair(self.context, owner, holder, held.mask_key, held.self_seed)

    def _revealed(self, holder: int) -> RevealedShares:
        survived = set(self.survivors)
        near = self.directory.holders(holder)
        seeds = tuple(RevealedShare(o, self.shares[o][holder].self_seed) for o in near if o in survived)
        keys = tuple(RevealedShare(o, self.shares[o][holder].mask_key) for o in near if o not in survived)
        return RevealedShares(holder, seeds, keys)

    def _expected_sum(self) -> RingVector:
        total = np.zeros(self.context.length, np.uint64)
        for index in self.survivors:
            total += self.inputs[index]
        return (total & np.uint64((1 << self.context.ring_bits) - 1)).astype(lane_dtype(self.context.ring_bits))


class Stopwatch:
    """Adds up CPU seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        began = time.process_time()
        result = work(*arguments, **named)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        return result


def _vector(length: int, ring_bits: int) -> RingVector:
    lane = lane_dtype(ring_bits)
    drawn = np.frombuffer(os.urandom(length * lane.itemsize), lane).copy()
    reduce_ring(drawn, ring_bits)
    return drawn


def _shares(directory: Directory, site: client.CollectingDirectory) -> dict[int, HeldShares]:
    holders = directory.holders(site.member.index)
    secrets = [site.secrets.mask_secret_key, site.secrets.self_seed]
    shares = split_secrets(secrets, directory.context.threshold, holders, os.urandom)
    return {holder: HeldShares(*pair) for holder, pair in zip(holders, shares, strict=True)}


def _masked(
    directory: Directory, site: client.CollectingDirectory, vector: RingVector, first_dropped: int
) -> RingVector:
    index, secrets = site.member.index, site.secrets
    dropped = [peer for peer in directory.graph.neighbours(index) if peer >= first_dropped]
    terms = [self_term(directory, index, secrets.self_seed)]
    terms += [pair_term(directory, index, peer, secrets.mask_secret_key) for peer in dropped]
    masked = vector.copy()
    combine_masks(masked, [term.key for term in terms], [term.negative for term in terms])
    reduce_ring(masked, directory.context.ring_bits)
    return masked
