"""What a dealer commits to with every share, so that whoever reveals another share later can be named.

With its sealed shares a dealer sends the key server 32 bytes for each holder: one commitment of 16 bytes to the share
of its mask key and one to the share of its self-mask seed. A share has more than 300 bits of entropy, so that its
commitment hides it. A collision would take 2**64 work and gain nothing: the dealer could then only be blamed itself.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING

from fl_core.crypto import labels
from fl_core.errors import BadShares
from fl_core.secagg.context import SessionContext
from fl_core.secagg.inclusion import merkle_root
from fl_core.secagg.messages import SealedShares

if TYPE_CHECKING:
    from hashlib import _Hash

COMMITMENT_BYTES = 16
PAIR_BYTES = 2 * COMMITMENT_BYTES
"""Length of what a dealer commits to for one holder: both kinds of share, that of its mask key first."""

_PLACES = Struct(">II")


class ShareKind(IntEnum):
    """Which secret of its owner a share belongs to; also the place of its commitment in the pair."""

    MASK_KEY = 0
    SELF_SEED = 1


def commit_share(context: SessionContext, kind: ShareKind, owner: int, holder: int, share: bytes) -> bytes:
    """The commitment to one share, 16 bytes, bound to session, kind, owner and holder."""
    # Two integers of fixed length and a share of fixed length: the fields need no lengths in front. n**2 of these are
    # checked in a round, so that the common beginning is hashed once.
    state = _beginning(context.binding, kind).copy()
    state.update(_PLACES.pack(owner, holder) + share)
    return state.digest()[:COMMITMENT_BYTES]


def commit_pair(context: SessionContext, owner: int, holder: int, mask_key: bytes, self_seed: bytes) -> bytes:
    """The commitments to both shares of one holder, 32 bytes."""
    return commit_share(context, ShareKind.MASK_KEY, owner, holder, mask_key) + commit_share(
        context, ShareKind.SELF_SEED, owner, holder, self_seed
    )


def check_pair_length(owner: int, pair: bytes) -> None:
    """Refuse commitments of another length, before they are stored or relayed.

    Raises:
        BadShares: the length is another.
    """
    if len(pair) != PAIR_BYTES:
        raise BadShares(
            f"commitments of site {owner} have the wrong length",
            expected=f"{PAIR_BYTES} bytes",
            got=f"{len(pair)} bytes",
        )


class CommitmentBook:
    """What the dealers of U2 committed to, as the key server keeps it: 36 bytes for each pair of dealer and holder.

    Args:
        context: the session.
        dealt: what each dealer sent; the recipients ascend.
    """

    __slots__ = ("_context", "_holders", "_pairs")

    def __init__(self, context: SessionContext, dealt: Mapping[int, SealedShares]) -> None:
        self._context = context
        self._holders: dict[int, array[int]] = {}
        self._pairs: dict[int, bytes] = {}
        for dealer, sealed in dealt.items():
            pairs = [(share.recipient, share.commitments) for share in sealed.shares]
            if sealed.own_commitments:
                pairs.append((dealer, sealed.own_commitments))
            pairs.sort()
            self._holders[dealer] = array("I", (holder for holder, _ in pairs))
            self._pairs[dealer] = b"".join(pair for _, pair in pairs)

    def is_right(self, kind: ShareKind, owner: int, holder: int, share: bytes) -> bool:
        """Whether this is the share that its owner committed to for this holder."""
        return commit_share(self._context, kind, owner, holder, share) == self._of(kind, owner, holder)

    @property
    def root(self) -> bytes:
        """32 bytes that stand for what everybody committed to: one leaf for each dealer, by ascending index."""
        binding = self._context.binding
        return merkle_root(
            [
                labels.digest_fields(labels.DEALING_LEAF, binding, dealer, self._pairs[dealer])
                for dealer in sorted(self._pairs)
            ]
        )

    def _of(self, kind: ShareKind, owner: int, holder: int) -> bytes:
        start = bisect_left(self._holders[owner], holder) * PAIR_BYTES + kind * COMMITMENT_BYTES
        return self._pairs[owner][start : start + COMMITMENT_BYTES]


@lru_cache(maxsize=64)
def _beginning(binding: bytes, kind: ShareKind) -> "_Hash":
    return hashlib.sha256(labels.encode_fields(labels.SHARE_COMMITMENT, binding, int(kind)))
