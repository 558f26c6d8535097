"""Applying a sum in parts gives, bit for bit, what applying it as a whole gives."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec, add_update
from fl_core.codec.update_codec import MeanReader, UpdateCodec
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import BadAggregate, LocalProtocolError
from fl_core.rounds.optimizer import OptimizerName, OptimizerSpec, OptimizerState, change
from services.coordinator import applying
from services.coordinator.applying import ModelMove
from services.coordinator.totals import LevelReader

MANIFEST = TensorManifest(
    (
        TensorSpec("bias", "float32", (7,)),
        TensorSpec("is_frozen", "bool", (3,)),
        TensorSpec("empty", "float32", (0, 4)),
        TensorSpec("weight", "float32", (41, 11)),
        TensorSpec("half", "float16", (5,)),
        TensorSpec("scale", "float64", ()),
        TensorSpec("steps", "int64", (2,)),
    )
)
SPEC = CodecSpec(clip=0.5, bits=12, ring_bits=21)
CODEC = UpdateCodec(SPEC, MANIFEST, max_weight=100)
RULES = [
    OptimizerSpec(OptimizerName.FEDAVG),
    OptimizerSpec(OptimizerName.FEDAVG, lr=0.5, momentum=0.9),
    OptimizerSpec(OptimizerName.FEDADAM),
    OptimizerSpec(OptimizerName.FEDYOGI),
    OptimizerSpec(OptimizerName.FEDADAGRAD),
]


def some_model(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        spec.name: (draw.integers(0, 2, spec.shape) if spec.dtype == "bool" else draw.normal(size=spec.shape) * 3)
        .__array__()
        .astype(spec.dtype)
        for spec in MANIFEST.tensors
    }


def some_sum(seed: int, sites: int = 3) -> RingVector:
    draw = np.random.default_rng(seed)
    uploads = [
        CODEC.encode(draw.normal(size=MANIFEST.size).astype(np.float32) * 0.3, 10 + site, draw.bytes)
        for site in range(sites)
    ]
    total: RingVector = np.sum(uploads, axis=0, dtype=np.uint32)
    return total


def blocks_of(vector: RingVector, size: int) -> Iterator[RingVector]:
    return (vector[start : start + size] for start in range(0, len(vector), size))


def move_in_parts(
    rule: OptimizerSpec, state: OptimizerState, total: RingVector, model: bytes, chunk: int, block: int
) -> tuple[bytes, OptimizerState]:
    levels = LevelReader(blocks_of(total, block))
    move = ModelMove(MANIFEST, rule, state, MeanReader(CODEC.open_sum(levels.take(2), 3), levels.take))
    moved = b"".join(move.feed(model[start : start + chunk]) for start in range(0, len(model), chunk))
    return moved, move.state


def as_bytes(model: dict[str, np.ndarray]) -> bytes:
    return b"".join(np.ascontiguousarray(model[spec.name]).tobytes() for spec in MANIFEST.tensors)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.momentum}")
@settings(max_examples=15, deadline=None)
@given(chunk=st.integers(1, 3000), block=st.integers(1, 600), part=st.integers(1, 600))
def test_parts_give_what_the_whole_gives(rule: OptimizerSpec, chunk: int, block: int, part: int) -> None:
    model, state, in_parts = some_model(1), OptimizerState(), OptimizerState()
    stream = as_bytes(model)
    applying_block, applying.BLOCK = applying.BLOCK, part
    try:
        for round_id in (1, 2):
            total = some_sum(round_id)
            moved, state = change(rule, CODEC.decode_sum(total, 3).mean_update, state)
            model = add_update(model, moved, MANIFEST)
            stream, in_parts = move_in_parts(rule, in_parts, total, stream, chunk, block)
            assert stream == as_bytes(model)
            assert in_parts.steps == state.steps
            assert {name: slot.tobytes() for name, slot in in_parts.slots.items()} == {
                name: slot.tobytes() for name, slot in state.slots.items()
            }
    finally:
        applying.BLOCK = applying_block


def test_a_level_that_the_survivors_cannot_give_is_refused_wherever_it_stands() -> None:
    total = some_sum(1)
    total[-1] = 3 * 4096
    with pytest.raises(BadAggregate, match="fails its own check"):
        move_in_parts(RULES[0], OptimizerState(), total, as_bytes(some_model(1)), 100, 100)


def test_a_sum_that_ends_too_early_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="ends too early"):
        LevelReader(iter([np.zeros(3, np.uint32)])).take(4)
