"""Round 1: the two shares that one site seals for another, and nobody else can open or move.

Each direction has a key of its own, from a fresh agreement, bound to session, directory, sender and recipient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_core.crypto import aead, labels
from fl_core.crypto.agreement import agree_many, derive_key
from fl_core.crypto.shamir import SHARE_BYTES, parse_shares
from fl_core.errors import BadShares, CryptoError
from fl_core.secagg.commitments import check_pair_length, commit_pair
from fl_core.secagg.directory import Directory
from fl_core.secagg.messages import SealedShare

SEALED_SHARE_BYTES = 2 * SHARE_BYTES + aead.TAG_BYTES
"""Length of every sealed share: two shares and the tag."""


@dataclass(frozen=True, slots=True)
class HeldShares:
    """The shares that a site holds of one owner: of its mask secret key and of its self-mask seed."""

    mask_key: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShareKeys:
    """The keys between us and one peer: one seals what we send it, the other opens what it sends us."""

    sealing: bytes = field(repr=False)
    opening: bytes = field(repr=False)


def agree_share_keys(directory: Directory, index: int, secret_key: bytes) -> Mapping[int, ShareKeys]:
    """Agree on share keys with every neighbour.

    Args:
        directory: U1.
        index: ours.
        secret_key: our cipher secret key, 32 bytes; it is of no use afterwards.

    Raises:
        BadKey: the agreement with a neighbour fails.
    """
    peers = directory.graph.neighbours(index)
    secrets = agree_many(secret_key, [directory.advertisements[peer].cipher_public_key for peer in peers])
    return {peer: _share_keys(directory, index, peer, shared) for peer, shared in zip(peers, secrets, strict=True)}


def seal_shares(directory: Directory, sender: int, recipient: int, key: bytes, shares: HeldShares) -> SealedShare:
    """Seal the shares of `sender` for `recipient` under the one-time key of this direction."""
    plaintext = shares.mask_key + shares.self_seed
    ciphertext = aead.seal(key, plaintext, _associated_data(directory, sender, recipient))
    return SealedShare(sender, recipient, ciphertext, commit_to(directory, sender, recipient, shares))


def commit_to(directory: Directory, owner: int, holder: int, shares: HeldShares) -> bytes:
    """The commitments to the shares of one holder, 32 bytes."""
    return commit_pair(directory.context, owner, holder, shares.mask_key, shares.self_seed)


def open_shares(directory: Directory, sealed: SealedShare, key: bytes) -> HeldShares:
    """Open what a peer sealed for us, and check that it is two shares.

    Raises:
        BadShares: it does not open in this session, or holds no shares.
    """
    associated_data = _associated_data(directory, sealed.sender, sealed.recipient)
    try:
        plaintext = aead.open_sealed(key, sealed.ciphertext, associated_data)
    except CryptoError as error:
        raise BadShares(
            "sealed shares do not open",
            expected="what their sender sealed for this site in this session",
            got=f"a message of site {sealed.sender} that does not open",
            fix="wait for the next attempt; if it happens again, look at that site and at the key server",
        ) from error
    shares = HeldShares(plaintext[:SHARE_BYTES], plaintext[SHARE_BYTES:])
    parse_shares([shares.mask_key, shares.self_seed])
    return shares


def check_sealed_length(sealed: SealedShare) -> None:
    """Refuse a sealed share or commitments of another length, before they are stored or relayed.

    Raises:
        BadShares: the length is another.
    """
    check_pair_length(sealed.sender, sealed.commitments)
    if len(sealed.ciphertext) != SEALED_SHARE_BYTES:
        raise BadShares(
            f"sealed shares of site {sealed.sender} have the wrong length",
            expected=f"{SEALED_SHARE_BYTES} bytes",
            got=f"{len(sealed.ciphertext)} bytes",
        )


def _share_keys(directory: Directory, index: int, peer: int, shared: bytes) -> ShareKeys:
    return ShareKeys(
        sealing=_direction_key(directory, index, peer, shared), opening=_direction_key(directory, peer, index, shared)
    )


def _direction_key(directory: Directory, sender: int, recipient: int, shared: bytes) -> bytes:
    info = labels.encode_fields(labels.SHARE_KEY, directory.digest, sender, recipient)
    return derive_key(shared, salt=directory.context.binding, info=info, length=aead.KEY_BYTES)


def _associated_data(directory: Directory, sender: int, recipient: int) -> bytes:
    return labels.encode_fields(labels.SHARE_DATA, directory.context.binding, directory.digest, sender, recipient)
