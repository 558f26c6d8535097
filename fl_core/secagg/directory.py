"""U1 and its keys, as every party of one session must see them, and the checks that make a directory of advertisements.

Whatever follows is bound to the digest of the directory, the root of a Merkle tree over all advertisements: sites that
were shown different keys cannot open each other's shares, and their signatures over the survivors do not agree. With a
sparse graph a site sees few of the advertisements, and knows by the root that they are part of the same directory.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from fl_core.crypto import labels
from fl_core.crypto.agreement import check_public_key
from fl_core.errors import BadKey, LocalProtocolError, NotEnough, RemoteProtocolError
from fl_core.secagg.beacon import graph_seed
from fl_core.secagg.context import HararySpec, SessionContext, hash_indices
from fl_core.secagg.graph import Graph, complete_graph, harary_graph
from fl_core.secagg.index_sets import check_ascending, check_equal, check_subset
from fl_core.secagg.merkle import MerkleTree, hash_leaf, root_of
from fl_core.secagg.messages import Beacon, DirectoryExcerpt, KeyAdvertisement, KeyDirectory

COMMITMENT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Directory:
    """The members of U1, the advertisements that we know, who is whose neighbour, and the digest of all of it."""

    context: SessionContext
    members: tuple[int, ...]
    advertisements: Mapping[int, KeyAdvertisement]
    graph: Graph
    digest: bytes

    def holders(self, owner: int) -> tuple[int, ...]:
        """Who holds shares of a member's secrets, by ascending index."""
        return tuple(self.graph.holders(owner))


@dataclass(frozen=True, slots=True)
class FrozenKeys:
    """U1 with everybody's keys, before a sparse graph is known: what the key server has to tell apart and to prove."""

    context: SessionContext
    advertisements: tuple[KeyAdvertisement, ...]
    """Of every member, by ascending index."""
    _tree: MerkleTree = field(repr=False)

    @property
    def members(self) -> tuple[int, ...]:
        """U1, by ascending index."""
        return tuple(advertisement.index for advertisement in self.advertisements)

    @property
    def digest(self) -> bytes:
        """32 bytes that stand for U1 and its keys."""
        return directory_digest(self.context, self.members, self._tree.root)

    def directory(self, beacon: Beacon | None) -> Directory:
        """The directory, with the graph that follows from the beacon; None when the graph is complete.

        Raises:
            RemoteProtocolError: the beacon is not the one of the plan.
            BadSignature: the coordinator did not sign this directory.
            LocalProtocolError: there is a beacon and the graph is complete, or the other way round.
        """
        graph = _graph(self.context, self.members, self.digest, beacon)
        by_index = {advertisement.index: advertisement for advertisement in self.advertisements}
        return Directory(self.context, self.members, MappingProxyType(by_index), graph, self.digest)

    def excerpt(self, directory: Directory, index: int, beacon: Beacon) -> KeyDirectory:
        """What the member `index` is shown of a directory with a sparse graph."""
        shown = _shown(directory.graph, index)
        proof = self._tree.prove([bisect_left(directory.members, member) for member in shown])
        advertisements = tuple(directory.advertisements[member] for member in shown)
        return KeyDirectory(advertisements, DirectoryExcerpt(directory.members, proof, beacon))


def freeze_keys(context: SessionContext, advertisements: Sequence[KeyAdvertisement]) -> FrozenKeys:
    """Close U1 over everybody's advertisements, whose signatures were checked.

    Raises:
        RemoteProtocolError: an index is out of range, out of order or stands twice.
        BadKey: a key or commitment may not be used, or a key stands twice.
        NotEnough: there are fewer members than survivors are needed.
    """
    _check_all(context, advertisements)
    check_enough(len(advertisements), context.min_survivors, "sites advertised keys")
    return FrozenKeys(context, tuple(advertisements), MerkleTree([_leaf(context, one) for one in advertisements]))


def read_directory(context: SessionContext, index: int, incoming: KeyDirectory) -> Directory:
    """Check what the key server shows of the directory, but for the signatures of the advertisements.

    Args:
        context: the session.
        index: the member to whom it is shown.
        incoming: everybody's keys, or with a sparse graph the excerpt for this member.

    Raises:
        RemoteProtocolError: an index is out of range, out of order or stands twice, the excerpt is not the one of
            this member, or the beacon is not the one of the plan.
        BadKey: a key or commitment may not be used, or a key stands twice.
        BadSignature: the coordinator did not sign this directory.
        NotEnough: there are fewer members than survivors are needed.
    """
    excerpt = incoming.excerpt
    if (excerpt is None) != (context.harary is None):
        raise RemoteProtocolError(
            "the directory is not of the graph of the plan",
            expected="everybody's keys" if context.harary is None else "an excerpt with a beacon",
        )
    if excerpt is None:
        return freeze_keys(context, incoming.advertisements).directory(None)
    return _read_excerpt(context, index, incoming.advertisements, excerpt)


def directory_digest(context: SessionContext, members: Sequence[int], root: bytes) -> bytes:
    """The digest of a directory, 32 bytes: of the session, U1 and the root over its advertisements."""
    return labels.digest_fields(labels.DIRECTORY, context.binding, hash_indices(context, members), root)


