"""Rebuilds the secrets of owners from the right shares of their holders, and says which owners dealt false ones.

The work is cut by owners into jobs that know nothing of one another, for as many threads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from fl_core.crypto.agreement import public_key_of
from fl_core.crypto.shamir import LIMBS, Words, combine, combine_each, lagrange_at_zero, lagrange_each
from fl_core.errors import BadShares, LocalProtocolError
from fl_core.secagg.blame import FalseDealing
from fl_core.secagg.directory import Directory, check_enough, seed_commitment


@dataclass(frozen=True, slots=True)
class ShareRows:
    """What one holder revealed.

    Args:
        places: by owner, the row of its share.
        rows: (k, 5) the shares as field elements.
        missing: owners of which it should have revealed a share and did not, or a wrong one.
    """

    places: Mapping[int, int] = field(repr=False)
    rows: Words = field(repr=False)
    missing: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Secrets of some owners, and those of them whose right shares do not rebuild what they advertised."""

    self_seeds: Mapping[int, bytes] = field(repr=False)
    mask_keys: Mapping[int, bytes] = field(repr=False)
    false_seeds: tuple[int, ...] = ()
    false_keys: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RebuildJob:
    """The secrets of some owners. Jobs of different owners may run at a time, in threads.

    Args:
        directory: U1.
        dropped: U2 less U3: of these the mask key is rebuilt, of others the seed.
        holders_of: by owner, whose shares are used; each once, as many as the threshold.
        rows: by holder, its shares.
    """

    directory: Directory = field(repr=False)
    dropped: frozenset[int]
    holders_of: Mapping[int, tuple[int, ...]] = field(repr=False)
    rows: Mapping[int, ShareRows] = field(repr=False)

    def rebuild(self) -> Rebuilt:
        """Rebuild each secret and hold it against what its owner advertised. Takes a while: run it in a thread."""
        secrets = _combine_all(self.holders_of, self.rows)
        seeds = {owner: secrets.get(owner, b"") for owner in self.holders_of if owner not in self.dropped}
        keys = {owner: secrets.get(owner, b"") for owner in self.holders_of if owner in self.dropped}
        return Rebuilt(
            seeds,
            keys,
            tuple(owner for owner, seed in seeds.items() if not _is_seed(self.directory, owner, seed)),
            tuple(owner for owner, key in keys.items() if not _is_key(self.directory, owner, key)),
        )


def rebuild_jobs(
    directory: Directory,
    survivors: Sequence[int],
    dropped: Sequence[int],
    rows: Mapping[int, ShareRows],
    suspects: Iterable[int],
    parts: int,
) -> list[RebuildJob]:
    """Cut the rebuilding of the seed of every survivor, and of the mask key of every dropped site, into jobs.

    Args:
        directory: U1.
        survivors: U3.
        dropped: U2 less U3.
        rows: by holder, what it revealed.
        suspects: holders that are used last, because other shares of them were wrong.
        parts: at most so many jobs.

    Raises:
        NotEnough: an owner has fewer right shares than the threshold.
        LocalProtocolError: `parts` is below one.
    """
    if parts < 1:
        raise LocalProtocolError("secrets cannot be rebuilt in no parts", expected=">= 1", got=parts)
    holders_of = _choose_holders(directory, (*survivors, *dropped), rows, frozenset(suspects))
    gone, owners = frozenset(dropped), list(holders_of)
    # Every n-th owner, so that dropped sites, whose keys are checked by a curve, are shared out evenly.
    shares = ({owner: holders_of[owner] for owner in owners[part::parts]} for part in range(parts))
    return [RebuildJob(directory, gone, share, rows) for share in shares if share]


def join_rebuilt(parts: Iterable[Rebuilt]) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """The seeds and the mask keys of all jobs, by ascending owner; each is what its owner advertised.

    Raises:
        FalseDealing: the right shares of some owners rebuild something else.
    """
    parts = list(parts)
    false_seeds = sorted(owner for part in parts for owner in part.false_seeds)
    false_keys = sorted(owner for part in parts for owner in part.false_keys)
    if false_seeds or false_keys:
        raise FalseDealing([*false_seeds, *false_keys], "self-mask seed" if false_seeds else "mask key")
    seeds = sorted(item for part in parts for item in part.self_seeds.items())
    keys = sorted(item for part in parts for item in part.mask_keys.items())
    return dict(seeds), dict(keys)


