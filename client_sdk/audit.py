"""Updates before they are masked, left on this site's own disk for the audit that a sum is exact."""

from pathlib import Path

import numpy as np

from fl_core.errors import StorageError
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.messages import RingVector


def record_plain_update(folder: Path, plan: RoundPlan, index: int, vector: RingVector) -> Path:
    """Write the coordinates of one upload as `<session_id>-<index>.npz`, whole or not at all.

    The file has `vector` (plan.length,) in the lane of the ring, and the numbers `round_id`, `attempt`, `index` and
    `ring_bits`.

    Returns:
        The path of the file.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = folder / f"{plan.session_id.hex()}-{index}.npz"
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
