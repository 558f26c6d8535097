"""From a sum to the next version of the model."""

from dataclasses import dataclass, field

import numpy as np

from fl_core.codec.packing import unpack
from fl_core.codec.tensors import Tensors, add_update, manifest_of
from fl_core.errors import BadAggregate
from fl_core.rounds.job import JobSpec
from fl_core.rounds.optimizer import OptimizerState, change
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import codec_of
from services.coordinator.aggregates import Aggregate
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord
from services.runtime.offload import offload

_STEPS = "steps"
_SLOT = "slot."


@dataclass(frozen=True, slots=True)
class NextModel:
    """The model and the optimiser's state after a round."""

    tensors: Tensors = field(repr=False)
    state: OptimizerState = field(repr=False)
    total_weight: int


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
    tensors = await models.load(base.blob_name, base.model_digest)
    state = await _load_state(models, base)
    made = await offload(_apply, spec, plan, tensors, state, aggregate)
    stem = f"models/{plan.job_id}/v{base.version + 1}-r{plan.round_id}a{plan.attempt}"
    stored = await models.store(f"{stem}.safetensors", plan.manifest, made.tensors)
    optimizer_blob = await _store_state(models, f"{stem}-optimizer.safetensors", made.state)
    record = ModelRecord(
        job_id=plan.job_id,
        version=base.version + 1,
        model_digest=stored.model_digest,
        blob_name=stored.blob_name,
        total_bytes=stored.total_bytes,
        created_at=now,
        optimizer_blob=optimizer_blob,
    )
    return record, made.total_weight


def _apply(spec: JobSpec, plan: RoundPlan, tensors: Tensors, state: OptimizerState, aggregate: Aggregate) -> NextModel:
    total = unpack(aggregate.packed, plan.length, plan.codec.ring_bits)
    decoded = codec_of(plan).decode_sum(total, len(aggregate.info.survivors))
    if decoded.total_weight != aggregate.info.total_weight:
        raise BadAggregate(
            "a sum says another weight than it holds",
            expected=decoded.total_weight,
            got=aggregate.info.total_weight,
        )
    moved, after = change(spec.optimizer, decoded.mean_update, state)
    return NextModel(add_update(tensors, moved, plan.manifest), after, decoded.total_weight)


async def _load_state(models: ModelStore, base: ModelRecord) -> OptimizerState:
    if base.optimizer_blob is None:
        return OptimizerState()
    tensors = dict(await models.load(base.optimizer_blob))
    steps = int(tensors.pop(_STEPS)[()])
    slots = {name.removeprefix(_SLOT): np.asarray(slot, np.float32) for name, slot in tensors.items()}
    return OptimizerState(steps, slots)


async def _store_state(models: ModelStore, name: str, state: OptimizerState) -> str:
    tensors: Tensors = {
        _STEPS: np.array(state.steps, np.int64),
        **{_SLOT + slot: vector for slot, vector in state.slots.items()},
    }
    return (await models.store(name, manifest_of(tensors), tensors)).blob_name
