"""The precision in which a job releases its model: what is rounded away waits at the server and joins the next version.

A model whose 32-bit floats are all 16-bit ones is the same model to every site, and its difference to the version
before is half as long or less. A format that is a difference rounds what a version adds to the one before instead.
"""

from enum import StrEnum

import numpy as np

from fl_core.codec.tensors import FloatVector
from fl_core.errors import CodecError


class ModelFormat(StrEnum):
    """What the 32-bit floats of a released model are rounded to."""

    EXACT = "exact"
    FP16 = "fp16"
    """11 bits of precision, up to 65,504."""
    BF16 = "bf16"
    """8 bits of precision, the range of 32-bit floats."""
    INT8_DIFFERENCE = "int8-difference"
    """255 levels for what a version adds to the one before, see `fl_core.codec.lossy_difference`."""
    INT4_DIFFERENCE = "int4-difference"
    """15 levels."""

    @property
    def difference_bits(self) -> int | None:
        """Bits of a level of the difference to the version before; None for a format that rounds the model itself."""
        return {ModelFormat.INT8_DIFFERENCE: 8, ModelFormat.INT4_DIFFERENCE: 4}.get(self)


def round_to_format(values: FloatVector, form: ModelFormat) -> FloatVector:
    """Round to the nearest value that the format has, to even between two.

    Args:
        values: (d,) float32, finite.
        form: of the job, one that rounds the model itself.

    Returns:
        (d,) float32, a new array.

    Raises:
        CodecError: a value is beyond the format's range.
    """
    match form:
        case ModelFormat.EXACT:
            return values.copy()
        case ModelFormat.FP16:
            with np.errstate(over="ignore"):
                rounded: FloatVector = values.astype(np.float16).astype(np.float32)
        case ModelFormat.BF16:
            bits = values.view(np.uint32)
            half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            rounded = ((bits + half) & np.uint32(0xFFFF_0000)).view(np.float32)
        case _:
            raise CodecError(
                "a difference is no format of single values", expected="exact, fp16 or bf16", got=form.value
            )
    if not np.isfinite(rounded).all():
        raise CodecError(
            f"the model does not fit {form.value}", expected="smaller parameters", fix="take bf16 or exact in the job"
        )
    return rounded
