"""What an upload is on the wire of a plain round: the same coordinates as under masks, in fewer bytes.

Without a mask a coordinate needs the bits of one site, not those of the ring, and what is alike needs to be said once.
Four forms exist, and the site takes the shortest: levels packed; the same through zstd; the places and levels of those
that are not zero, for a codec that sends the largest; and a sign for each coordinate, for a codec of two values. Every
form is exact: what comes out is the vector that went in, bit for bit.

    kind, 1 byte | header, ring_bits each | levels, `bits` each, or what stands for them
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt
import zstandard

from fl_core.codec.indices import decode_places, encode_places, most_code_bytes
from fl_core.codec.packing import Buffer, pack, packed_bytes, unpack
from fl_core.codec.spec import CodecSpec, Levels, Selection
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import CodecError

ZSTD_LEVEL = 1
_COUNT_BYTES, _SIGN_BYTES = 8, 4
_ENTROPY_WORTH_TRYING = 1 << 10
"""Bytes below which zstd gains nothing over its own frame."""


class PayloadKind(IntEnum):
    """How the levels are written."""

    PACKED = 0
    ZSTD = 1
    PLACES = 2
    SIGNS = 3


def largest_payload(spec: CodecSpec, size: int, max_weight: int) -> int:
    """Most bytes that a payload can have.

    Args:
        spec: of the plan.
        size: coordinates of the model.
        max_weight: of the plan.
    """
    body, begin = spec.body(size), 1 + packed_bytes(spec.header(max_weight), spec.ring_bits)
    if spec.levels is Levels.SIGN and body:
        return begin + _SIGN_BYTES + packed_bytes(body, 1)
    packed = packed_bytes(body, spec.bits)
    if spec.selection is not Selection.TOP:
        return begin + packed
    kept = spec.kept(size)
    return begin + min(packed, _COUNT_BYTES + packed_bytes(kept, spec.bits) + most_code_bytes(kept, body))


def write_payload(spec: CodecSpec, max_weight: int, upload: RingVector) -> npt.NDArray[np.uint8]:
    """Write an upload in the shortest of the forms.

    Args:
        spec: of the plan.
        max_weight: of the plan.
        upload: (length,) what `UpdateCodec.encode` gave.

    Returns:
        (n,) uint8.

    Raises:
        CodecError: a coordinate does not fit its bits.
    """
    split = spec.header(max_weight)
    header, levels = upload[:split], _narrow(spec, upload[split:])
    kind, body = _write_levels(spec, levels)
    parts = [np.array([kind], np.uint8), pack(header, spec.ring_bits), np.frombuffer(body, np.uint8)]
    return np.concatenate(parts)


def read_payload(spec: CodecSpec, size: int, max_weight: int, payload: Buffer) -> RingVector:
    """Read back what `write_payload` wrote.

    Args:
        spec: of the plan.
        size: coordinates of the model.
        max_weight: of the plan.
        payload: all of it.

    Returns:
        (length,) in the lane of ring_bits.

    Raises:
        CodecError: the payload is truncated or padded, of an unknown kind, or says something impossible.
    """
    stream = np.frombuffer(payload, np.uint8)
    split = spec.header(max_weight)
    begin = 1 + packed_bytes(split, spec.ring_bits)
    if len(stream) < begin:
        raise CodecError("a payload is truncated", expected=f"{begin} bytes and more", got=len(stream))
    out: RingVector = np.empty(spec.length(size, max_weight), lane_dtype(spec.ring_bits))
    out[:split] = unpack(stream[1:begin], split, spec.ring_bits)
    _read_levels(spec, size, int(stream[0]), stream[begin:].data, out[split:])
    return out


def _narrow(spec: CodecSpec, levels: RingVector) -> RingVector:
    """The levels in the lane of one site's bits."""
    if len(levels) and int(levels.max()) > spec.top:
        raise CodecError("a level does not fit its bits", expected=f"up to {spec.top}", got=int(levels.max()))
    return levels.astype(lane_dtype(spec.bits))


