"""Rebuilds the secrets of owners from the right shares of their holders, and says which owners dealt false ones."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fl_core.crypto.agreement import public_key_of
from fl_core.crypto.shamir import combine, combine_each, lagrange_at_zero, lagrange_each
from fl_core.errors import BadShares
from fl_core.secagg.blame import FalseDealing
from fl_core.secagg.directory import Directory, check_enough, seed_commitment

ShareRows = Mapping[int, npt.NDArray[np.uint64]]
"""Of one holder: by owner, the share as field elements."""


def rebuild_secrets(
    directory: Directory,
    survivors: Sequence[int],
    dropped: Sequence[int],
    rows: Mapping[int, ShareRows],
    suspects: Iterable[int],
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Rebuild the seed of every survivor and the mask key of every dropped site.

    Args:
        directory: U1.
        survivors: U3.
        dropped: U2 less U3.
        rows: by holder, its right shares.
        suspects: holders that are used last, because other shares of them were wrong.

    Returns:
        The seeds and the mask keys, by owner; each is what its owner advertised.

    Raises:
        NotEnough: an owner has fewer right shares than the threshold.
        FalseDealing: the right shares of some owners rebuild something else.
    """
    secrets = _combine_all(directory, (*survivors, *dropped), rows, frozenset(suspects))
    seeds = {owner: secrets.get(owner, b"") for owner in survivors}
    keys = {owner: secrets.get(owner, b"") for owner in dropped}
    false_seeds = [owner for owner, seed in seeds.items() if not _is_seed(directory, owner, seed)]
    false_keys = [owner for owner, key in keys.items() if not _is_key(directory, owner, key)]
    if false_seeds or false_keys:
        raise FalseDealing([*false_seeds, *false_keys], "self-mask seed" if false_seeds else "mask key")
    return seeds, keys


def _combine_all(
    directory: Directory, owners: Sequence[int], rows: Mapping[int, ShareRows], suspects: frozenset[int]
) -> dict[int, bytes]:
    """One secret of each owner. Owners with the same holders share their coefficients and go together."""
    threshold = directory.context.threshold
    groups: dict[tuple[int, ...], list[int]] = {}
    for owner in owners:
        here = [holder for holder in directory.holders(owner) if holder in rows and owner in rows[holder]]
        holders = [holder for holder in here if holder not in suspects] + [one for one in here if one in suspects]
        check_enough(len(holders), threshold, f"sites revealed right shares of site {owner}")
        groups.setdefault(tuple(holders[:threshold]), []).append(owner)
    # With a sparse graph nearly every owner has holders of its own: those are done in one go.
    alone = {group[0]: holders for holders, group in groups.items() if len(group) == 1}
    secrets = _combine_alone(alone, rows)
    for shared_by, group in groups.items():
        if len(group) > 1:
            secrets.update(_combine_group(shared_by, group, rows))
    return secrets


def _combine_alone(holders_of: Mapping[int, tuple[int, ...]], rows: Mapping[int, ShareRows]) -> dict[int, bytes]:
    """One secret of each owner, by the holders that it shares with no other owner."""
    if not holders_of:
        return {}
    coefficients = lagrange_each(list(holders_of.values()))
    shares = np.array([[rows[holder][owner] for holder in holders] for owner, holders in holders_of.items()])
    try:
        return dict(zip(holders_of, combine_each(coefficients, shares), strict=True))
    except BadShares:
        each = zip(holders_of, coefficients, shares, strict=True)
        found = {owner: _combine_one(weights, own[:, np.newaxis]) for owner, weights, own in each}
        return {owner: secret for owner, secret in found.items() if secret is not None}


def _combine_group(shared_by: tuple[int, ...], group: list[int], rows: Mapping[int, ShareRows]) -> dict[int, bytes]:
    coefficients = lagrange_at_zero(shared_by)
    shares = np.stack([np.stack([rows[holder][owner] for owner in group]) for holder in shared_by])
    try:
        return dict(zip(group, combine(coefficients, shares), strict=True))
    except BadShares:
        # Some owner's shares are of no secret at all; the others must not suffer for it.
        return {
            owner: secret
            for place, owner in enumerate(group)
            if (secret := _combine_one(coefficients, shares[:, place : place + 1])) is not None
        }


def _combine_one(coefficients: npt.NDArray[np.uint64], shares: npt.NDArray[np.uint64]) -> bytes | None:
    try:
        return combine(coefficients, shares)[0]
    except BadShares:
        return None


def _is_seed(directory: Directory, owner: int, seed: bytes) -> bool:
    return seed_commitment(directory.context, owner, seed) == directory.advertisements[owner].self_seed_commitment


def _is_key(directory: Directory, owner: int, secret_key: bytes) -> bool:
    return bool(secret_key) and public_key_of(secret_key) == directory.advertisements[owner].mask_public_key
