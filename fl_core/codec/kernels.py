"""Which kernels run: compiled ones for large vectors, numpy for small ones. Both give the same bits."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from fl_core.codec import kernels_numpy
from fl_core.codec.kernels_numpy import Coins, Unit
from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import RingVector

COMPILED_FROM = 1 << 18
"""Coordinates from which loading numba (about a second) pays."""


class Kernels(Protocol):
    """The functions that touch every coordinate; see `kernels_numpy` for what they mean."""

    def quantize(
        self, update: FloatVector, scale: float, bound: float, span: float, top: int, coins: Coins, out: RingVector, /
    ) -> None: ...

    def quantize_short(
        self, update: FloatVector, step: Unit, half: Unit, bound: Unit, coins: Coins, out: RingVector, /
    ) -> None: ...

    def largest_magnitude(self, update: FloatVector, /) -> np.uint32: ...

    def dequantize_sum(self, levels: RingVector, offset: float, step: float, out: FloatVector, /) -> None: ...

    def pack(self, vector: RingVector, bits: int, out: npt.NDArray[np.uint8], /) -> None: ...

    def unpack(self, data: npt.NDArray[np.uint8], bits: int, out: RingVector, /) -> None: ...


def kernels_for(length: int) -> Kernels:
    """The kernels for a vector of `length` coordinates."""
    if length < COMPILED_FROM:
        return kernels_numpy
    from fl_core.codec import kernels_numba

    return kernels_numba
