"""Named tensors and the flat vector that stands for them, by manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from fl_core.crypto import labels
from fl_core.errors import CodecError

FloatVector = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[np.generic]]

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
MAX_TENSORS = 65_536
MAX_RANK = 16
MAX_NAME_BYTES = 512


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (a name of `DTYPES`) and shape of one tensor.

    Raises:
        CodecError: the name is empty or too long, the dtype unknown, or the shape out of range.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_NAME_BYTES:
            raise CodecError(
                "a tensor's name is out of range", expected=f"1 to {MAX_NAME_BYTES} bytes", got=len(self.name)
            )
        if self.dtype not in DTYPES:
            raise CodecError(f"tensor {self.name!r} has an unknown dtype", expected=" | ".join(DTYPES), got=self.dtype)
        if len(self.shape) > MAX_RANK or any(side < 0 for side in self.shape):
            raise CodecError(f"tensor {self.name!r} has an impossible shape", expected="sides >= 0", got=self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorManifest:
    """The order and form of the tensors of a model. Their elements, in this order, are the flat vector.

    Raises:
        CodecError: no tensor, too many tensors, or a name that stands twice.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.tensors) <= MAX_TENSORS:
            raise CodecError(
                "a model has an impossible number of tensors", expected=f"1 to {MAX_TENSORS}", got=len(self.tensors)
            )
        names = [spec.name for spec in self.tensors]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise CodecError("a tensor's name stands twice in the manifest", expected="distinct names", got=twice)

    @property
    def size(self) -> int:
        """Coordinates of the flat vector."""
        return sum(spec.size for spec in self.tensors)

    def digest(self) -> bytes:
        """32 bytes that stand for names, dtypes, shapes and order."""
        fields: list[labels.Field] = []
        for spec in self.tensors:
            fields += [spec.name, spec.dtype, len(spec.shape), *spec.shape]
        return labels.digest_fields(labels.MANIFEST, *fields)
