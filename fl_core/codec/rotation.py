"""A random rotation that everybody of a round can make and undo: it spreads the energy of an update evenly.

Coordinates of a rotated update are nearly Gaussian, all of one width, whatever the update was. So a few levels over a
narrow range round them well, and the range needs to be no larger than a few times the length of the update over the
square root of its coordinates.

Source: Suresh et al. 2017, Distributed Mean Estimation with Limited Communication, section 3; Ailon and Chazelle 2009
for signs and Walsh-Hadamard matrix.
"""

from typing import Protocol

import numpy as np

from fl_core.codec.kernels import COMPILED_FROM
from fl_core.codec.kernels_hadamard_numpy import SignBytes
from fl_core.codec.rotation_shape import padded_length as padded_length
from fl_core.codec.rotation_shape import rotation_block as rotation_block
from fl_core.codec.tensors import FloatVector
from fl_core.crypto.mask_prg import add_mask
from fl_core.errors import CodecError


class _Kernels(Protocol):
    def deal(self, vector: FloatVector, blocks: int, out: FloatVector, /) -> None: ...

    def gather(self, dealt: FloatVector, blocks: int, out: FloatVector, /) -> None: ...

    def flip_signs(self, vector: FloatVector, signs: SignBytes, /) -> None: ...

    def hadamard(self, vector: FloatVector, block: int, /) -> None: ...


def rotate(vector: FloatVector, key: bytes) -> FloatVector:
    """Pad, deal to blocks, change signs at random, and multiply each block by an orthonormal Hadamard matrix.

    Lengths are kept: the norm of the result is that of the vector, up to float32.

    Args:
        vector: (d,) float32, finite.
        key: 16 bytes, public, one for each round: its keystream has the signs.

    Returns:
        (padded_length(d),) float32, a new array.

    Raises:
        CodecError: the vector is not flat float32.
        CryptoError: the key has the wrong length.
    """
    _check(vector, "rotated")
    out: FloatVector = np.empty(padded_length(len(vector)), np.float32)
    signs = _signs(len(out), key)
    block, kernels = rotation_block(len(vector)), _kernels_for(len(out))
    kernels.deal(np.ascontiguousarray(vector), _blocks(len(out), block), out)
    kernels.flip_signs(out, signs)
    kernels.hadamard(out, block)
    return out


def unrotate(rotated: FloatVector, key: bytes, length: int) -> FloatVector:
    """Undo `rotate`, also of a sum or mean of vectors that were rotated by the same key.

    Args:
        rotated: (padded_length(length),) float32. It is used up: the work is done in place.
        key: as in `rotate`.
        length: coordinates of the vector that was rotated, d.

    Returns:
        (d,) float32, a new array.

    Raises:
        CodecError: the vector is not flat float32, or has another length.
        CryptoError: the key has the wrong length.
    """
    _check(rotated, "unrotated")
    if len(rotated) != padded_length(length):
        raise CodecError("a rotated vector has the wrong length", expected=padded_length(length), got=len(rotated))
    signs = _signs(len(rotated), key)
    block, kernels = rotation_block(length), _kernels_for(len(rotated))
    turned = np.ascontiguousarray(rotated)
    out: FloatVector = np.empty(length, np.float32)
    kernels.hadamard(turned, block)
    kernels.flip_signs(turned, signs)
    kernels.gather(turned, _blocks(len(turned), block), out)
    return out


def _blocks(padded: int, block: int) -> int:
    return max(1, padded // block)


def _signs(length: int, key: bytes) -> SignBytes:
    signs = np.zeros(length // 8, np.uint8)
    add_mask(signs, key)
    return signs


def _kernels_for(length: int) -> _Kernels:
    if length < COMPILED_FROM:
        from fl_core.codec import kernels_hadamard_numpy

        return kernels_hadamard_numpy
    from fl_core.codec import kernels_hadamard

    return kernels_hadamard


def _check(vector: FloatVector, what: str) -> None:
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise CodecError(
            f"a vector that is {what} has the wrong form",
            expected="one dimension of float32",
            got=f"{vector.ndim} of {vector.dtype.name}",
        )
