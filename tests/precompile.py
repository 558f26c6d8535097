"""Compiles before the tests what many of them use, so that none of them waits for the compiler and misses a deadline.

Tests that run side by side would compile the same at the same time, each on its own, with all their clocks running.
"""

import os

import numpy as np

from fl_core.codec.kernels import COMPILED_FROM
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto.paillier.engine import best_engine
from fl_core.privacy import sampler
from fl_core.privacy.events import Noise
from fl_core.rounds.job import read_codec
from fl_core.rounds.planner import choose_codec
from services.runtime.warm_up import warm_masks, warm_models

PRESETS = ("exact32", "int16", "int8", "int4-rotated", "sparse-1pct-int8")


def precompile() -> None:
    """Do once what sites and services do; what is compiled stays on this machine."""
    warm_models()
    warm_masks()
    manifest = TensorManifest((TensorSpec("w", "float32", (COMPILED_FROM,)),))
    for name in PRESETS:
        codec = UpdateCodec(choose_codec(read_codec(name), 10, 1.0), manifest, 10, bytes(32))
        codec.encode(np.ones(COMPILED_FROM, np.float32), 1, os.urandom)
    for lane in ("<u1", "<u2", "<u4", "<u8"):
        noise = np.zeros(sampler.COMPILED_FROM, lane)
        sampler.add_noise(noise, sampler.noise_table(Noise.SKELLAM, 4.0), bytes(16))
    best_engine()
