"""An upload as bytes: packed in the ring where masks or noise ask for it, in the shortest form where nothing does."""

import numpy as np
import numpy.typing as npt

from fl_core.codec.packing import Buffer, pack, packed_bytes, unpack
from fl_core.codec.plain_payload import largest_payload, read_payload, write_payload
from fl_core.crypto.mask_prg import RingVector
from fl_core.rounds.plan import Aggregation, RoundPlan


def varies_in_size(plan: RoundPlan) -> bool:
    """Whether the bytes of an upload depend on the update: where its levels are seen, and are those of the codec."""
    return plan.aggregation is Aggregation.PLAIN and plan.privacy is None


def upload_payload(plan: RoundPlan, vector: RingVector) -> npt.NDArray[np.uint8]:
    """The bytes of an upload.

    Args:
        plan: of the attempt.
        vector: (plan.length,) in the lane of ring_bits, masked unless the attempt is plain.

    Raises:
        CodecError: a coordinate does not fit.
    """
    if varies_in_size(plan):
        return write_payload(plan.codec, plan.max_weight, vector)
    return pack(vector, plan.codec.ring_bits)


def plain_vector(plan: RoundPlan, payload: Buffer) -> RingVector:
    """Read the upload of a plain attempt.

    Raises:
        CodecError: it is no upload of this plan.
    """
    if varies_in_size(plan):
        return read_payload(plan.codec, plan.manifest.size, plan.max_weight, payload)
    return unpack(payload, plan.length, plan.codec.ring_bits)


def largest_upload(plan: RoundPlan) -> int:
    """Most bytes of an upload that is masked or plain."""
    if varies_in_size(plan):
        return largest_payload(plan.codec, plan.manifest.size, plan.max_weight)
    return packed_bytes(plan.length, plan.codec.ring_bits)
