"""The check that an aggregate is exactly the plain sum of its survivors' quantised updates.

The sites of the demo leave each update in a file before they mask it. Here they are added in the ring, packed, and
hashed: the digest must be the one that the coordinator reports for the sum that came out of the masks. Noise of a site
that was taken away again is in a file beside its update.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cli.cluster import PLAIN_UPDATES
from client_sdk.audit import EXCESS_SUFFIX
from fl_core.codec.packing import pack
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import StorageError
from fl_core.rounds.report import RoundReport


def plain_sum_sha256(vectors: Sequence[RingVector], ring_bits: int) -> str:
    """SHA-256 of the packed sum of `vectors` modulo 2**ring_bits, in hexadecimal digits."""
    total = np.zeros(len(vectors[0]), np.uint64)
    for vector in vectors:
        total += vector
    ring = (total & np.uint64((1 << ring_bits) - 1)).astype(lane_dtype(ring_bits))
    return hashlib.sha256(pack(ring, ring_bits).tobytes()).hexdigest()


def is_exact(report: RoundReport, sites_folder: Path) -> bool:
    """Whether the aggregate of a committed round is the plain sum of what its survivors recorded.

    Args:
        report: of the committed round.
        sites_folder: holds `CLIENT_ID/plain-updates/` of every site.

    Raises:
        StorageError: a survivor recorded nothing for this attempt.
    """
    records = [_recorded(sites_folder / client_id / PLAIN_UPDATES, report) for client_id in report.survivors]
    _, ring_bits = records[0]
    return plain_sum_sha256([vector for vector, _ in records], ring_bits) == report.aggregate_sha256.hex()


def _recorded(folder: Path, report: RoundReport) -> tuple[RingVector, int]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as record:
            if (int(record["round_id"]), int(record["attempt"])) == (report.round_id, report.attempt):
                return _less_excess(path, record["vector"]), int(record["ring_bits"])
    raise StorageError(
        f"a survivor recorded no update of round {report.round_id}, attempt {report.attempt}", got=str(folder)
    )


def _less_excess(path: Path, vector: RingVector) -> RingVector:
    beside = path.with_suffix(EXCESS_SUFFIX)
    if not beside.exists():
        return vector
    with np.load(beside, allow_pickle=False) as record:
        # The lane wraps around, and whoever adds reduces to the ring.
        less: RingVector = vector - record["vector"]
        return less