def _write_levels(spec: CodecSpec, levels: RingVector) -> tuple[PayloadKind, Buffer]:
    if spec.levels is Levels.SIGN and len(levels):
        return PayloadKind.SIGNS, _write_signs(spec, levels)
    packed = pack(levels, spec.bits)
    best: tuple[PayloadKind, Buffer] = (PayloadKind.PACKED, packed)
    if spec.selection is Selection.TOP:
        sparse = _write_places(spec, levels)
        best = min(best, (PayloadKind.PLACES, sparse), key=lambda form: len(form[1]))
    if len(packed) >= _ENTROPY_WORTH_TRYING and best[0] is PayloadKind.PACKED:
        compressed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(packed.tobytes())
        best = min(best, (PayloadKind.ZSTD, compressed), key=lambda form: len(form[1]))
    return best


def _read_levels(spec: CodecSpec, size: int, kind: int, body: memoryview, out: RingVector) -> None:
    match kind:
        case PayloadKind.PACKED:
            out[:] = unpack(body, len(out), spec.bits)
        case PayloadKind.ZSTD:
            out[:] = unpack(_decompress(body, packed_bytes(len(out), spec.bits)), len(out), spec.bits)
        case PayloadKind.PLACES if spec.selection is Selection.TOP:
            _read_places(spec, spec.kept(size), body, out)
        case PayloadKind.SIGNS if spec.levels is Levels.SIGN:
            _read_signs(spec, body, out)
        case _:
            raise CodecError("a payload is of a kind that its codec does not have", got=kind)


def _write_places(spec: CodecSpec, levels: RingVector) -> Buffer:
    """Levels of the places that are not zero, packed; then the places. How many is in front, in eight bytes."""
    places = np.flatnonzero(levels != spec.top // 2)
    count = len(places).to_bytes(_COUNT_BYTES, "little")
    return count + pack(levels[places], spec.bits).tobytes() + encode_places(places, len(levels))


def _read_places(spec: CodecSpec, most: int, body: memoryview, out: RingVector) -> None:
    count = int.from_bytes(body[:_COUNT_BYTES], "little")
    if len(body) < _COUNT_BYTES or count > most:
        raise CodecError("a payload has too many coordinates", expected=f"up to {most}", got=count)
    end = _COUNT_BYTES + packed_bytes(count, spec.bits)
    if len(body) < end:
        raise CodecError("a payload is truncated", expected=f"{end} bytes and more", got=len(body))
    levels, places = unpack(body[_COUNT_BYTES:end], count, spec.bits), decode_places(body[end:], count, len(out))
    out.fill(spec.top // 2)
    out[places] = levels


def _write_signs(spec: CodecSpec, levels: RingVector) -> Buffer:
    """The higher of the two levels, in four bytes, and a bit for each coordinate that has the lower one."""
    high = max(int(levels[0]), spec.top - int(levels[0]))
    is_low = levels != high
    if not np.isin(levels, (high, spec.top - high)).all():
        raise CodecError("an upload of signs has more than two levels", expected="two", got="more")
    return high.to_bytes(_SIGN_BYTES, "little") + np.packbits(is_low, bitorder="little").tobytes()


def _read_signs(spec: CodecSpec, body: memoryview, out: RingVector) -> None:
    high = int.from_bytes(body[:_SIGN_BYTES], "little")
    if len(body) < _SIGN_BYTES or not spec.top // 2 <= high <= spec.top:
        raise CodecError("the level of a sign is out of range", expected=f"{spec.top // 2} to {spec.top}", got=high)
    signs = unpack(body[_SIGN_BYTES:], len(out), 1)
    out[:] = np.where(signs, spec.top - high, high)


def _decompress(body: memoryview, expected: int) -> bytes:
    # The frame must say the size that the plan says, so that nothing can swell.
    try:
        parameters = zstandard.get_frame_parameters(body)
        if parameters.content_size != expected:
            raise CodecError("a compressed payload has the wrong size", expected=expected, got=parameters.content_size)
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        data = reader.decompress(body)
    except zstandard.ZstdError as error:
        raise CodecError("a compressed payload cannot be read", expected="one zstd frame") from error
    if len(data) != expected or not reader.eof or reader.unused_data:
        raise CodecError("a compressed payload is truncated or padded", expected=f"{expected} bytes", got=len(data))
    return data
