"""A model as the difference to one that the other side has: exact, so that the digest of the model stays the proof.

Two versions of a model share signs, exponents and the higher bits of most mantissas. Their bits are compared, bytes of
equal rank are put together, tensor by tensor, and what is left is compressed with zstd. Where a round moved only a part
of the coordinates most of it is zeros.
"""

import numpy as np
import numpy.typing as npt

from fl_core.codec.compression import compress, decompress
from fl_core.codec.packing import Buffer
from fl_core.codec.tensors import TensorManifest
from fl_core.errors import CodecError


def encode_difference(after: Buffer, before: Buffer, manifest: TensorManifest) -> bytes:
    """Write one model as its difference to another of the same form.

    Args:
        after: the bytes of its tensors, manifest.nbytes of them.
        before: the bytes of the other's.
        manifest: of both.

    Raises:
        CodecError: a model has the wrong size.
    """
    changed = _bytes_of(after, manifest) ^ _bytes_of(before, manifest)
    planes = np.empty_like(changed)
    for start, stop, width in _pieces(manifest):
        planes[start:stop] = changed[start:stop].reshape(-1, width).T.reshape(-1)
    return compress(planes.tobytes())


def decode_difference(code: Buffer, before: Buffer, manifest: TensorManifest) -> npt.NDArray[np.uint8]:
    """Read back what `encode_difference` wrote.

    Returns:
        (manifest.nbytes,) uint8: the bytes of the model's tensors. That they are the right ones its digest must show.

    Raises:
        CodecError: the code is damaged or of a model of another form.
    """
    changed = np.frombuffer(decompress(code, manifest.nbytes), np.uint8)
    out = np.empty_like(changed)
    for start, stop, width in _pieces(manifest):
        out[start:stop] = changed[start:stop].reshape(width, -1).T.reshape(-1)
    np.bitwise_xor(out, _bytes_of(before, manifest), out=out)
    return out


def _pieces(manifest: TensorManifest) -> list[tuple[int, int, int]]:
    """First byte, last byte and width of an element, of each tensor that has any."""
    pieces, start = [], 0
    for spec in manifest.tensors:
        if spec.nbytes:
            pieces.append((start, start + spec.nbytes, np.dtype(spec.dtype).itemsize))
        start += spec.nbytes
    return pieces


def _bytes_of(model: Buffer, manifest: TensorManifest) -> npt.NDArray[np.uint8]:
    content = np.frombuffer(model, np.uint8)
    if len(content) != manifest.nbytes:
        raise CodecError("a model has the wrong size", expected=f"{manifest.nbytes} bytes", got=len(content))
    return content
