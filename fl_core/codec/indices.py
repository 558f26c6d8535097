"""Which of `size` places are taken, in as few bytes as one of two ways needs: gaps as varints, or a bitmap.

A gap is what lies between two places, so that no code can say a place twice or out of order. A varint has seven bits of
a gap in each byte, lowest first, and the highest bit set in all bytes but its last (LEB128).
"""

import numpy as np
import numpy.typing as npt

from fl_core.errors import CodecError

Places = npt.NDArray[np.int64]
"""(k,) int64, ascending, distinct."""

_GAPS, _BITMAP = 0, 1
_MAX_VARINT_BYTES = 5
"""2**35 is more than a model has coordinates."""


def encode_places(places: Places, size: int) -> bytes:
    """Write places, the shorter way.

    Args:
        places: (k,), ascending, distinct, each in [0, size).
        size: how many places there are.

    Returns:
        One byte that names the way, and the code.

    Raises:
        CodecError: a place is out of range, out of order or stands twice.
    """
    _check(places, size)
    bitmap_bytes = -(-size // 8)
    gaps = np.diff(places, prepend=-1) - 1
    lengths = _varint_lengths(gaps)
    if int(lengths.sum()) < bitmap_bytes:
        return bytes([_GAPS]) + _write_varints(gaps, lengths)
    taken = np.zeros(size, np.uint8)
    taken[places] = 1
    return bytes([_BITMAP]) + np.packbits(taken, bitorder="little").tobytes()


def most_code_bytes(count: int, size: int) -> int:
    """Most bytes that the code of so many places of `size` can have.

    A byte of a varint before its last stands for 128 places at least, of which there are only `size`.
    """
    return 1 + min(-(-size // 8), count + size // 128)


def decode_places(code: bytes | memoryview, count: int, size: int) -> Places:
    """Read back what `encode_places` wrote.

    Args:
        code: all of it, and nothing else.
        count: places that it must have.
        size: how many places there are.

    Raises:
        CodecError: the code is truncated or padded, has another number of places, or a place is out of range.
    """
    stream = np.frombuffer(code, np.uint8)
    if not len(stream):
        raise CodecError("a code of places is empty", expected="a byte that names the way")
    if stream[0] == _BITMAP:
        places = _read_bitmap(stream[1:], size)
    elif stream[0] == _GAPS:
        # In 64 bits: five bytes of seven bits, as many times as there are places, stay below 2**63.
        places = np.cumsum(_read_varints(stream[1:], count) + 1) - 1
    else:
        raise CodecError("a code of places is of an unknown kind", expected=f"{_GAPS} or {_BITMAP}", got=int(stream[0]))
    if len(places) != count:
        raise CodecError("a code has the wrong number of places", expected=count, got=len(places))
    if count and int(places[-1]) >= size:
        raise CodecError("a place is out of range", expected=f"0 to {size - 1}", got=int(places[-1]))
    return places


def _check(places: Places, size: int) -> None:
    if places.ndim != 1 or places.dtype != np.int64:
        raise CodecError("places have the wrong form", expected="one dimension of int64", got=places.dtype.name)
    if not len(places):
        return
    if int(places.min()) < 0 or int(places.max()) >= size:
        raise CodecError("a place is out of range", expected=f"0 to {size - 1}", got=f"{places.min()}, {places.max()}")
    if (np.diff(places) <= 0).any():
        raise CodecError("places are not in order", expected="ascending, none twice", got="another order")


def _varint_lengths(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    lengths = np.ones(len(numbers), np.int64)
    for more in range(1, _MAX_VARINT_BYTES):
        lengths += numbers >= 1 << (7 * more)
    return lengths


def _write_varints(numbers: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> bytes:
    ends = np.cumsum(lengths)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    starts = ends - lengths
    for place in range(_MAX_VARINT_BYTES):
        has = lengths > place
        more = (lengths > place + 1).astype(np.uint8) << np.uint8(7)
        out[starts[has] + place] = (((numbers >> (7 * place)) & 0x7F).astype(np.uint8) | more)[has]
    return out.tobytes()


def _read_varints(stream: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    ends = np.flatnonzero(stream < 0x80) + 1
    if len(ends) != count or (int(ends[-1]) if count else 0) != len(stream):
        raise CodecError("a code of places is truncated or padded", expected=f"{count} numbers", got=len(ends))
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))[:count]
    lengths = ends - starts
    if count and int(lengths.max()) > _MAX_VARINT_BYTES:
        raise CodecError(
            "a number in a code of places is too long", expected=f"up to {_MAX_VARINT_BYTES} bytes", got=lengths.max()
        )
    numbers = np.zeros(count, np.int64)
    for place in range(_MAX_VARINT_BYTES):
        has = lengths > place
        numbers[has] |= (stream[starts[has] + place] & np.uint8(0x7F)).astype(np.int64) << (7 * place)
    if ((lengths > 1) & (stream[ends - 1] == 0)).any():
        raise CodecError("a number in a code of places has a byte too many", expected="its shortest form")
    return numbers


def _read_bitmap(stream: npt.NDArray[np.uint8], size: int) -> Places:
    if len(stream) != -(-size // 8):
        raise CodecError("a bitmap of places has the wrong size", expected=f"{-(-size // 8)} bytes", got=len(stream))
    return np.flatnonzero(np.unpackbits(stream, bitorder="little"))
