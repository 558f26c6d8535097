"""Unmasking on several threads: secrets are rebuilt, keys agreed and masks expanded as independent jobs."""

import asyncio
import os

import numpy as np

from fl_core.crypto.mask_prg import MASK_KEY_BYTES, RingVector, lane_dtype
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import private_codec_of
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.secagg.masks import MaskTerm
from fl_core.secagg.unmasking import CollectingReveals, RebuiltSeeds
from services.runtime.offload import offload


async def rebuild_seeds(revealing: CollectingReveals, threads: int) -> RebuiltSeeds:
    """The seed of every survivor and the mask key of every dropped site, from the shares that were revealed.

    Args:
        revealing: the phase that collected them; it is closed.
        threads: parts into which the work is cut.

    Raises:
        NotEnough: an owner has fewer right shares than the threshold.
        FalseDealing: the right shares of an owner do not rebuild what it advertised.
    """
    jobs = await offload(revealing.rebuild_jobs, threads)
    rebuilt = await asyncio.gather(*(offload(job.rebuild) for job in jobs))
    return revealing.close(rebuilt)


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


async def add_own_noise(plan: RoundPlan, vector: RingVector) -> None:
    """Add the noise of this service to a combined mask, in place, where the plan wants it; else change nothing.

    What the mask is taken off then is a noised sum: whoever takes it off never has another one.
    """
    codec = private_codec_of(plan)
    if codec is None or codec.terms.mechanism is not Mechanism.CENTRAL:
        return
    await offload(codec.add_noise, vector, os.urandom(MASK_KEY_BYTES))


async def _terms(seeds: RebuiltSeeds, threads: int) -> list[MaskTerm]:
    parts = await asyncio.gather(*(offload(_terms_of, seeds, part, threads) for part in range(threads)))
    return [term for part in parts for term in part]


def _terms_of(seeds: RebuiltSeeds, part: int, parts: int) -> list[MaskTerm]:
    # Every n-th owner, so that dropped sites, which cost most, are shared out evenly.
    return seeds.terms_of(seeds.owners[part::parts])
