"""Merkle trees: one root, proofs for several leaves at once, and nothing that is not exactly a proof."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import LocalProtocolError, RemoteProtocolError
from fl_core.secagg.merkle import MerkleTree, hash_leaf, root_of

sizes = st.integers(1, 70)


def leaves_of(size: int) -> list[bytes]:
    return [hashlib.sha256(bytes([place])).digest() for place in range(size)]


@given(sizes, st.data())
def test_whoever_knows_some_leaves_finds_the_root(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    places = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    tree = MerkleTree(leaves)
    proof = tree.prove(places)
    assert root_of(size, {place: leaves[place] for place in places}, proof) == tree.root
    assert len(proof) <= len(places) * (size - 1).bit_length()


@given(sizes)
def test_a_list_that_is_known_needs_no_proof(size: int) -> None:
    leaves = leaves_of(size)
    assert MerkleTree(leaves).prove(range(size)) == ()
    assert root_of(size, dict(enumerate(leaves)), ()) == MerkleTree(leaves).root


@given(st.integers(2, 70), st.data())
def test_another_leaf_place_size_or_hash_gives_another_root(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    place = data.draw(st.integers(0, size - 1))
    tree = MerkleTree(leaves)
    proof = tree.prove([place])
    assert root_of(size, {place: bytes(32)}, proof) != tree.root
    assert root_of(size, {place: leaves[place]}, (bytes(32), *proof[1:])) != tree.root
    for other in range(size):
        if other != place:
            try:
                assert root_of(size, {other: leaves[place]}, proof) != tree.root
            except RemoteProtocolError:
                continue


def test_a_proof_of_another_length_is_refused() -> None:
    leaves = leaves_of(9)
    proof = MerkleTree(leaves).prove([3])
    for bent, text in [
        (proof[:-1], "too short"),
        ((*proof, bytes(32)), "too long"),
        ((), "too short"),
        ((*proof[:-1], bytes(31)), "wrong length"),
    ]:
        with pytest.raises(RemoteProtocolError, match=text):
            root_of(9, {3: leaves[3]}, bent)


def test_a_node_is_never_taken_for_a_leaf() -> None:
    """A list of two cannot pass for a list of one whose leaf is their node."""
    two = MerkleTree(leaves_of(2))
    assert hash_leaf(b"".join(leaves_of(2))) != two.root
    assert root_of(1, {0: two.root}, ()) == two.root


def test_a_tree_has_leaves() -> None:
    with pytest.raises(LocalProtocolError, match="no leaves"):
        MerkleTree([])
