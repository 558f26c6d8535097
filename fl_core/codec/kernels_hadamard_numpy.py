"""What the compiled kernels of the rotation compute, in numpy: their definition, and what runs for small models.

Every function here has a twin of the same name in `kernels_hadamard` that gives the same bits.
"""

from math import sqrt

import numpy as np
import numpy.typing as npt

from fl_core.codec.rotation_shape import HAND
from fl_core.codec.tensors import FloatVector

SignBytes = npt.NDArray[np.uint8]
"""(d / 8,) uint8: bit i % 8 of byte i // 8 is set where coordinate i changes its sign."""


def deal(vector: FloatVector, blocks: int, out: FloatVector) -> None:
    """Deal a vector to blocks in hands of 16, as cards are dealt; what is missing at the end is zero.

    Hand h of the vector becomes hand h // blocks of block h % blocks, so that each block is a sample of the whole.

    Args:
        vector: (d,) float32.
        blocks: how many.
        out: (padded,) float32, a multiple of 16 * blocks, at least d: the blocks one after the other.
    """
    padded = np.zeros(len(out), np.float32)
    padded[: len(vector)] = vector
    rows = len(out) // (blocks * HAND)
    out.reshape(blocks, rows, HAND)[:] = padded.reshape(rows, blocks, HAND).transpose(1, 0, 2)


def gather(dealt: FloatVector, blocks: int, out: FloatVector) -> None:
    """Take back what `deal` dealt.

    Args:
        dealt: (padded,) float32.
        blocks: how many.
        out: (d,) float32, d at most padded.
    """
    rows = len(dealt) // (blocks * HAND)
    out[:] = dealt.reshape(blocks, rows, HAND).transpose(1, 0, 2).reshape(-1)[: len(out)]


def flip_signs(vector: FloatVector, signs: SignBytes) -> None:
    """Change the sign of the coordinates that `signs` names, in place.

    Args:
        vector: (d,) float32, d a multiple of 16.
        signs: (d / 8,).
    """
    flips = np.unpackbits(signs, bitorder="little").astype(np.uint32) << np.uint32(31)
    bits = vector.view(np.uint32)
    np.bitwise_xor(bits, flips, out=bits)


def hadamard(vector: FloatVector, block: int) -> None:
    """Multiply each block by the orthonormal Walsh-Hadamard matrix, in natural order, in place.

    The levels run from neighbours to halves, each a sum and a difference in float32; the scale comes last.

    Args:
        vector: (d,) float32, d a multiple of `block`.
        block: a power of two, at least 16.
    """
    half = 1
    while half < block:
        pairs = vector.reshape(len(vector) // (2 * half), 2, half)
        first, second = pairs[:, 0].copy(), pairs[:, 1].copy()
        np.add(first, second, out=pairs[:, 0])
        np.subtract(first, second, out=pairs[:, 1])
        half *= 2
    vector *= np.float32(1 / sqrt(block))
