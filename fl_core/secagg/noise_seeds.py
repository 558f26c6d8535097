"""The seeds of a site's noise: whoever is told one of them knows the parts from there on, and none before it.

A site adds its noise in parts, one for each of the session's tiers (`SessionContext.noise_tiers`). Each part has a seed
of its own, and each seed is the hash of the one before it. When it is known who survived, the parts of smaller tiers
are not needed: the site reveals the first seed of those to the key server, which makes that noise again and takes it
away. It can neither go back to an earlier seed nor tell anything about the noise that stays.

With its keys a site commits to the end of its chain, so that it cannot reveal another seed later without being named.
"""

from collections.abc import Sequence

from fl_core.crypto import labels
from fl_core.crypto.mask_prg import MASK_KEY_BYTES
from fl_core.errors import BadShares, PlanError
from fl_core.secagg.context import SessionContext

SEED_BYTES = 32


def parts_needed(tiers: Sequence[int], survivors: int) -> int:
    """How many parts of every survivor's noise stay: the first ones, up to the largest tier that is not above them.

    Args:
        tiers: as of `SessionContext.noise_tiers`.
        survivors: sites in the sum.

    Raises:
        PlanError: they are fewer than the last tier: no noise is enough for them.
    """
    for place, tier in enumerate(tiers):
        if tier <= survivors:
            return place + 1
    raise PlanError("there is no noise for so few survivors", expected=f">= {tiers[-1]}", got=survivors)


def excess_parts(context: SessionContext, survivors: int) -> range:
    """The parts of a survivor's noise that are not needed; empty where all of them are, or there are none.

    Raises:
        PlanError: the survivors are fewer than the session allows.
    """
    tiers = context.noise_tiers
    return range(parts_needed(tiers, survivors), len(tiers)) if tiers else range(0)


def seed_of_part(context: SessionContext, index: int, first_seed: bytes, part: int, known: int = 0) -> bytes:
    """The seed of one part of a site's noise, 32 bytes.

    Args:
        context: the session.
        index: the site.
        first_seed: the seed of the part `known`.
        part: the one that is wanted, not before `known`.
        known: the part whose seed is given.
    """
    seed = first_seed
    for place in range(known, part):
        seed = labels.digest_fields(labels.NOISE_SEED, context.binding, index, place, seed)
    return seed


def part_keys(context: SessionContext, index: int, first_seed: bytes, known: int = 0) -> tuple[bytes, ...]:
    """The keys of the parts from `known` on, 16 bytes each; arguments as of `seed_of_part`."""
    keys, seed = [], first_seed
    for place in range(known, len(context.noise_tiers)):
        keys.append(labels.digest_fields(labels.NOISE_KEY, context.binding, index, place, seed)[:MASK_KEY_BYTES])
        seed = seed_of_part(context, index, seed, place + 1, place)
    return tuple(keys)


def noise_commitment(context: SessionContext, index: int, first_seed: bytes, known: int = 0) -> bytes:
    """The commitment to a chain of seeds, 32 bytes; empty where sites have no such noise.

    It is made of the seed behind the last part, so that any seed of the chain can be checked against it.
    """
    if not context.noise_tiers:
        return b""
    end = seed_of_part(context, index, first_seed, len(context.noise_tiers), known)
    return labels.digest_fields(labels.NOISE_COMMITMENT, context.binding, index, end)


def check_seed_length(index: int, seed: bytes, wanted: bool) -> None:
    """Refuse a revealed seed of another length, one that nobody asked for, and none where one is due.

    Raises:
        BadShares: it is so.
    """
    if len(seed) != (SEED_BYTES if wanted else 0):
        raise BadShares(
            f"the noise seed of site {index} has the wrong length",
            expected=f"{SEED_BYTES if wanted else 0} bytes",
            got=f"{len(seed)} bytes",
        )
