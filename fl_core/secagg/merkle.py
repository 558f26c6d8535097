"""Merkle trees over lists of leaves, and one proof for several leaves at once.

The tree of n > 1 leaves splits at the largest power of two below n, so that a list has one tree and one root. A proof
holds the roots of the largest subtrees in which no leaf is known, from left to right; a list that is known as a whole
needs no proof, and its root is computed by the same function.

Source: RFC 6962, section 2.1, with labels in the place of its prefix bytes.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from fl_core.crypto import labels
from fl_core.errors import LocalProtocolError, RemoteProtocolError

HASH_BYTES = 32

Span = tuple[int, int]
"""From the first place to behind the last."""


def hash_leaf(content: bytes) -> bytes:
    """The hash of a leaf, 32 bytes; it is never that of a node."""
    return labels.digest_fields(labels.DIRECTORY_LEAF, content)


class MerkleTree:
    """The tree of a whole list; proofs of any of its leaves are read off it.

    Args:
        leaves: hashes of 32 bytes, at least one.

    Raises:
        LocalProtocolError: there is no leaf.
    """

    __slots__ = ("_nodes", "_size")

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise LocalProtocolError("a tree has no leaves", expected="at least one")
        self._size = len(leaves)
        self._nodes: dict[tuple[int, int], bytes] = {}
        self._grow(leaves, 0, self._size)

    @property
    def root(self) -> bytes:
        """32 bytes that stand for the whole list."""
        return self._nodes[0, self._size]

    def prove(self, places: Sequence[int]) -> tuple[bytes, ...]:
        """What somebody who knows the leaves at these places needs to compute the root.

        Args:
            places: ascending, 0 to n - 1, at least one.
        """
        proof: list[bytes] = []
        self._collect(places, (0, len(places)), (0, self._size), proof)
        return tuple(proof)

    def _grow(self, leaves: Sequence[bytes], low: int, high: int) -> bytes:
        if high - low == 1:
            node = leaves[low]
        else:
            middle = _middle(low, high)
            node = _join(self._grow(leaves, low, middle), self._grow(leaves, middle, high))
        self._nodes[low, high] = node
        return node

    def _collect(self, places: Sequence[int], known: Span, span: Span, proof: list[bytes]) -> None:
        """Append what is unknown in one subtree; `known` is the part of `places` that lies in it."""
        (first, last), (low, high) = known, span
        if first == last:
            proof.append(self._nodes[span])
        elif last - first < high - low:
            middle = _middle(low, high)
            cut = bisect_left(places, middle, first, last)
            self._collect(places, (first, cut), (low, middle), proof)
            self._collect(places, (cut, last), (middle, high), proof)


def root_of(size: int, known: Mapping[int, bytes], proof: Sequence[bytes]) -> bytes:
    """Compute the root of a list of which some leaves are known.

    Args:
        size: length of the list, n.
        known: hashes of leaves by place, 0 to n - 1, at least one.
        proof: hashes of what is not known, as `MerkleTree.prove` gives them.

    Raises:
        RemoteProtocolError: the proof has more or fewer hashes than are needed, or one of another length.
    """
    if any(len(node) != HASH_BYTES for node in proof):
        raise RemoteProtocolError("a hash of a proof has the wrong length", expected=f"{HASH_BYTES} bytes")
    places, hashes = sorted(known), iter(proof)
    try:
        root = _root(places, (0, len(places)), (0, size), known, hashes)
    except StopIteration:
        raise RemoteProtocolError("a proof is too short", got=f"{len(proof)} hashes") from None
    if next(hashes, None) is not None:
        raise RemoteProtocolError("a proof is too long", got=f"{len(proof)} hashes")
    return root


def _root(places: Sequence[int], part: Span, span: Span, known: Mapping[int, bytes], hashes: Iterator[bytes]) -> bytes:
    (first, last), (low, high) = part, span
    if first == last:
        return next(hashes)
    if high - low == 1:
        return known[low]
    middle = _middle(low, high)
    cut = bisect_left(places, middle, first, last)
    left = _root(places, (first, cut), (low, middle), known, hashes)
    return _join(left, _root(places, (cut, last), (middle, high), known, hashes))


def _middle(low: int, high: int) -> int:
    return low + (1 << ((high - low - 1).bit_length() - 1))


def _join(left: bytes, right: bytes) -> bytes:
    return labels.digest_fields(labels.DIRECTORY_NODE, left, right)
