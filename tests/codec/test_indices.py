"""Codes of places: read back exactly, never longer than a bitmap, and refused when a bit of them is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.codec.indices import decode_places, encode_places
from fl_core.errors import CodecError


def places_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def by_definition(places: list[int]) -> bytes:
    """Kind 0, and each gap as LEB128, one after the other."""
    out, before = bytearray([0]), -1
    for place in places:
        gap, before = place - before - 1, place
        while gap >= 128:
            out.append(gap & 127 | 128)
            gap >>= 7
        out.append(gap)
    return bytes(out)


@given(st.integers(0, 5000), st.data())
def test_places_come_back(size: int, data: st.DataObject) -> None:
    places = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=300))) if size else [], np.int64)
    code = encode_places(places, size)
    np.testing.assert_array_equal(decode_places(code, len(places), size), places)
    assert len(code) <= 1 + -(-size // 8)


@given(st.sets(st.integers(0, 2**33 - 1), max_size=50))
def test_few_places_among_many_are_written_as_gaps(chosen: set[int]) -> None:
    places = sorted(chosen)
    code = encode_places(np.array(places, np.int64), 2**33)
    assert code == by_definition(places)
    assert decode_places(code, len(places), 2**33).tolist() == places


def test_many_places_are_a_bitmap() -> None:
    assert encode_places(np.arange(0, 64, 2), 64) == bytes([1] + [0b01010101] * 8)


@pytest.mark.parametrize("wrong", [places_of(3, 3), places_of(4, 3), places_of(-1), places_of(10), places_of(1, 10)])
def test_places_that_are_no_set_in_order_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(CodecError, match=r"order|range"):
        encode_places(wrong, 10)
    with pytest.raises(CodecError, match="int64"):
        encode_places(wrong.astype(np.float64), 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "count", "size", "words"),
    [
        (b"", 0, 10, "empty"),
        (b"\x02\x01", 1, 10, "unknown kind"),
        (b"\x00", 1, 10, "truncated or padded"),
        (b"\x00\x81", 1, 1000, "truncated or padded"),
        (b"\x00\x01\x01", 1, 10, "truncated or padded"),
        (b"\x00\x01", 2, 10, "truncated or padded"),
        (b"\x00\x0a", 1, 10, "out of range"),
        (b"\x00\x05\x05", 2, 10, "out of range"),
        (b"\x00\x81\x00", 1, 1000, "byte too many"),
        (b"\x00\x80\x80\x80\x80\x80\x01", 1, 1000, "too long"),
        (b"\x01\x03", 2, 16, "wrong size"),
        (b"\x01\x03\x00\x00", 2, 16, "wrong size"),
        (b"\x01\x03\x00", 3, 16, "number of places"),
        (b"\x01\x00\x80", 1, 15, "out of range"),
    ],
)
def test_a_code_that_is_wrong_is_refused(code: bytes, count: int, size: int, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        decode_places(code, count, size)


@given(st.binary(max_size=40), st.integers(0, 20), st.integers(0, 100))
def test_any_bytes_are_a_set_in_order_or_refused(code: bytes, count: int, size: int) -> None:
    try:
        places = decode_places(code, count, size)
    except CodecError:
        return
    assert len(places) == count
    assert (np.diff(places) > 0).all()
    assert not count or (places[0] >= 0 and places[-1] < size)
