"""Error feedback: what of an update did not travel waits on the site's disk, and joins the next update.

A rest goes through three places. It is `encoded` with the upload that leaves it over; `delivered` once the aggregator
has that upload, from when it is in the sum; and `kept` once the round is known to be committed. A round that fails
leaves what was kept before as it was. When the site never heard how a round ended, the next invitation of the job says
it: to a later round, and the delivered rest counts; to the same round again, and it does not.

A site that was away keeps its rest, and it fades: each round of the job, also one without the site, multiplies it by
the codec's feedback, because it belongs to a model that the others have moved on from. A rest tells about the data that
it came from, so it is sealed on the disk as a trained update is.
"""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import structlog

from client_sdk.spool import SPOOL_NAME, UpdateSpool
from client_sdk.trained import Task, TrainedUpdate
from fl_core.codec.tensors import FloatVector
from fl_core.codec.update_codec import Entropy
from fl_core.crypto.mask_prg import RingVector
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import codec_of

log = structlog.get_logger(__name__)

FOLDER_NAME = "feedback"
_KEPT, _ENCODED, _DELIVERED = "kept", "encoded", "delivered"


@dataclass(frozen=True, slots=True)
class Feedback:
    """The rests of all jobs, in the state folder of the site.

    Args:
        state_dir: of this site alone.
        key: 32 bytes that nobody but this site can derive.
    """

    state_dir: Path
    key: bytes = field(repr=False)

    def encode(self, plan: RoundPlan, update: FloatVector, weight: int, entropy: Entropy) -> RingVector:
        """Encode an update, and with a codec that asks for it the rest of the rounds before.

        Args:
            plan: of the attempt.
            update: (d,) float32, model units.
            weight: samples.
            entropy: seed of the rounding.

        Returns:
            (plan.length,) in the lane of ring_bits.

        Raises:
            CodecError: as `UpdateCodec.encode`; then nothing is changed.
        """
        codec = codec_of(plan)
        if not plan.codec.feedback:
            return codec.encode(update, weight, entropy)
        self._settle_by(plan)
        rest = self._kept(plan)
        whole = update if rest is None else update + rest
        upload = codec.encode(whole, weight, entropy)
        self._save(plan, codec.rest_of(whole, upload))
        return upload

    def delivered(self, plan: RoundPlan) -> None:
        """The aggregator has the upload of this attempt."""
        if plan.codec.feedback:
            name = _name(plan.round_id, plan.attempt)
            folder = self._folder(plan.job_id)
            _move(folder / _ENCODED / name, folder / _DELIVERED / name)

    def settle(self, job_id: str, round_id: int, attempt: int, committed: bool) -> None:
        """An attempt ended, and how is known."""
        folder = self._folder(job_id)
        delivered = folder / _DELIVERED / _name(round_id, attempt)
        if committed:
            _move(delivered, folder / _KEPT)
        _remove(delivered)

    def forget(self, job_id: str) -> None:
        """A job is over: let go of all that belongs to it."""
        _remove(self._folder(job_id))

    def _settle_by(self, plan: RoundPlan) -> None:
        """What an invitation says about the attempts before it."""
        folder = self._folder(plan.job_id)
        _remove(folder / _ENCODED)
        for round_id, attempt in _attempts_in(folder / _DELIVERED):
            self.settle(plan.job_id, round_id, attempt, committed=round_id < plan.round_id)

    def _kept(self, plan: RoundPlan) -> FloatVector | None:
        folder = self._folder(plan.job_id) / _KEPT
        spool = self._spool(folder)
        task = spool.task()
        if task is None or task != _task(plan, task.round_id) or task.round_id >= plan.round_id:
            # Of another model, or of a round that the coordinator no longer knows: it corrects nothing here.
            _remove(folder)
            return None
        kept = spool.load(task)
        if kept is None or kept.update.shape != (plan.manifest.size,) or not np.isfinite(kept.update).all():
            _remove(folder)
            return None
        faded: FloatVector = kept.update * np.float32(plan.codec.feedback ** (plan.round_id - task.round_id))
        return faded

    def _save(self, plan: RoundPlan, rest: FloatVector) -> None:
        spool = self._spool(self._folder(plan.job_id) / _ENCODED / _name(plan.round_id, plan.attempt))
        try:
            spool.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("feedback_not_kept", error=error.strerror)
            return
        spool.save(_task(plan, plan.round_id), TrainedUpdate(rest, 1, MappingProxyType({})))

    def _spool(self, folder: Path) -> UpdateSpool:
        return UpdateSpool(folder, self.key, worth_s=0.0)

    def _folder(self, job_id: str) -> Path:
        # A job's id may hold what no file name may.
        return self.state_dir / FOLDER_NAME / hashlib.sha256(job_id.encode()).hexdigest()[:32]


def _task(plan: RoundPlan, round_id: int) -> Task:
    return Task(plan.job_id, round_id, plan.manifest.digest())


def _name(round_id: int, attempt: int) -> str:
    return f"{round_id}-{attempt}"


def _attempts_in(folder: Path) -> list[tuple[int, int]]:
    names = [path.name.split("-") for path in folder.glob("*-*")] if folder.exists() else []
    return sorted((int(round_id), int(attempt)) for round_id, attempt in names)


def _move(source: Path, target: Path) -> None:
    """Put the rest that lies in one folder in the place of what lies in another."""
    try:
        if (source / SPOOL_NAME).exists():
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            (source / SPOOL_NAME).replace(target / SPOOL_NAME)
    except OSError as error:
        log.warning("feedback_not_kept", error=error.strerror)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
