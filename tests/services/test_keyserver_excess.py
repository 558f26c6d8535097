"""The key server takes away noise that is not needed: all of it, whatever the threads, and nothing else."""

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.privacy.budget import PrivacyBudget
from fl_core.rounds.plan import Aggregation, ClientId, JobId, PhaseSchedule, RosterEntry, RoundPlan, ServiceEndpoint
from fl_core.rounds.planner import private_codec_of
from fl_core.rounds.privacy_terms import Mechanism, PrivacyTerms
from services.keyserver.excess import remove_excess

PLAN = RoundPlan(
    job_id=JobId("job"),
    round_id=1,
    attempt=1,
    aggregation=Aggregation.SECAGG,
    model_version=1,
    model_digest=bytes(32),
    manifest=TensorManifest((TensorSpec("w", "float32", (900,)),)),
    codec=CodecSpec(clip=1.0, bits=16, ring_bits=24),
    threshold=7,
    min_survivors=7,
    max_dropout=0.3,
    max_corrupt=0.2,
    max_weight=1,
    chunk_bytes=1024,
    schedule=PhaseSchedule(),
    aggregator=ServiceEndpoint("aggregator", "127.0.0.1:1", b"a" * 32),
    keyserver=ServiceEndpoint("keyserver", "127.0.0.1:2", b"k" * 32),
    roster=tuple(RosterEntry(ClientId(f"site-{place}"), bytes([place]) * 32) for place in range(10)),
    privacy=PrivacyTerms(Mechanism.DISTRIBUTED, PrivacyBudget(4.0, 1e-5), 1.0, 1.0, 128, quantile=0.5),
)


@dataclass
class Rebuilt:
    """What `RebuiltSeeds` says about noise."""

    keys: list[tuple[bytes, ...]]
    survivors: tuple[int, ...] = tuple(range(10))

    def excess_keys(self) -> list[tuple[bytes, ...]]:
        return self.keys


async def _removed(plan: RoundPlan, rebuilt: Any, threads: int) -> np.ndarray:
    mask = np.full(plan.length, 5, np.uint32)
    await remove_excess(plan, rebuilt, mask, threads)
    return mask - np.uint32(5)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
async def test_any_number_of_threads_takes_the_same_noise_away(threads: int) -> None:
    codec = private_codec_of(PLAN)
    assert codec is not None
    assert PLAN.session_context().noise_tiers == (10, 9, 8, 7)
    keys = [tuple(os.urandom(16) for _ in range(3)) for _ in range(8)]
    expected = np.zeros(PLAN.length, np.uint32)
    codec.add_parts(expected[2:], keys, 0)
    seen = await _removed(PLAN, Rebuilt(keys), threads)
    np.testing.assert_array_equal(seen % (1 << 24), expected)
    assert np.count_nonzero(seen[2:]) > 900
    assert not seen[:2].any()


async def test_where_nothing_is_revealed_nothing_is_taken_away() -> None:
    central = replace(PLAN, privacy=replace(PLAN.privacy, mechanism=Mechanism.CENTRAL))
    for plan in (PLAN, central, replace(PLAN, privacy=None)):
        assert not (await _removed(plan, Rebuilt([]), 2)).any()
    assert central.session_context().noise_tiers == ()
