"""Loads at the start of a service the compiled code that its rounds need, so that the first one is as fast as the rest.

Each function does for nothing what a round does, once in each lane; what it loads stays. A service that is told not to
(`warm_up: false`) loads with the first large round instead, and an aggregator of small or plain sums never does.
"""

import os
from importlib import import_module

import numpy as np

from fl_core.codec.kernels import COMPILED_FROM, kernels_for
from fl_core.codec.packing import packed_bytes
from fl_core.crypto import agreement_engine, mask_engine
from fl_core.crypto.agreement import agree_many, generate_key_pair
from fl_core.crypto.mask_prg import MASK_KEY_BYTES, combine_masks, lane_dtype
from fl_core.crypto.shamir import LIMBS, combine, lagrange_at_zero

BITS = (7, 15, 24)
"""Ring bits that no lane fills, one for each lane of a packed vector."""


def warm_sums() -> None:
    """What the aggregator does: unpack uploads, pack sums."""
    for bits in BITS:
        vector = np.zeros(8, lane_dtype(bits))
        packed = np.zeros(packed_bytes(len(vector), bits), np.uint8)
        kernels = kernels_for(COMPILED_FROM)
        kernels.unpack(packed, bits, vector)
        kernels.pack(vector, bits, packed)


def warm_models() -> None:
    """What the coordinator does: unpack sums and give their levels the scale of the model."""
    warm_sums()
    for bits in BITS:
        levels = np.zeros(8, lane_dtype(bits))
        kernels_for(COMPILED_FROM).dequantize_sum(levels, 0.0, 1.0, np.empty(8, np.float32))


def warm_masks() -> None:
    """What the key server does: rebuild secrets, agree on keys, make masks, pack their sum."""
    warm_sums()
    # Their module chooses them by the work at hand, and once they are loaded for every size.
    import_module("fl_core.crypto.kernels_shamir")
    combine(lagrange_at_zero(range(3)), np.zeros((3, 1, LIMBS), np.uint64))
    ours, theirs = generate_key_pair(os.urandom), generate_key_pair(os.urandom)
    agree_many(ours.secret_key, [theirs.public_key] * agreement_engine.COMPILED_FROM)
    for bits in BITS:
        combine_masks(np.zeros(8, lane_dtype(bits)), [bytes(MASK_KEY_BYTES)], [False], engine=mask_engine.best_engine())
