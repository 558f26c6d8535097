"""Updates before they are masked, left on this site's own disk for the audit that a sum is exact."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_core.crypto.mask_prg import lane_dtype
from fl_core.errors import StorageError
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import private_codec_of
from fl_core.secagg.messages import RingVector

EXCESS_SUFFIX = ".excess"
"""Of the file beside the record of an update that has the noise which was taken away from it again."""


def record_plain_update(folder: Path, plan: RoundPlan, index: int, vector: RingVector) -> Path:
    """Write the coordinates of one upload as `<session_id>-<index>.npz`, whole or not at all.

    The file has `vector` (plan.length,) in the lane of the ring, and the numbers `round_id`, `attempt`, `index` and
    `ring_bits`.

    Returns:
        The path of the file.

    Raises:
        StorageError: the folder cannot be written.
    """
    return _record(folder, plan, index, vector, ".npz")


def record_excess_noise(folder: Path, plan: RoundPlan, index: int, keys: Sequence[bytes]) -> None:
    """Write the noise of one upload that the key server was given the seed of, to take it away, beside the upload.

    Args:
        folder: of `record_plain_update`.
        plan: of an attempt with distributed noise.
        index: this site's place in the roster.
        keys: of the parts of the noise; nothing is written when there are none.

    Raises:
        StorageError: the folder cannot be written.
    """
    codec = private_codec_of(plan)
    if codec is None or not keys:
        return
    vector: RingVector = np.zeros(plan.length, lane_dtype(plan.codec.ring_bits))
    codec.add_parts(vector[codec.header_length :], [keys], 0)
    _record(folder, plan, index, vector, EXCESS_SUFFIX)


def _record(folder: Path, plan: RoundPlan, index: int, vector: RingVector, suffix: str) -> Path:
    path = folder / f"{plan.session_id.hex()}-{index}{suffix}"
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(
                file,
                vector=vector,
                round_id=plan.round_id,
                attempt=plan.attempt,
                index=index,
                ring_bits=plan.codec.ring_bits,
            )
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"the plain update {path} cannot be written", got=error.strerror) from error
    return path
