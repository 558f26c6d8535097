"""U1 and its keys, as every party of one session must see them, and the checks that make a directory of advertisements.

Whatever follows is bound to the digest of the directory: sites that were shown different keys cannot open each other's
shares, and their signatures over the survivors do not agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fl_core.crypto import labels
from fl_core.crypto.agreement import check_public_key
from fl_core.errors import BadKey, NotEnough, RemoteProtocolError
from fl_core.secagg.context import SessionContext, hash_indices
from fl_core.secagg.graph import Graph, Topology
from fl_core.secagg.index_sets import check_ascending
from fl_core.secagg.messages import KeyAdvertisement

COMMITMENT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Directory:
    """The members of U1, their advertisements, who is whose neighbour, and the digest of all of it."""

    context: SessionContext
    members: tuple[int, ...]
    advertisements: Mapping[int, KeyAdvertisement]
    graph: Graph
    digest: bytes

    def holders(self, owner: int) -> tuple[int, ...]:
        """Who holds shares of a member's secrets: its neighbours and itself, by ascending index."""
        return tuple(sorted((*self.graph.neighbours(owner), owner)))


def make_directory(
    context: SessionContext, advertisements: Sequence[KeyAdvertisement], topology: Topology
) -> Directory:
    """Build the directory of advertisements whose signatures were checked.

    Raises:
        RemoteProtocolError: an index is out of range, out of order or stands twice.
        BadKey: a key or commitment may not be used, or a key stands twice.
        NotEnough: there are fewer members than survivors are needed, or a member has too few neighbours.
    """
    members = tuple(advertisement.index for advertisement in advertisements)
    check_ascending(members, "the advertisements")
    owners: dict[bytes, int] = {}
    for advertisement in advertisements:
        check_advertisement(context, advertisement)
        claim_keys(owners, advertisement)
    check_enough(len(members), context.min_survivors, "sites advertised keys")
    graph = topology(members)
    by_index = {advertisement.index: advertisement for advertisement in advertisements}
    digest = _digest(context, advertisements)
    return Directory(context, members, MappingProxyType(by_index), graph, digest)


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
    if len(advertisement.self_seed_commitment) != COMMITMENT_BYTES:
        raise BadKey(
            "a commitment has the wrong length",
            expected=f"{COMMITMENT_BYTES} bytes",
            got=f"{len(advertisement.self_seed_commitment)} bytes",
        )


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
    """What a site signs in round 0: its keys and commitment, in this session, at this index."""
    return labels.encode_fields(
        labels.ADVERTISEMENT,
        context.binding,
        advertisement.index,
        advertisement.cipher_public_key,
        advertisement.mask_public_key,
        advertisement.self_seed_commitment,
    )


def seed_commitment(context: SessionContext, index: int, self_seed: bytes) -> bytes:
    """The commitment to a self-mask seed, 32 bytes. It hides the seed, which has 256 bits of entropy."""
    return labels.digest_fields(labels.SEED_COMMITMENT, context.binding, index, self_seed)


def survivors_statement(
    directory: Directory, participants: Sequence[int], survivors: Sequence[int], uploads_root: bytes = b""
) -> bytes:
    """What a site signs in round 3: the session, the directory, U2, and the U3 and its uploads that it was told."""
    context = directory.context
    return labels.encode_fields(
        labels.SURVIVORS,
        context.binding,
        directory.digest,
        hash_indices(context, participants),
        hash_indices(context, survivors),
        uploads_root,
    )


def _digest(context: SessionContext, advertisements: Iterable[KeyAdvertisement]) -> bytes:
    statements = (advertisement_statement(context, advertisement) for advertisement in advertisements)
    return labels.digest_fields(labels.DIRECTORY, context.binding, *statements)
