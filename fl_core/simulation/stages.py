"""A cohort of honest sites and its servers, brought to one stage of a session after another.

Tests and benchmarks take over from a stage: they put a false message in, or measure what comes next. Each function
takes the phases of the stage before, which are used up by it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256

import numpy as np

from fl_core.crypto.mask_prg import lane_dtype
from fl_core.crypto.signing import CertificateSigner
from fl_core.secagg import client
from fl_core.secagg.beacon import SecretBeacon, make_beacon
from fl_core.secagg.context import Entropy, HararySpec, SessionContext
from fl_core.secagg.exchange import CollectingAdvertisements, CollectingSealedShares, Excerpts
from fl_core.secagg.inclusion import UploadTree, check_included
from fl_core.secagg.masked_sum import AwaitingMask, CollectingMaskedInputs
from fl_core.secagg.messages import (
    ConsistencyProof,
    KeyDirectory,
    MaskedInput,
    RelayedShares,
    RingVector,
    SurvivorSet,
)
from fl_core.secagg.profiles import default_threshold
from fl_core.secagg.unmasking import CollectingReveals, SharesRelayed
from fl_core.simulation.entropy import seeded_entropy
from fl_core.simulation.identity import FingerprintVerifier, simulated_signers, verifier_of


@dataclass(frozen=True, slots=True)
class Sparse:
    """The numbers of a sparse graph, as `HararySpec` has them. A test chooses smaller ones than are safe."""

    degree: int
    audit_needs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cohort:
    """A session's context, the identities of its sites and their vectors."""

    context: SessionContext
    signers: Sequence[CertificateSigner] = field(repr=False)
    verifier: FingerprintVerifier = field(repr=False)
    entropy: Entropy = field(repr=False)
    vectors: Sequence[RingVector] = field(repr=False)
    beacon: SecretBeacon | None = field(default=None, repr=False)
    """What the coordinator of a cohort with a sparse graph keeps."""

    def sum_of(self, indices: Collection[int]) -> RingVector:
        """The sum of these sites' vectors in the ring: what an honest session must give."""
        total = np.zeros(self.context.length, np.uint64)
        for index in indices:
            total += self.vectors[index].astype(np.uint64)
        ring = np.uint64((1 << self.context.ring_bits) - 1)
        return (total & ring).astype(lane_dtype(self.context.ring_bits))


@dataclass(frozen=True, slots=True)
class Advertised:
    """After round 0."""

    cohort: Cohort
    sites: dict[int, client.CollectingDirectory]
    server: CollectingSealedShares
    directory: KeyDirectory
    """What everybody is shown; with a sparse graph what the first site is shown."""
    excerpts: Excerpts | None = None
    """What each site is shown of a sparse graph."""

    def directory_of(self, index: int) -> KeyDirectory:
        """What this site is shown."""
        return self.directory if self.excerpts is None else self.excerpts[index]


@dataclass(frozen=True, slots=True)
class Shared:
    """After round 1."""

    cohort: Cohort
    sites: dict[int, client.CollectingShares]
    server: SharesRelayed
    relayed: dict[int, RelayedShares]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """After round 2, with the survivors frozen."""

    cohort: Cohort
    sites: dict[int, client.AwaitingSurvivors]
    server: SharesRelayed
    aggregation: AwaitingMask
    uploads: dict[int, MaskedInput] = field(repr=False)
    survivor_set: SurvivorSet
    tree: UploadTree = field(repr=False)
    """What the aggregator states about the uploads."""


@dataclass(frozen=True, slots=True)
class Signed:
    """After round 3."""

    cohort: Cohort
    sites: dict[int, client.AwaitingProof]
    server: CollectingReveals
    aggregation: AwaitingMask
    proof: ConsistencyProof


def make_cohort(
    size: int,
    *,
    seed: int = 1,
    attempt: int = 1,
    threshold: int | None = None,
    min_survivors: int | None = None,
    ring_bits: int = 32,
    length: int = 6,
    sparse: Sparse | None = None,
    noise_tiers: tuple[int, ...] = (),
) -> Cohort:
    """A cohort with vectors drawn from the whole ring. The same seed gives the same identities in every attempt."""
    signers = _signers(size, seed)
    needed = default_threshold(size) if threshold is None else threshold
    binding = seed.to_bytes(16, "big") + attempt.to_bytes(16, "big")
    smallest = needed if min_survivors is None else min_survivors
    fresh = seeded_entropy(seed * 1_000 + attempt)
    beacon, spec = None, None
    if sparse is not None:
        beacon = make_beacon(fresh)
        spec = HararySpec(sparse.degree, beacon.commitment, sparse.audit_needs)
    context = SessionContext(binding, size, needed, smallest, ring_bits, length, spec, noise_tiers)
    lane, ring = lane_dtype(ring_bits), (1 << ring_bits) - 1
    drawn = np.frombuffer(fresh(8 * size * length), "<u8").reshape(size, length) & np.uint64(ring)
    return Cohort(context, signers, verifier_of(signers), fresh, [row.astype(lane) for row in drawn], beacon)