def _choose_holders(
    directory: Directory, owners: Iterable[int], rows: Mapping[int, ShareRows], suspects: frozenset[int]
) -> dict[int, tuple[int, ...]]:
    """By owner, as many holders of a right share as the threshold asks for."""
    threshold, chosen = directory.context.threshold, dict[int, tuple[int, ...]]()
    incomplete = [holder for holder, own in rows.items() if own.missing]
    question, holders = None, list[int]()
    for owner in owners:
        near, lacking = directory.holders(owner), [one for one in incomplete if owner in rows[one].missing]
        if (near, lacking) != question:
            # In a complete graph all owners have the same holders, unless some of these lied.
            question, holders = (near, lacking), _usable(near, lacking, rows, suspects)
        check_enough(len(holders), threshold, f"sites revealed right shares of site {owner}")
        chosen[owner] = tuple(holders[:threshold])
    return chosen


def _usable(
    near: Iterable[int], lacking: Sequence[int], rows: Mapping[int, ShareRows], suspects: frozenset[int]
) -> list[int]:
    here = [holder for holder in near if holder in rows and holder not in lacking]
    return [holder for holder in here if holder not in suspects] + [one for one in here if one in suspects]


def _combine_all(holders_of: Mapping[int, tuple[int, ...]], rows: Mapping[int, ShareRows]) -> dict[int, bytes]:
    """One secret of each owner. Owners with the same holders share their coefficients and go together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for owner, holders in holders_of.items():
        groups.setdefault(holders, []).append(owner)
    # With a sparse graph nearly every owner has holders of its own: those are done in one go.
    secrets = _combine_alone({group[0]: holders for holders, group in groups.items() if len(group) == 1}, rows)
    for shared_by, group in groups.items():
        if len(group) > 1:
            secrets.update(_combine_group(shared_by, group, rows))
    return secrets


def _combine_alone(holders_of: Mapping[int, tuple[int, ...]], rows: Mapping[int, ShareRows]) -> dict[int, bytes]:
    """One secret of each owner, by the holders that it shares with no other owner."""
    if not holders_of:
        return {}
    coefficients = lagrange_each(list(holders_of.values()))
    shares = _shares_alone(holders_of, rows)
    try:
        return dict(zip(holders_of, combine_each(coefficients, shares), strict=True))
    except BadShares:
        each = zip(holders_of, coefficients, shares, strict=True)
        found = {owner: _combine_one(weights, own[:, np.newaxis]) for owner, weights, own in each}
        return {owner: secret for owner, secret in found.items() if secret is not None}


def _combine_group(shared_by: tuple[int, ...], group: list[int], rows: Mapping[int, ShareRows]) -> dict[int, bytes]:
    coefficients = lagrange_at_zero(shared_by)
    shares = _shares_of_group(shared_by, group, rows)
    try:
        return dict(zip(group, combine(coefficients, shares), strict=True))
    except BadShares:
        # Some owner's shares are of no secret at all; the others must not suffer for it.
        return {
            owner: secret
            for place, owner in enumerate(group)
            if (secret := _combine_one(coefficients, shares[:, place : place + 1])) is not None
        }


def _shares_alone(holders_of: Mapping[int, tuple[int, ...]], rows: Mapping[int, ShareRows]) -> Words:
    """(g, m, 5) the shares of each owner, in the order of its holders."""
    holders = sorted({holder for chosen in holders_of.values() for holder in chosen})
    starts = dict(zip(holders, accumulate((len(rows[holder].rows) for holder in holders), initial=0), strict=False))
    joined = np.concatenate([rows[holder].rows for holder in holders])
    at = [[starts[holder] + rows[holder].places[owner] for holder in chosen] for owner, chosen in holders_of.items()]
    shares: Words = joined[np.array(at)]
    return shares


def _shares_of_group(shared_by: Sequence[int], group: Sequence[int], rows: Mapping[int, ShareRows]) -> Words:
    """(m, k, 5) the shares of each holder, in the order of the owners."""
    shares: Words = np.empty((len(shared_by), len(group), LIMBS), np.uint64)
    places: Mapping[int, int] = {}
    at = np.empty(0, np.intp)
    for number, holder in enumerate(shared_by):
        own = rows[holder]
        if own.places is not places:
            # In a complete graph everybody reveals in the same order, which is looked up once.
            places, at = own.places, np.array([own.places[owner] for owner in group])
        shares[number] = own.rows[at]
    return shares


def _combine_one(coefficients: Words, shares: Words) -> bytes | None:
    try:
        return combine(coefficients, shares)[0]
    except BadShares:
        return None


def _is_seed(directory: Directory, owner: int, seed: bytes) -> bool:
    return seed_commitment(directory.context, owner, seed) == directory.advertisements[owner].self_seed_commitment


def _is_key(directory: Directory, owner: int, secret_key: bytes) -> bool:
    return bool(secret_key) and public_key_of(secret_key) == directory.advertisements[owner].mask_public_key
