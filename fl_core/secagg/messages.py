"""The messages of secure aggregation, as values. Sites are named by their index in the roster.

Source: Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning, figure 4.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

RingVector = npt.NDArray[np.unsignedinteger]
"""(d,) unsigned integers below 2**ring_bits, in the lane of the ring: uint8, uint16, uint32 or uint64."""


@dataclass(frozen=True, slots=True)
class KeyAdvertisement:
    """Round 0, site to key server: two X25519 public keys and the commitment to the self-mask seed, signed.

    Where sites add noise in parts also the commitment to the seeds of that noise; else it is empty.
    """

    index: int
    cipher_public_key: bytes
    mask_public_key: bytes
    self_seed_commitment: bytes
    certificate_der: bytes
    signature: bytes
    noise_commitment: bytes = b""


@dataclass(frozen=True, slots=True)
class Beacon:
    """Round 0 of a sparse graph, coordinator to key server to U1: what the coordinator committed to in the plan, and
    its signature over the one directory for which it was revealed.
    """

    value: bytes
    verify_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class DirectoryExcerpt:
    """What a site needs beside some of the advertisements to know the whole directory by its digest, and the graph."""

    members: tuple[int, ...]
    """U1, by ascending index."""
    proof: tuple[bytes, ...]
    """Hashes of the advertisements that are left out, as of `fl_core.secagg.merkle`."""
    beacon: Beacon


@dataclass(frozen=True, slots=True)
class KeyDirectory:
    """Round 0, key server to U1: advertisements by ascending index.

    With a complete graph everybody's, and no excerpt. With a sparse one those of the site itself, its neighbours and
    the witnesses.
    """

    advertisements: tuple[KeyAdvertisement, ...]
    excerpt: DirectoryExcerpt | None = None


@dataclass(frozen=True, slots=True)
class SealedShare:
    """Round 1: the shares of one sender for one recipient, encrypted and authenticated, and commitments to them."""

    sender: int
    recipient: int
    ciphertext: bytes
    commitments: bytes


@dataclass(frozen=True, slots=True)
class SealedShares:
    """Round 1, site to key server: one for every neighbour, and commitments to the shares that the site keeps.

    With a sparse graph a site keeps none of its own, and `own_commitments` is empty.
    """

    shares: tuple[SealedShare, ...]
    own_commitments: bytes


@dataclass(frozen=True, slots=True)
class RelayedShares:
    """Round 1, key server to one site: what each neighbour in U2 sealed for it."""

    shares: tuple[SealedShare, ...]


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """Round 2, site to aggregator: the vector under its masks."""

    index: int
    vector: RingVector = field(repr=False)


@dataclass(frozen=True, slots=True)
class SurvivorSet:
    """Round 3, key server to U3: who uploaded, by ascending index, and the root over the digests of their uploads."""

    survivors: tuple[int, ...]
    uploads_root: bytes = b""


@dataclass(frozen=True, slots=True)
class SurvivorSignature:
    """Round 3, site to key server: a signature over the context, U1, U2 and the U3 that it was told."""

    index: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """Round 3, key server to U4: the signatures of the witnesses in U4, by ascending index."""

    signatures: tuple[SurvivorSignature, ...]


@dataclass(frozen=True, slots=True)
class RevealedShare:
    """A share of one secret of `owner`."""

    owner: int
    share: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RevealedShares:
    """Round 4, site to key server: for each neighbour in U2 exactly one kind of share, or a complaint that it has
    none.

    Where sites add noise in parts also the seed of those parts of the site's own noise that U3 does not need; empty
    where it needs all of them.
    """

    index: int
    self_seed_shares: tuple[RevealedShare, ...]
    mask_key_shares: tuple[RevealedShare, ...]
    complaints: tuple[int, ...] = ()
    excess_seed: bytes = field(default=b"", repr=False)