@lru_cache(maxsize=64)
def _signers(size: int, seed: int) -> tuple[CertificateSigner, ...]:
    # An ECDSA signature is random, and so a certificate made again from the same key is another certificate.
    return tuple(simulated_signers(size, seeded_entropy(seed)))


def advertise(cohort: Cohort, indices: Collection[int] | None = None) -> Advertised:
    """Round 0 of these sites, of all when none are given."""
    server = CollectingAdvertisements(cohort.context, cohort.verifier)
    sites = {}
    for index in range(cohort.context.size) if indices is None else indices:
        signer = cohort.signers[index]
        sites[index], message = client.advertise(cohort.context, index, signer, cohort.verifier, cohort.entropy)
        server.receive(message)
    if cohort.beacon is None:
        return Advertised(cohort, sites, *server.close())
    frozen = server.freeze()
    beacon = cohort.beacon.reveal(cohort.context.binding, frozen.digest)
    sharing, excerpts = frozen.step(beacon)
    return Advertised(cohort, sites, sharing, excerpts[next(iter(sites))], excerpts)


def share(before: Advertised, indices: Collection[int] | None = None) -> Shared:
    """Round 1 of these sites, of all members of U1 when none are given."""
    sites = {}
    for index in before.sites if indices is None else indices:
        sites[index], message = before.sites[index].step(before.directory_of(index))
        before.server.receive(index, message)
    return Shared(before.cohort, sites, *before.server.close())


def upload(
    before: Shared, indices: Collection[int] | None = None, noised: Callable[..., RingVector] | None = None
) -> Uploaded:
    """Round 2 of these sites, of all members of U2 when none are given.

    Args:
        before: the stage before.
        indices: of the sites.
        noised: makes the vector that a site masks of its own vector and the keys of its noise.
    """
    aggregation = CollectingMaskedInputs(before.cohort.context)
    sites, uploads = {}, {}
    for index in before.sites if indices is None else indices:
        ready = before.sites[index].step(before.relayed[index])
        vector = before.cohort.vectors[index]
        vector = vector if noised is None else noised(vector, ready.noise_keys)
        sites[index], uploads[index] = ready.step(vector)
        aggregation.add(uploads[index])
    awaiting, survivor_set = aggregation.freeze(before.server.participants)
    digests = {index: upload_sha256(uploads[index]) for index in survivor_set.survivors}
    tree = UploadTree(before.cohort.context.binding, digests)
    survivor_set = replace(survivor_set, uploads_root=tree.root)
    return Uploaded(before.cohort, sites, before.server, awaiting, uploads, survivor_set, tree)


def upload_sha256(masked: MaskedInput) -> bytes:
    """SHA-256 of an upload; here of the vector in its lane, which stands for the packed bytes."""
    return sha256(masked.vector.tobytes()).digest()


def sign(before: Uploaded, indices: Collection[int] | None = None) -> Signed:
    """Round 3 of these sites, of all survivors when none are given."""
    signatures = before.server.freeze(before.survivor_set)
    sites = {}
    for index in before.sites if indices is None else indices:
        own, path = upload_sha256(before.uploads[index]), before.tree.path(index)
        check_included(before.cohort.context, before.survivor_set, index, own, path)
        sites[index], message = before.sites[index].step(before.survivor_set)
        signatures.receive(message)
    server, proof = signatures.close()
    return Signed(before.cohort, sites, server, before.aggregation, proof)


def reveal(before: Signed, indices: Collection[int] | None = None) -> RingVector:
    """Round 4 of these sites, of all signers when none are given; the sum in the clear."""
    for index in before.sites if indices is None else indices:
        _, message = before.sites[index].step(before.proof)
        before.server.receive(message)
    return before.aggregation.step(before.server.close().combined_mask()).sum
