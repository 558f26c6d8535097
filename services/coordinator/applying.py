"""From sums to the next version of the model, in parts: the model never stands in memory as a whole, and the total only
when its codec changes the order of the coordinates."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fl_core.codec.model_format import ModelFormat
from fl_core.codec.tensors import FloatVector, TensorManifest, Tensors, TensorSpec, add_update, manifest_of
from fl_core.rounds.job import JobSpec
from fl_core.rounds.optimizer import OptimizerSpec, OptimizerState, change, slot_names
from fl_core.rounds.planner import private_codec_of
from fl_core.wire.chunks import DEFAULT_CHUNK_BYTES
from services.coordinator.models import ModelStore
from services.coordinator.privacy_desk import PrivacyDesk
from services.coordinator.private_sum import PrivateTotal, open_private_total
from services.coordinator.records import ModelRecord
from services.coordinator.released import ReleasedModel
from services.coordinator.spans import load_span, store_span
from services.coordinator.totals import SessionSum, Total, open_total
from services.runtime.offload import offload

BLOCK = 1 << 16
"""Coordinates that are worked on at a time."""

_STEPS = "steps"
_SLOT = "slot."


@dataclass(frozen=True, slots=True)
class NextVersion:
    """The version that an attempt made, which nobody knows before it is committed, and the total that it came from."""

    model: ModelRecord
    total_weight: int
    aggregate_sha256: bytes


async def make_next_version(
    models: ModelStore,
    spec: JobSpec,
    base: ModelRecord,
    sums: Sequence[SessionSum],
    now: float,
    privacy: PrivacyDesk,
) -> NextVersion:
    """Apply the sums of an attempt to the model that its sites trained from, and store the result as blobs.

    Raises:
        BadAggregate: a sum fails its own check, or says another weight than it holds.
        CodecError: the new model would not be finite.
    """
    plan = sums[0].plan
    state = await _load_state(models, base)
    is_private = private_codec_of(plan) is not None
    total: Total | PrivateTotal = (
        await offload(open_private_total, sums) if is_private else await offload(open_total, sums)
    )
    exact = spec.model_format is ModelFormat.EXACT
    released = None if exact else await ReleasedModel.of(models, base, plan.manifest, spec.model_format)
    move = ModelMove(plan.manifest, spec.optimizer, state, total.means(), released)
    stem = f"models/{plan.job_id}/v{base.version + 1}-r{plan.round_id}a{plan.attempt}"
    stored = await models.receive(f"{stem}.safetensors", plan.manifest, _moved(models, base, move))
    optimizer_blob = await _store_state(models, f"{stem}-optimizer.safetensors", move.state)
    if released is not None:
        await released.store(models, stored.blob_name)
    if isinstance(total, PrivateTotal):
        await _settle_clip(total, privacy)
    elif plan.codec.adaptive:
        await store_span(models, stored.blob_name, total.decoder, await load_span(models, base))
    model = ModelRecord(
        job_id=plan.job_id,
        version=base.version + 1,
        model_digest=stored.model_digest,
        blob_name=stored.blob_name,
        total_bytes=stored.total_bytes,
        created_at=now,
        optimizer_blob=optimizer_blob,
    )
    return NextVersion(model, total.total_weight, total.sha256)


async def _settle_clip(total: PrivateTotal, privacy: PrivacyDesk) -> None:
    clip = await offload(total.next_clip)
    if clip is not None:
        await privacy.settle(total.sums[0].plan, clip)


async def _moved(models: ModelStore, base: ModelRecord, move: "ModelMove") -> AsyncIterator[bytes]:
    reader = await models.open(base.blob_name, base.model_digest)
    async for chunk in reader.chunks(DEFAULT_CHUNK_BYTES):
        yield await offload(move.feed, chunk.data)


class Means(Protocol):
    """A mean update that is read in order."""

    def take(self, count: int) -> FloatVector:
        """The next `count` coordinates, float32, model units."""


class ModelMove:
    """One step of the server's optimiser, over the bytes of a model as they pass.

    Args:
        manifest: of the model.
        optimizer: the rule.
        state: after the round before. Its vectors become those after this round, in place.
        means: the mean update of the sum.
        released: rounds the new model; None when it is released as it is.
    """

    def __init__(
        self,
        manifest: TensorManifest,
        optimizer: OptimizerSpec,
        state: OptimizerState,
        means: Means,
        released: ReleasedModel | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._before = state
        self._means = means
        self._released = released
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
        made = add_update(block, moved, TensorManifest((spec,)))[spec.name]
        if self._released is not None:
            made = self._released.take(np.asarray(block[spec.name]), np.asarray(made), place)
        return made.tobytes()


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
