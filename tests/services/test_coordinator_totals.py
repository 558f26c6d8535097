"""Sums of several sessions are added exactly, and each is checked by itself before it counts."""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.codec.packing import pack
from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.errors import BadAggregate, LocalProtocolError
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import codec_of
from fl_core.rounds.report import AggregateInfo
from fl_core.wire.v1 import round_pb2
from services.coordinator.aggregates import Aggregate
from services.coordinator.totals import SessionSum, open_total
from services.runtime.staging import StagingArea

MANIFEST = TensorManifest((TensorSpec("weight", "float32", (31, 7)),))
LAYERS = st.lists(st.integers(3, 9), min_size=2, max_size=5)


class PlanLike:
    """What adding needs to know about a plan."""

    def __init__(self, codec: CodecSpec, seed: bytes = b"s" * 32) -> None:
        self.codec = codec
        self.manifest = MANIFEST
        self.max_weight = 100
        self.codec_seed = seed

    @property
    def length(self) -> int:
        return codec_of(cast(RoundPlan, self)).length


@pytest.fixture(scope="module")
def area(tmp_path_factory: pytest.TempPathFactory) -> StagingArea:
    folder: Path = tmp_path_factory.mktemp("spool")
    return StagingArea(folder, 1 << 24)


async def session_sum(
    area: StagingArea, room: ExitStack, plan: Any, uploads: list[Any], *, weight: int | None = None
) -> SessionSum:
    total = np.sum(np.stack(uploads), axis=0, dtype=np.uint64).astype(uploads[0].dtype)
    packed = pack(total, plan.codec.ring_bits).tobytes()
    staged = room.enter_context(area.stage(len(packed)))
    await staged.write(packed)
    told = int(total[0]) if weight is None else weight
    info = AggregateInfo(bytes(16), tuple(range(len(uploads))), told, hashlib.sha256(packed).digest())
    return SessionSum(plan, Aggregate(info, staged, round_pb2.SignedPart()))


def uploads_of(plan: Any, sites: int, seed: int) -> list[Any]:
    draw = np.random.default_rng(seed)
    codec = codec_of(plan)
    return [
        codec.encode(draw.normal(size=MANIFEST.size).astype(np.float32), int(draw.integers(1, 101)), draw.bytes)
        for _ in range(sites)
    ]


@settings(max_examples=25, deadline=None)
@given(sizes=LAYERS, seed=st.integers(0, 2**31), bits=st.integers(8, 20))
async def test_the_total_is_the_sum_of_all_uploads_and_its_mean_the_one_weighted_mean(
    area: StagingArea, sizes: list[int], seed: int, bits: int
) -> None:
    plan: Any = PlanLike(CodecSpec(clip=1.0, bits=bits, ring_bits=24))
    parts = [uploads_of(plan, size, seed + number) for number, size in enumerate(sizes)]
    with ExitStack() as room:
        total = open_total([await session_sum(area, room, plan, part) for part in parts])
        levels = np.concatenate([total.levels.take(100), total.levels.take(MANIFEST.size - 100)])
    everybody = np.sum(np.stack([upload for part in parts for upload in part]), axis=0, dtype=np.uint64)
    header = codec_of(plan).header_length
    np.testing.assert_array_equal(levels, everybody[header:])
    assert total.sha256 == hashlib.sha256(everybody.astype("<u8").tobytes()).digest()
    assert total.decoder.survivors == sum(sizes)
    mean = codec_of(plan).decode_sum(everybody, sum(sizes)).mean_update
    assert total.decoder.decode(levels).tobytes() == mean.tobytes()


async def test_a_level_that_one_session_cannot_give_is_refused_although_the_total_could(area: StagingArea) -> None:
    plan: Any = PlanLike(CodecSpec(clip=1.0, bits=8, ring_bits=24))
    spoiled = uploads_of(plan, 3, 1)
    spoiled[0] = spoiled[0].copy()
    spoiled[0][-1] = 3 * 255 + 1
    with ExitStack() as room:
        sums = [await session_sum(area, room, plan, part) for part in (spoiled, uploads_of(plan, 9, 2))]
        total = open_total(sums)
        with pytest.raises(BadAggregate, match="fails its own check"):
            total.levels.take(MANIFEST.size)


async def test_a_session_that_says_another_weight_than_it_holds_is_refused(area: StagingArea) -> None:
    plan: Any = PlanLike(CodecSpec(clip=1.0, bits=8, ring_bits=24))
    with ExitStack() as room:
        honest = await session_sum(area, room, plan, uploads_of(plan, 3, 1))
        lying = await session_sum(area, room, plan, uploads_of(plan, 3, 2), weight=3)
        with pytest.raises(BadAggregate, match="another weight"):
            open_total([honest, lying])


@pytest.mark.parametrize(
    "other",
    [
        PlanLike(CodecSpec(clip=1.0, bits=9, ring_bits=24)),
        PlanLike(CodecSpec(clip=1.0, bits=8, ring_bits=24), seed=b"o" * 32),
    ],
)
async def test_sums_of_different_codecs_are_not_added(area: StagingArea, other: Any) -> None:
    plan: Any = PlanLike(CodecSpec(clip=1.0, bits=8, ring_bits=24))
    with ExitStack() as room:
        sums = [await session_sum(area, room, kind, uploads_of(kind, 3, 1)) for kind in (plan, other)]
        with pytest.raises(LocalProtocolError, match="different codecs"):
            open_total(sums)
