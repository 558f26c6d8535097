"""Coordinates of a ring as a little-endian bit stream: `bits` bits each, one after the other, no padding between."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fl_core.codec.kernels import kernels_for
from fl_core.codec.kernels_numpy import BLOCK
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import CodecError

Buffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

_BITS = range(1, 33)
_WHOLE_BYTES: dict[int, np.dtype[np.unsignedinteger]] = {8: np.dtype("<u1"), 16: np.dtype("<u2"), 32: np.dtype("<u4")}


def packed_bytes(length: int, bits: int) -> int:
    """Bytes of `length` coordinates of `bits` bits.

    Raises:
        CodecError: bits is not 1 to 32, or the length is negative.
    """
    _check_bits(bits)
    if length < 0:
        raise CodecError("a vector has an impossible length", expected=">= 0", got=length)
    return (length * bits + 7) // 8


def pack(vector: RingVector, bits: int) -> npt.NDArray[np.uint8]:
    """Pack a vector, see `kernels_numpy.pack` for the order of the bits.

    Args:
        vector: (d,) unsigned integers, each below 2**bits.
        bits: 1 to 32.

    Returns:
        (packed_bytes(d, bits),) uint8. Where a coordinate is exactly its lane this is a view of the vector, no copy.

    Raises:
        CodecError: the vector is not flat or not unsigned, or a coordinate does not fit.
    """
    return _pack(vector, bits, len(vector))


def pack_blocks(vector: RingVector, bits: int, block: int = BLOCK) -> Iterator[npt.NDArray[np.uint8]]:
    """Pack a vector piece by piece: the pieces, joined, are `pack(vector, bits)`, and never exist at once.

    Args:
        vector: (d,) unsigned integers, each below 2**bits.
        bits: 1 to 32.
        block: coordinates per piece, a multiple of 8.

    Raises:
        CodecError: as `pack`, or block is no multiple of 8.
    """
    _check_block(block)
    for start in range(0, len(vector), block):
        yield _pack(vector[start : start + block], bits, len(vector))


def unpack(data: Buffer, length: int, bits: int, of: int | None = None) -> RingVector:
    """Read back what `pack` wrote.

    Args:
        data: exactly packed_bytes(length, bits) bytes.
        length: coordinates.
        bits: 1 to 32.
        of: coordinates of the vector of which these are a part; its kernels are used.

    Returns:
        (length,) in the lane of `bits`; a new array.

    Raises:
        CodecError: too few or too many bytes, or a bit after the last coordinate is set.
    """
    stream = _stream(data, length, bits)
    out: RingVector = np.empty(length, lane_dtype(bits))
    _unpack_into(stream, bits, out, length if of is None else of)
    return out


def unpack_into(out: RingVector, data: Buffer, bits: int) -> RingVector:
    """Read back what `pack` wrote into an array that is there already, and return that.

    Args:
        out: (d,) in the lane of `bits`, contiguous; all of it is written, unless the data is refused.
        data: exactly packed_bytes(d, bits) bytes.
        bits: 1 to 32.

    Raises:
        CodecError: as `unpack`, or `out` is of another lane.
    """
    if out.ndim != 1 or out.dtype != lane_dtype(bits) or not out.flags.c_contiguous:
        raise CodecError("coordinates cannot be unpacked there", expected=lane_dtype(bits).name, got=out.dtype.name)
    _unpack_into(_stream(data, len(out), bits), bits, out, len(out))
    return out


def unpack_blocks(data: Buffer, length: int, bits: int, block: int = BLOCK) -> Iterator[tuple[int, RingVector]]:
    """Read back what `pack` wrote, piece by piece: (first coordinate, piece).

    All checks of `unpack` are made before the first piece comes out.

    Raises:
        CodecError: as `unpack`, or block is no multiple of 8.
    """
    _check_block(block)
    stream = _stream(data, length, bits)
    for start in range(0, length, block):
        out: RingVector = np.empty(min(block, length - start), lane_dtype(bits))
        first = start * bits // 8
        _unpack_into(stream[first : first + packed_bytes(len(out), bits)], bits, out, length)
        yield start, out


def _pack(vector: RingVector, bits: int, length: int) -> npt.NDArray[np.uint8]:
    """Pack a vector that is the whole or a part of one of `length` coordinates, by which the kernels are chosen."""
    _check_vector(vector, bits)
    if vector.dtype == _WHOLE_BYTES.get(bits) and vector.flags.c_contiguous:
        return vector.view(np.uint8)
    out = np.empty(packed_bytes(len(vector), bits), np.uint8)
    if bits in _WHOLE_BYTES:
        out.view(_WHOLE_BYTES[bits])[:] = vector
    else:
        kernels_for(length).pack(np.ascontiguousarray(vector), bits, out)
    return out


def _unpack_into(stream: npt.NDArray[np.uint8], bits: int, out: RingVector, length: int) -> None:
    if bits in _WHOLE_BYTES:
        out[:] = stream.view(_WHOLE_BYTES[bits])
    else:
        kernels_for(length).unpack(stream, bits, out)


def _stream(data: Buffer, length: int, bits: int) -> npt.NDArray[np.uint8]:
    stream = np.frombuffer(data, np.uint8)
    expected = packed_bytes(length, bits)
    if len(stream) != expected:
        raise CodecError(
            "packed coordinates have the wrong size",
            expected=f"{expected} bytes for {length} coordinates of {bits} bits",
            got=len(stream),
        )
    used = length * bits % 8
    if used and int(stream[-1]) >> used:
        raise CodecError("bits are set after the last packed coordinate", expected="zeros", got="a one")
    return stream


def _check_bits(bits: int) -> None:
    if bits not in _BITS:
        raise CodecError("the bits of a packed coordinate are out of range", expected="1 to 32", got=bits)


def _check_block(block: int) -> None:
    if block < 8 or block % 8:
        raise CodecError("a block does not end on a byte", expected="a multiple of 8 coordinates", got=block)


def _check_vector(vector: RingVector, bits: int) -> None:
    _check_bits(bits)
    if vector.ndim != 1 or vector.dtype.kind != "u":
        raise CodecError(
            "a vector of the ring has the wrong form",
            expected="one dimension of unsigned integers",
            got=f"{vector.ndim} of {vector.dtype.name}",
        )
    if bits < 8 * vector.dtype.itemsize and len(vector) and int(vector.max()) >> bits:
        raise CodecError("a coordinate does not fit its bits", expected=f"below 2**{bits}", got="a larger one")
