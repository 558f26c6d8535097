"""Makes the combined mask of a session on several threads."""

import asyncio

import numpy as np

from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.masks import MaskTerm
from fl_core.secagg.unmasking import RebuiltSeeds
from services.runtime.offload import offload


async def expand_mask(plan: RoundPlan, seeds: RebuiltSeeds, threads: int) -> RingVector:
    """The sum of all masks that are left in the sum of the survivors.

    Args:
        plan: of the session.
        seeds: as they were rebuilt from the revealed shares.
        threads: parts into which the work is cut.

    Returns:
        (plan.length,) in the lane of the ring. There is one such vector in memory, whatever the number of threads.
    """
    terms = await _terms(seeds, threads)
    mask: RingVector = np.empty(plan.length, lane_dtype(plan.codec.ring_bits))
    await asyncio.gather(*(offload(job.expand, mask) for job in seeds.mask_jobs(threads, terms)))
    return mask


async def _terms(seeds: RebuiltSeeds, threads: int) -> list[MaskTerm]:
    parts = await asyncio.gather(*(offload(_terms_of, seeds, part, threads) for part in range(threads)))
    return [term for part in parts for term in part]


def _terms_of(seeds: RebuiltSeeds, part: int, parts: int) -> list[MaskTerm]:
    # Every n-th owner, so that dropped sites, which cost most, are shared out evenly.
    return seeds.terms_of(seeds.owners[part::parts])
