"""Takes away the noise of sites that their survivors turned out not to need, before the combined mask leaves."""

import asyncio
from itertools import pairwise

import structlog

from fl_core.crypto.mask_prg import RingVector
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import private_codec_of
from fl_core.secagg.unmasking import RebuiltSeeds
from services.runtime.offload import offload

log = structlog.get_logger(__name__)


async def remove_excess(plan: RoundPlan, seeds: RebuiltSeeds, mask: RingVector, threads: int) -> None:
    """Add the noise that is not needed to a combined mask, in place: with the mask it is taken off the sum.

    A survivor that revealed no seed leaves all of its noise in the sum: more than is needed, never less.

    Args:
        plan: of the session.
        seeds: with those that the survivors revealed; nothing happens when there are none.
        mask: (plan.length,) in the lane of the ring.
        threads: parts into which the work is cut.
    """
    codec, keys = private_codec_of(plan), seeds.excess_keys()
    if codec is None or not keys:
        return
    body = mask[codec.header_length :]
    edges = [*range(0, len(body), -(-len(body) // threads)), len(body)]
    # Tables of noise are made once, before threads want them at the same time.
    await offload(lambda: codec.parts)
    parts = (offload(codec.add_parts, body[start:stop], keys, start) for start, stop in pairwise(edges))
    await asyncio.gather(*parts)
    log.info("excess_noise_removed", sites=len(keys), withheld=len(seeds.survivors) - len(keys), parts=len(keys[0]))
