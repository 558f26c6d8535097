"""Loads in one process what rounds of a size need: compiled kernels are part of a start, and not of a round."""

import os
from importlib import import_module

import numpy as np

from fl_core.codec.packing import pack
from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto.agreement import agree_many, generate_key_pair
from fl_core.crypto.agreement_engine import COMPILED_FROM
from fl_core.crypto.mask_prg import combine_masks, reduce_ring
from fl_core.crypto.shamir import split_secrets
from fl_core.secagg.profiles import default_threshold


def warm_up(parameters: int, sites: int, spec: CodecSpec) -> None:
    """Encode, mask and pack one vector, and share one secret, as a site of such a round does."""
    codec = UpdateCodec(spec, TensorManifest((TensorSpec("parameters", "float32", (parameters,)),)), max_weight=1)
    vector = codec.encode(np.zeros(parameters, np.float32), 1, os.urandom)
    combine_masks(vector, [os.urandom(16) for _ in range(sites)], [False] * sites)
    reduce_ring(vector, spec.ring_bits)
    pack(vector, spec.ring_bits)
    # Shares are split and keys agreed on for all sites of this process, often enough for the compiled code to pay.
    import_module("fl_core.crypto.kernels_shamir")
    split_secrets([os.urandom(32)], default_threshold(sites), range(sites), os.urandom)
    ours, theirs = generate_key_pair(os.urandom), generate_key_pair(os.urandom)
    agree_many(ours.secret_key, [theirs.public_key] * COMPILED_FROM)
