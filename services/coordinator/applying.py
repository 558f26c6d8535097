"""From a sum to the next version of the model, in parts: the model never stands in memory as a whole, and the sum only
when its codec changes the order of the coordinates."""

from collections.abc import AsyncIterator, Iterator

import numpy as np

from fl_core.codec.tensors import TensorManifest, Tensors, TensorSpec, add_update, manifest_of
from fl_core.codec.update_codec import MeanReader, SumDecoder
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import BadAggregate, LocalProtocolError
from fl_core.rounds.job import JobSpec
from fl_core.rounds.optimizer import OptimizerSpec, OptimizerState, change, slot_names
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import codec_of
from fl_core.wire.chunks import DEFAULT_CHUNK_BYTES
from services.coordinator.aggregates import Aggregate
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord
from services.coordinator.spans import load_span, store_span
from services.runtime.offload import offload

BLOCK = 1 << 16
"""Coordinates that are worked on at a time."""

_STEPS = "steps"
_SLOT = "slot."


async def make_next_version(
    models: ModelStore, spec: JobSpec, plan: RoundPlan, base: ModelRecord, aggregate: Aggregate, now: float
) -> tuple[ModelRecord, int]:
    """Apply a sum to the model that the sites trained from, and store the result as blobs.

    Returns:
        The next version, which nobody knows before it is committed, and the total weight of the sum.

    Raises:
        BadAggregate: the sum fails its own check, or says another weight than it holds.
        CodecError: the new model would not be finite.
    """
    state = await _load_state(models, base)
    levels = LevelReader(aggregate.packed.read_blocks(plan.length, plan.codec.ring_bits))
    decoder = await offload(_open_sum, plan, aggregate, levels)
    move = ModelMove(plan.manifest, spec.optimizer, state, MeanReader(decoder, levels.take))
    stem = f"models/{plan.job_id}/v{base.version + 1}-r{plan.round_id}a{plan.attempt}"
    stored = await models.receive(f"{stem}.safetensors", plan.manifest, _moved(models, base, move))
    optimizer_blob = await _store_state(models, f"{stem}-optimizer.safetensors", move.state)
    if plan.codec.adaptive:
        await store_span(models, stored.blob_name, decoder, await load_span(models, base))
    record = ModelRecord(
        job_id=plan.job_id,
        version=base.version + 1,
        model_digest=stored.model_digest,
        blob_name=stored.blob_name,
        total_bytes=stored.total_bytes,
        created_at=now,
        optimizer_blob=optimizer_blob,
    )
    return record, decoder.total_weight


def _open_sum(plan: RoundPlan, aggregate: Aggregate, levels: "LevelReader") -> SumDecoder:
    codec = codec_of(plan)
    decoder = codec.open_sum(levels.take(codec.header_length), len(aggregate.info.survivors))
    if decoder.total_weight != aggregate.info.total_weight:
        raise BadAggregate(
            "a sum says another weight than it holds",
            expected=decoder.total_weight,
            got=aggregate.info.total_weight,
        )
    return decoder


async def _moved(models: ModelStore, base: ModelRecord, move: "ModelMove") -> AsyncIterator[bytes]:
    reader = await models.open(base.blob_name, base.model_digest)
    async for chunk in reader.chunks(DEFAULT_CHUNK_BYTES):
        yield await offload(move.feed, chunk.data)


class LevelReader:
    """Hands out the coordinates of a sum in order, as many as are asked for."""

    def __init__(self, blocks: Iterator[RingVector]) -> None:
        self._blocks = blocks
        self._held: RingVector = np.empty(0, np.uint32)

    def take(self, count: int) -> RingVector:
        """The next `count` coordinates.

        Raises:
            LocalProtocolError: there are not so many.
        """
        parts = [self._held]
        while sum(map(len, parts)) < count:
            block = next(self._blocks, None)
            if block is None:
                raise LocalProtocolError("a sum ends too early", expected=f"{count} more coordinates")
            parts.append(block)
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._held = joined[count:]
        return joined[:count]


class ModelMove:
    """One step of the server's optimiser, over the bytes of a model as they pass.

    Args:
        manifest: of the model.
        optimizer: the rule.
        state: after the round before. Its vectors become those after this round, in place.
        means: the mean update of the sum.
    """

    def __init__(
        self,
        manifest: TensorManifest,
        optimizer: OptimizerSpec,
        state: OptimizerState,
        means: MeanReader,
    ) -> None:
        self._optimizer = optimizer
        self._before = state
        self._means = means
        names = slot_names(optimizer)
        slots = {name: state.slots.get(name, np.zeros(manifest.size, np.float32)) for name in names}
        self._after = OptimizerState(state.steps + 1, slots)
        self._blocks = _blocks_of(manifest)
        self._block = next(self._blocks, None)
        self._held = bytearray()

    @property
    def state(self) -> OptimizerState:
        """The optimiser's state after this round, once the whole model has passed."""
        return self._after

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the old model; returns the bytes of the new one that are ready.

        Raises:
            BadAggregate: the sum holds a level that so many uploads cannot give.
            CodecError: the new model is not finite.
        """
        self._held += data
        ready = []
        while self._block is not None and len(self._held) >= self._block[0].nbytes:
            spec, start = self._block
            elements = bytes(memoryview(self._held)[: spec.nbytes])
            del self._held[: spec.nbytes]
            ready.append(self._move(spec, start, elements))
            self._block = next(self._blocks, None)
        return b"".join(ready)

    def _move(self, spec: TensorSpec, start: int, elements: bytes) -> bytes:
        place = slice(start, start + spec.size)
        mean = self._means.take(spec.size)
        slots = {name: slot[place] for name, slot in self._after.slots.items()} if self._before.steps else {}
        moved, after = change(self._optimizer, mean, OptimizerState(self._before.steps, slots))
        for name, slot in after.slots.items():
            self._after.slots[name][place] = slot
        block: Tensors = {spec.name: np.frombuffer(elements, spec.dtype)}
        return add_update(block, moved, TensorManifest((spec,)))[spec.name].tobytes()


def _blocks_of(manifest: TensorManifest) -> Iterator[tuple[TensorSpec, int]]:
    """Parts of tensors in order, each with its first coordinate in the flat vector."""
    first = 0
    for spec in manifest.tensors:
        for start in range(0, spec.size, BLOCK):
            count = min(BLOCK, spec.size - start)
            yield TensorSpec(spec.name, spec.dtype, (count,)), first + start
        first += spec.size


async def _load_state(models: ModelStore, base: ModelRecord) -> OptimizerState:
    if base.optimizer_blob is None:
        return OptimizerState()
    tensors = dict(await models.load(base.optimizer_blob))
    steps = int(tensors.pop(_STEPS)[()])
    slots = {name.removeprefix(_SLOT): np.array(slot, np.float32) for name, slot in tensors.items()}
    return OptimizerState(steps, slots)


async def _store_state(models: ModelStore, name: str, state: OptimizerState) -> str:
    tensors: Tensors = {
        _STEPS: np.array(state.steps, np.int64),
        **{_SLOT + slot: vector for slot, vector in state.slots.items()},
    }
    return (await models.store(name, manifest_of(tensors), tensors)).blob_name
