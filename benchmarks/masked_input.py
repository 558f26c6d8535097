"""One site with its neighbours' shares in hand, ready to make its masked input as often as it is asked."""

import os
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fl_core.codec.packing import pack
from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.secagg.client import CollectingShares
from fl_core.secagg.messages import RelayedShares
from fl_core.secagg.phase import Turn
from fl_core.simulation import stages

WEIGHT = 500
MAX_WEIGHT = 1000
CLIP = 8.0
MOST_BITS = 22


@dataclass(frozen=True, slots=True)
class MaskedInputRun:
    """The site's phase before round 2, what it is sent, and its update."""

    site: CollectingShares
    relayed: RelayedShares
    codec: UpdateCodec
    update: npt.NDArray[np.float32] = field(repr=False)

    @classmethod
    def prepare(cls, length: int, neighbours: int, ring_bits: int) -> "MaskedInputRun":
        """Bring a cohort of one site and `neighbours` others to the end of round 1."""
        bits = min(MOST_BITS, ring_bits - neighbours.bit_length())
        max_weight = min(MAX_WEIGHT, (1 << bits) - 1)
        manifest = TensorManifest((TensorSpec("model", "float32", (length,)),))
        codec = UpdateCodec(CodecSpec(CLIP, bits, ring_bits), manifest, max_weight)
        cohort = stages.make_cohort(neighbours + 1, ring_bits=ring_bits, length=1)
        context = replace(cohort.context, length=codec.length)
        shared = stages.share(stages.advertise(replace(cohort, context=context)))
        update = np.random.default_rng(1).standard_normal(length, np.float32)
        return cls(shared.sites[0], shared.relayed[0], codec, update)

    def work(self) -> npt.NDArray[np.uint8]:
        """Open the shares, clip, weigh and quantise the update, agree on all masks, add them, pack."""
        ready = replace(self.site, _turn=Turn()).step(self.relayed)
        weight = min(WEIGHT, self.codec.max_weight)
        _, masked = ready.step(self.codec.encode(self.update, weight, os.urandom))
        return pack(masked.vector, self.codec.spec.ring_bits)