def check_advertisement(context: SessionContext, advertisement: KeyAdvertisement) -> None:
    """Check everything about one advertisement but its signature.

    Raises:
        RemoteProtocolError: the index is not in the roster.
        BadKey: a public key or the commitment may not be used.
    """
    if not 0 <= advertisement.index < context.size:
        raise RemoteProtocolError(
            "an advertisement is of nobody in the roster",
            expected=f"index 0 to {context.size - 1}",
            got=advertisement.index,
        )
    check_public_key(advertisement.cipher_public_key)
    check_public_key(advertisement.mask_public_key)
    _check_commitment(advertisement.self_seed_commitment, COMMITMENT_BYTES)
    _check_commitment(advertisement.noise_commitment, COMMITMENT_BYTES if context.noise_tiers else 0)


def claim_keys(owners: dict[bytes, int], advertisement: KeyAdvertisement) -> None:
    """Write the keys of an advertisement into `owners`, by which each key belongs to one site and one purpose.

    Raises:
        BadKey: a key stands there already, or the site has one key for both purposes; nothing is written.
    """
    keys = (advertisement.cipher_public_key, advertisement.mask_public_key)
    for key in keys:
        if key in owners or keys[0] == keys[1]:
            raise BadKey(
                "a public key stands twice",
                expected="keys that are fresh and different for each site and purpose",
                got=f"one key of site {owners.get(key, advertisement.index)} and site {advertisement.index}",
                fix="draw a fresh key pair for each purpose in each attempt",
            )
    owners.update(dict.fromkeys(keys, advertisement.index))


def check_enough(got: int, needed: int, what: str) -> None:
    """Refuse to go on with too few.

    Raises:
        NotEnough: `got` is below `needed`.
    """
    if got < needed:
        raise NotEnough(f"too few {what}", expected=f">= {needed}", got=got, fix="run the round again")


def check_reach(directory: Directory, index: int, present: Iterable[int], what: str) -> None:
    """Refuse to go on when fewer than the threshold of those who hold a member's shares are present.

    Raises:
        NotEnough: fewer are.
    """
    here = set(present)
    reached = sum(holder in here for holder in directory.holders(index))
    check_enough(reached, directory.context.threshold, what)


def advertisement_statement(context: SessionContext, advertisement: KeyAdvertisement) -> bytes:
    """What a site signs in round 0: its keys and commitments, in this session, at this index."""
    noise = advertisement.noise_commitment
    return labels.encode_fields(
        labels.ADVERTISEMENT,
        context.binding,
        advertisement.index,
        advertisement.cipher_public_key,
        advertisement.mask_public_key,
        advertisement.self_seed_commitment,
        *((noise,) if noise else ()),
    )


def seed_commitment(context: SessionContext, index: int, self_seed: bytes) -> bytes:
    """The commitment to a self-mask seed, 32 bytes. It hides the seed, which has 256 bits of entropy."""
    return labels.digest_fields(labels.SEED_COMMITMENT, context.binding, index, self_seed)


def survivors_statement(
    directory: Directory, participants: Sequence[int], survivors: Sequence[int], uploads_root: bytes = b""
) -> bytes:
    """What a site signs in round 3: the session, the directory, U2, and the U3 and its uploads that it was told.

    With a sparse graph a site knows U2 among its neighbours only, and signs none.
    """
    context = directory.context
    known = () if context.harary else (hash_indices(context, participants),)
    return labels.encode_fields(
        labels.SURVIVORS, context.binding, directory.digest, *known, hash_indices(context, survivors), uploads_root
    )


def _read_excerpt(
    context: SessionContext, index: int, advertisements: Sequence[KeyAdvertisement], excerpt: DirectoryExcerpt
) -> Directory:
    members = excerpt.members
    check_subset(members, range(context.size), "the members of U1", "the roster")
    check_enough(len(members), context.min_survivors, "sites advertised keys")
    check_subset([index], members, "the excerpt's reader and its members", "U1")
    _check_all(context, advertisements)
    by_index = {advertisement.index: advertisement for advertisement in advertisements}
    check_subset(tuple(by_index), members, "the advertisements", "U1")
    known = {bisect_left(members, one.index): _leaf(context, one) for one in advertisements}
    digest = directory_digest(context, members, root_of(len(members), known, excerpt.proof))
    graph = _graph(context, members, digest, excerpt.beacon)
    check_equal(tuple(by_index), _shown(graph, index), "the advertisements")
    return Directory(context, members, MappingProxyType(by_index), graph, digest)


def _graph(context: SessionContext, members: Sequence[int], digest: bytes, beacon: Beacon | None) -> Graph:
    match context.harary, beacon:
        case None, None:
            return complete_graph(members)
        case HararySpec() as spec, Beacon():
            return harary_graph(members, spec.degree, graph_seed(context, digest, beacon))
        case _:
            raise LocalProtocolError("a beacon belongs to a sparse graph and to no other")


def _shown(graph: Graph, index: int) -> list[int]:
    return sorted({index, *graph.neighbours(index), *graph.witnesses})


def _check_all(context: SessionContext, advertisements: Sequence[KeyAdvertisement]) -> None:
    check_ascending([advertisement.index for advertisement in advertisements], "the advertisements")
    owners: dict[bytes, int] = {}
    for advertisement in advertisements:
        check_advertisement(context, advertisement)
        claim_keys(owners, advertisement)


def _check_commitment(commitment: bytes, size: int) -> None:
    if len(commitment) != size:
        raise BadKey("a commitment has the wrong length", expected=f"{size} bytes", got=f"{len(commitment)} bytes")


def _leaf(context: SessionContext, advertisement: KeyAdvertisement) -> bytes:
    return hash_leaf(advertisement_statement(context, advertisement))
