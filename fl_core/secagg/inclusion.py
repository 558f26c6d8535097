"""The digests of the uploads that are summed, as a Merkle tree: its root is one fact for all, a path one site's proof.

The aggregator publishes the tree with the frozen survivors. A site reveals no share before it has seen that the digest
of the very bytes that it uploaded is a leaf, and the root is part of what all survivors sign.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl_core.crypto import labels
from fl_core.errors import RemoteProtocolError
from fl_core.secagg.context import SessionContext
from fl_core.secagg.messages import SurvivorSet

DIGEST_BYTES = 32

Levels = tuple[tuple[bytes, ...], ...]


@dataclass(frozen=True, slots=True)
class UploadTree:
    """The uploads of U3, by their SHA-256.

    Args:
        binding: of the session.
        digests: 32 bytes for each survivor, by its index.

    Raises:
        RemoteProtocolError: there are none.
    """

    binding: bytes
    digests: Mapping[int, bytes]
    survivors: tuple[int, ...] = field(init=False)
    """Whose uploads they are, by ascending index."""
    _levels: Levels = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.digests:
            raise RemoteProtocolError("there are no uploads", expected="one of each survivor")
        object.__setattr__(self, "survivors", tuple(sorted(self.digests)))
        leaves = tuple(upload_leaf(self.binding, index, self.digests[index]) for index in self.survivors)
        object.__setattr__(self, "_levels", _levels_of(leaves))

    @property
    def root(self) -> bytes:
        """32 bytes that stand for who uploaded what."""
        return self._levels[-1][0]

    def path(self, index: int) -> tuple[bytes, ...]:
        """The nodes that lead from the leaf of a survivor to the root.

        Raises:
            RemoteProtocolError: the site is not in the tree.
        """
        if index not in self.digests:
            raise RemoteProtocolError("a site has no upload in the sum", expected="a survivor", got=index)
        place = bisect_left(self.survivors, index)
        path = []
        for level in self._levels[:-1]:
            if place ^ 1 < len(level):
                path.append(level[place ^ 1])
            place //= 2
        return tuple(path)


def upload_leaf(binding: bytes, index: int, upload_sha256: bytes) -> bytes:
    """The leaf of one upload, bound to session and site, 32 bytes."""
    return labels.digest_fields(labels.UPLOAD_LEAF, binding, index, upload_sha256)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaves of 32 bytes, in their order; there is at least one."""
    return _levels_of(tuple(leaves))[-1][0]


def check_included(
    context: SessionContext, survivor_set: SurvivorSet, index: int, upload_sha256: bytes, path: Sequence[bytes]
) -> None:
    """Check that our own upload is among those that are summed, byte for byte.

    Args:
        context: the session.
        survivor_set: U3 and the root, as the key server tells them.
        index: ours.
        upload_sha256: of what we uploaded, 32 bytes.
        path: from our leaf to the root.

    Raises:
        RemoteProtocolError: it is not proved. We must not reveal anything.
    """
    survivors = survivor_set.survivors
    if index not in survivors:
        raise RemoteProtocolError(
            "the survivors leave this site out, though it is alive",
            expected=f"{index} among the survivors",
            got=f"{len(survivors)} others",
            fix="do not go on; wait for the next attempt",
        )
    leaf = upload_leaf(context.binding, index, upload_sha256)
    if _climb(leaf, survivors.index(index), len(survivors), path) != survivor_set.uploads_root:
        raise RemoteProtocolError(
            "our own upload is not among those that are summed",
            expected=f"a proof for the upload with SHA-256 {upload_sha256.hex()[:16]}",
            got=f"a path of {len(path)} nodes that leads elsewhere",
            fix="do not go on; the aggregator dropped or altered an upload, or the key server hides the proof",
        )


def _levels_of(leaves: tuple[bytes, ...]) -> Levels:
    levels = [leaves]
    while len(levels[-1]) > 1:
        level = levels[-1]
        pairs = [_node(level[place], level[place + 1]) for place in range(0, len(level) - 1, 2)]
        # A node without a partner goes up as it is; its place and the number of leaves are known to who checks.
        levels.append((*pairs, *level[len(pairs) * 2 :]))
    return tuple(levels)


def _climb(leaf: bytes, place: int, width: int, path: Sequence[bytes]) -> bytes | None:
    """The root to which a path leads; None when it has not the length that it must have."""
    node, steps = leaf, iter(path)
    while width > 1:
        if place ^ 1 < width:
            sibling = next(steps, None)
            if sibling is None:
                return None
            node = _node(sibling, node) if place % 2 else _node(node, sibling)
        place, width = place // 2, (width + 1) // 2
    return node if next(steps, None) is None else None


def _node(left: bytes, right: bytes) -> bytes:
    # A leaf is the hash of a labelled encoding, which begins with the length of its label and so never with this byte.
    return hashlib.sha256(b"\x01" + left + right).digest()
