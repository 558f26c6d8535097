"""A model version that is made of few bits: what it adds to the version before it is a level of few bits for each
coordinate, and a scale for each block.

The server rounds, so that the rounded model is the version: whoever holds the version before and gets the levels has
it bit for bit, and its digest proves that. What was rounded away is the server's to keep and to add to the next
version. Nothing is drawn: levels are the nearest ones, and with the rest carried on no error grows.

Only 32-bit floats are rounded; the bits of all other elements are sent as they changed. Each coordinate is multiplied
and added once in float32, in this order, which gives the same bits on every processor.

    zstd of: levels, one byte each | scales, float32 each | changed bits of other elements

Source: Seide et al. 2014, 1-bit Stochastic Gradient Descent, for the error that is carried on.
"""

import numpy as np
import numpy.typing as npt

from fl_core.codec.compression import compress, decompress
from fl_core.codec.packing import Buffer
from fl_core.codec.tensors import FloatVector, TensorManifest
from fl_core.errors import CodecError

BLOCK = 256
"""Coordinates that share a scale; each tensor begins a new block."""

LEVEL_BITS = range(2, 9)

MOST_STEPS = 8
"""Differences that follow one another in one download."""


class DifferenceWriter:
    """Rounds one version as its parts pass, and writes down what they add to the version before.

    Args:
        bits: of a level, 2 to 8; levels are -(2**(bits-1) - 1) to 2**(bits-1) - 1.

    Raises:
        CodecError: bits is out of range.
    """

    def __init__(self, bits: int) -> None:
        if bits not in LEVEL_BITS:
            raise CodecError("the bits of a difference are out of range", expected="2 to 8", got=bits)
        self._top = np.float32((1 << (bits - 1)) - 1)
        self._levels: list[bytes] = []
        self._scales: list[bytes] = []
        self._others: list[bytes] = []

    def round(self, before: FloatVector, wanted: FloatVector) -> FloatVector:
        """Round a part of a tensor to what the levels can say.

        Args:
            before: (n,) float32, of the version before, which every reader has.
            wanted: (n,) float32. Parts of a tensor come in order, and all but its last have whole blocks.

        Returns:
            (n,) float32, a new array: the new version.

        Raises:
            CodecError: a coordinate moves farther than float32 reaches.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            change = _in_blocks(wanted - before)
            scales: FloatVector = np.abs(change).max(axis=1) / self._top
        if not np.isfinite(scales).all():
            raise CodecError("the model moves farther than its format reaches", expected="finite parameters")
        # A block that does not move, or by less than the smallest scale, has levels of zero.
        divisors = np.where(scales > 0, scales, np.float32(1))
        levels = np.clip(np.rint(change / divisors[:, None]), -self._top, self._top).astype(np.int8)
        levels[scales == 0] = 0
        flat = levels.reshape(-1)[: len(before)]
        self._levels.append(flat.tobytes())
        self._scales.append(scales.astype("<f4").tobytes())
        return _move(before, flat, scales)

    def copy(self, before: Buffer, after: Buffer) -> None:
        """Write down a part of a tensor that is not rounded: the bits that changed."""
        self._others.append((np.frombuffer(before, np.uint8) ^ np.frombuffer(after, np.uint8)).tobytes())

    def finish(self) -> bytes:
        """The code of the whole difference."""
        return compress(b"".join((*self._levels, *self._scales, *self._others)))


def apply_difference(code: Buffer, before: Buffer, manifest: TensorManifest) -> npt.NDArray[np.uint8]:
    """The version that a difference makes of the one before it.

    Args:
        code: what `DifferenceWriter.finish` gave.
        before: the bytes of the tensors of the version before.
        manifest: of both.

    Returns:
        (manifest.nbytes,) uint8: the bytes of the version's tensors. That they are the right ones its digest must show.

    Raises:
        CodecError: the code is damaged or of a model of another form, or the model before has the wrong size.
    """
    old = np.frombuffer(before, np.uint8)
    if len(old) != manifest.nbytes:
        raise CodecError("a model has the wrong size", expected=f"{manifest.nbytes} bytes", got=len(old))
    level_count, scale_count = _counts(manifest)
    content = decompress(code, level_count + 4 * scale_count + _other_bytes(manifest))
    levels = np.frombuffer(content, np.int8, level_count)
    scales = np.frombuffer(content, "<f4", scale_count, level_count).astype(np.float32)
    others = np.frombuffer(content, np.uint8, offset=level_count + 4 * scale_count)
    out = np.empty_like(old)
    start = level = scale = other = 0
    for spec in manifest.tensors:
        part = slice(start, start + spec.nbytes)
        if spec.dtype == "float32":
            blocks = -(-spec.size // BLOCK)
            moved = _move(
                np.frombuffer(old[part].tobytes(), np.float32),
                levels[level : level + spec.size],
                scales[scale : scale + blocks],
            )
            out[part] = moved.view(np.uint8)
            level, scale = level + spec.size, scale + blocks
        else:
            out[part] = old[part] ^ others[other : other + spec.nbytes]
            other += spec.nbytes
        start += spec.nbytes
    return out


def _move(before: FloatVector, levels: npt.NDArray[np.int8], scales: FloatVector) -> FloatVector:
    """One product and one sum for each coordinate, in float32."""
    steps = (_in_blocks(levels.astype(np.float32)) * scales[:, None]).reshape(-1)[: len(before)]
    with np.errstate(over="ignore", invalid="ignore"):
        moved: FloatVector = before + steps
    return moved


def _in_blocks(vector: FloatVector) -> FloatVector:
    padded: FloatVector = np.zeros(-(-len(vector) // BLOCK) * BLOCK, np.float32)
    padded[: len(vector)] = vector
    return padded.reshape(-1, BLOCK)


def _counts(manifest: TensorManifest) -> tuple[int, int]:
    """How many levels and scales a difference of this form has."""
    sizes = [spec.size for spec in manifest.tensors if spec.dtype == "float32"]
    return sum(sizes), sum(-(-size // BLOCK) for size in sizes)


def _other_bytes(manifest: TensorManifest) -> int:
    return sum(spec.nbytes for spec in manifest.tensors if spec.dtype != "float32")
