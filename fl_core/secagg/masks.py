"""Round 2: the masks of one vector. A site adds its own and one per neighbour; the key server makes the combined mask.

All masks of a vector are added in one pass, and any part of the vector can be done alone, so that threads share out a
vector without a lock and without a second one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fl_core.crypto import labels
from fl_core.crypto.agreement import agree_each, derive_key
from fl_core.crypto.mask_prg import MASK_KEY_BYTES, combine_masks, lane_dtype, reduce_ring
from fl_core.errors import LocalProtocolError
from fl_core.secagg.context import SessionContext
from fl_core.secagg.directory import Directory
from fl_core.secagg.messages import RingVector


@dataclass(frozen=True, slots=True)
class MaskTerm:
    """One mask of a sum: the key of its keystream, and whether it is subtracted."""

    key: bytes = field(repr=False)
    negative: bool


@dataclass(frozen=True, slots=True)
class MaskJob:
    """A part of a combined mask that can be made on its own, in any thread."""

    terms: Sequence[MaskTerm] = field(repr=False)
    ring_bits: int
    start: int
    stop: int

    def expand(self, out: RingVector) -> None:
        """Write coordinates `start` to `stop` of the combined mask into `out`, the whole vector, and nothing else."""
        part = out[self.start : self.stop]
        part.fill(0)
        apply_terms(self.terms, part, self.start)
        reduce_ring(part, self.ring_bits)


def self_term(directory: Directory, index: int, self_seed: bytes) -> MaskTerm:
    """The mask that hides a site's vector even when all of its pairwise masks are known."""
    info = labels.encode_fields(labels.SELF_MASK, directory.digest, index, *_vector_fields(directory.context))
    return MaskTerm(_mask_key(directory.context, self_seed, info), negative=False)


def pair_term(directory: Directory, index: int, peer: int, secret_key: bytes) -> MaskTerm:
    """The mask that `index` shares with `peer`: the site with the larger index adds it, the other subtracts it.

    Args:
        directory: U1.
        index: the site whose vector is masked and whose mask secret key is given.
        peer: a neighbour of it.
        secret_key: mask secret key of `index`, 32 bytes.

    Raises:
        BadKey: the agreement with the peer fails.
    """
    return pair_terms(directory, index, [peer], secret_key)[0]


def pair_terms(directory: Directory, index: int, peers: Sequence[int], secret_key: bytes) -> list[MaskTerm]:
    """`pair_term` for many peers of one site, in their order; the agreements are made together."""
    return terms_of_pairs(directory, [(index, peer, secret_key) for peer in peers])


def terms_of_pairs(directory: Directory, pairs: Sequence[tuple[int, int, bytes]]) -> list[MaskTerm]:
    """`pair_term` for many pairs of a site and a peer, each with the mask secret key of the site, in their order."""
    advertisements = directory.advertisements
    secrets = agree_each(
        [secret_key for _, _, secret_key in pairs], [advertisements[peer].mask_public_key for _, peer, _ in pairs]
    )
    return [_pair_term(directory, index, peer, shared) for (index, peer, _), shared in zip(pairs, secrets, strict=True)]


def apply_terms(terms: Iterable[MaskTerm], vector: RingVector, start: int = 0) -> None:
    """Add up masks onto a vector, in place, modulo its lane.

    Args:
        terms: the masks.
        vector: (d,) in the lane of the ring.
        start: the place of vector[0] in the masks.
    """
    terms = tuple(terms)
    combine_masks(vector, [term.key for term in terms], [term.negative for term in terms], start)


def expand_terms(terms: Iterable[MaskTerm], context: SessionContext) -> RingVector:
    """The sum of masks as one vector, reduced to the ring."""
    mask = np.zeros(context.length, lane_dtype(context.ring_bits))
    apply_terms(terms, mask)
    reduce_ring(mask, context.ring_bits)
    return mask


def split_jobs(terms: Sequence[MaskTerm], context: SessionContext, parts: int) -> list[MaskJob]:
    """Cut the making of a combined mask into at most `parts` jobs over disjoint parts of the vector.

    Raises:
        LocalProtocolError: `parts` is below one.
    """
    if parts < 1:
        raise LocalProtocolError("a mask cannot be cut into no parts", expected=">= 1", got=parts)
    step = -(-context.length // parts)
    edges = [*range(0, context.length, step), context.length]
    return [MaskJob(terms, context.ring_bits, start, stop) for start, stop in pairwise(edges)]


def check_vector(context: SessionContext, vector: RingVector) -> None:
    """Refuse a vector that is not of the session's ring and length.

    Raises:
        LocalProtocolError: lane, shape or a coordinate is wrong.
    """
    lane = lane_dtype(context.ring_bits)
    if vector.dtype != lane or vector.shape != (context.length,):
        raise LocalProtocolError(
            "the vector does not fit the session",
            expected=f"({context.length},) {lane.name}",
            got=f"{vector.shape} {vector.dtype.name}",
        )
    if context.ring_bits < 8 * lane.itemsize and int(vector.max()) >> context.ring_bits:
        raise LocalProtocolError(
            "a coordinate is outside of the ring", expected=f"below 2**{context.ring_bits}", got=int(vector.max())
        )


def _pair_term(directory: Directory, index: int, peer: int, shared: bytes) -> MaskTerm:
    low, high = min(index, peer), max(index, peer)
    info = labels.encode_fields(labels.PAIR_MASK, directory.digest, low, high, *_vector_fields(directory.context))
    return MaskTerm(_mask_key(directory.context, shared, info), negative=index < peer)


def _mask_key(context: SessionContext, secret: bytes, info: bytes) -> bytes:
    return derive_key(secret, salt=context.binding, info=info, length=MASK_KEY_BYTES)


def _vector_fields(context: SessionContext) -> tuple[int, int]:
    return context.length, context.ring_bits
