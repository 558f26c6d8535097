"""Which coordinates travel when not all do: the same for every site, from the round's public seed, so no index travels.

A random support takes one coordinate of each of k strata of equal size: every coordinate has the same chance, up to the
rounding of the strata, the places come out in order, and they spread over the whole model. A block support takes blocks
of 64 neighbours in the same way, which suits caches better; the odd end of a model, shorter than a block, always
travels.

Source: Konecny et al. 2016, Federated Learning: Strategies for Improving Communication Efficiency, random masks.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fl_core.codec.spec import SUPPORT_BLOCK, CodecSpec, Selection
from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import generate_mask

Places = npt.NDArray[np.int64]
"""(k,) int64, ascending, distinct: coordinates of the flat vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """The coordinates that travel, and how rarely each does.

    Args:
        places: (k,).
        rarity: (k,) float32, >= 1: one over the chance that each place had.
    """

    places: Places = field(repr=False)
    rarity: FloatVector = field(repr=False)


def shared_support(spec: CodecSpec, size: int, key: bytes) -> Support:
    """The support of a round.

    Args:
        spec: its selection is random or blocks.
        size: coordinates to select from.
        key: 16 bytes, public.
    """
    if spec.selection is Selection.RANDOM or size < SUPPORT_BLOCK:
        return _strata(size, spec.kept(size), key)
    whole = size // SUPPORT_BLOCK
    rest = np.arange(whole * SUPPORT_BLOCK, size)
    blocks = _strata(whole, (spec.kept(size) - len(rest)) // SUPPORT_BLOCK, key)
    inside = np.arange(SUPPORT_BLOCK)
    places = (blocks.places[:, None] * SUPPORT_BLOCK + inside).reshape(-1)
    rarity = np.repeat(blocks.rarity, SUPPORT_BLOCK)
    return Support(np.concatenate((places, rest)), np.concatenate((rarity, np.ones(len(rest), np.float32))))


def _strata(size: int, count: int, key: bytes) -> Support:
    """One of each of `count` strata of `size` places."""
    # From quotient and remainder, so that no product reaches 2**63 while there are fewer than 2**31 strata.
    quotient, remainder = divmod(size, max(count, 1))
    strata = np.arange(count + 1, dtype=np.int64)
    bounds = strata * quotient + strata * remainder // max(count, 1)
    widths = np.diff(bounds)
    # A 64-bit word modulo a width is uniform up to width / 2**64.
    words = generate_mask(key, count, 64)
    return Support(bounds[:-1] + (words % widths.astype(np.uint64)).astype(np.int64), widths.astype(np.float32))
