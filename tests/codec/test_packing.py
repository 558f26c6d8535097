"""Packing: decode(encode(x)) == x for every width, a bit order that is fixed, and bytes that cannot be right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.codec.kernels import COMPILED_FROM
from fl_core.codec.packing import pack, pack_blocks, packed_bytes, unpack, unpack_blocks, unpack_into
from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.errors import CodecError

WIDTHS = st.integers(1, 32)


def vector_of(bits: int, length: int, seed: int) -> RingVector:
    drawn = np.random.default_rng(seed).integers(0, 1 << bits, length, dtype=np.uint64)
    return drawn.astype(lane_dtype(bits))


def by_definition(vector: RingVector, bits: int) -> bytes:
    """One big little-endian number, in which coordinate i stands at bit i * bits."""
    number = sum(int(value) << (place * bits) for place, value in enumerate(vector))
    return number.to_bytes(packed_bytes(len(vector), bits), "little")


@given(WIDTHS, st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_unpacking_gives_back_what_was_packed(bits: int, length: int, seed: int) -> None:
    vector = vector_of(bits, length, seed)
    back = unpack(pack(vector, bits), length, bits)
    assert back.dtype == lane_dtype(bits)
    np.testing.assert_array_equal(back, vector)


@given(WIDTHS, st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_the_order_of_the_bits_is_little_endian(bits: int, length: int, seed: int) -> None:
    vector = vector_of(bits, length, seed)
    assert pack(vector, bits).tobytes() == by_definition(vector, bits)


def test_known_bytes() -> None:
    assert pack(np.array([0x1, 0x2, 0x3], np.uint8), 4).tobytes() == bytes([0x21, 0x03])
    assert pack(np.array([0x123456, 0xABCDEF], np.uint32), 24).tobytes() == bytes.fromhex("563412efcdab")


@given(WIDTHS, st.integers(0, 300), st.sampled_from([8, 16, 64, 1024]))
def test_pieces_are_the_whole(bits: int, length: int, block: int) -> None:
    vector = vector_of(bits, length, 1)
    packed = pack(vector, bits).tobytes()
    assert b"".join(piece.tobytes() for piece in pack_blocks(vector, bits, block)) == packed
    back = np.zeros(length, lane_dtype(bits))
    for start, piece in unpack_blocks(packed, length, bits, block):
        back[start : start + len(piece)] = piece
    np.testing.assert_array_equal(back, vector)


@pytest.mark.parametrize("bits", [13, 23])
def test_pieces_of_a_large_vector_are_the_whole(bits: int) -> None:
    vector = vector_of(bits, COMPILED_FROM + 11, 3)
    packed = pack(vector, bits).tobytes()
    assert b"".join(piece.tobytes() for piece in pack_blocks(vector, bits)) == packed
    last = COMPILED_FROM * bits // 8
    np.testing.assert_array_equal(unpack(packed[last:], 11, bits, of=len(vector)), vector[-11:])


@given(WIDTHS, st.integers(0, 300))
def test_a_vector_can_be_unpacked_into_memory_that_is_there(bits: int, length: int) -> None:
    vector = vector_of(bits, length, 1)
    used = vector_of(bits, length, 2)
    assert unpack_into(used, pack(vector, bits), bits) is used
    np.testing.assert_array_equal(used, vector)


def test_memory_of_another_form_is_refused_and_stays_as_it_was() -> None:
    packed = pack(vector_of(23, 8, 1), 23)
    for wrong in (np.zeros(8, np.uint16), np.zeros(16, np.uint32)[::2], np.zeros((2, 4), np.uint32)):
        with pytest.raises(CodecError, match="cannot be unpacked there"):
            unpack_into(wrong, packed, 23)
        assert not wrong.any()
    longer = np.zeros(9, np.uint32)
    with pytest.raises(CodecError, match="wrong size"):
        unpack_into(longer, packed, 23)
    assert not longer.any()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_unpacked(kind: type) -> None:
    assert unpack(kind(bytes([1, 2, 3])), 1, 24).tolist() == [0x030201]


@given(WIDTHS, st.integers(1, 50), st.sampled_from([-1, 1]))
def test_too_few_or_too_many_bytes_are_refused(bits: int, length: int, change: int) -> None:
    with pytest.raises(CodecError, match="wrong size"):
        unpack(bytes(packed_bytes(length, bits) + change), length, bits)


def test_bits_after_the_last_coordinate_are_refused() -> None:
    assert unpack(bytes([0b0000_0111]), 1, 3).tolist() == [7]
    for place in range(3, 8):
        with pytest.raises(CodecError, match="after the last"):
            unpack(bytes([1 << place]), 1, 3)


@pytest.mark.parametrize("bits", [-1, 0, 33])
def test_a_width_out_of_range_is_refused(bits: int) -> None:
    with pytest.raises(CodecError, match="1 to 32"):
        packed_bytes(1, bits)
    with pytest.raises(CodecError, match="1 to 32"):
        pack(np.zeros(1, np.uint32), bits)
    with pytest.raises(CodecError, match="1 to 32"):
        unpack(b"", 0, bits)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(CodecError, match="does not fit"):
        pack(np.array([8], np.uint32), 3)
    with pytest.raises(CodecError, match="unsigned"):
        pack(np.array([1], np.int32), 3)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="one dimension"):
        pack(np.zeros((2, 2), np.uint8), 3)
    with pytest.raises(CodecError, match="multiple of 8"):
        list(pack_blocks(np.zeros(2, np.uint8), 3, block=12))
    with pytest.raises(CodecError, match="length"):
        packed_bytes(-1, 8)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_buffer_that_is_not_aligned_can_be_unpacked(bits: int) -> None:
    vector = vector_of(bits, 9, 2)
    shifted = memoryview(b"x" + pack(vector, bits).tobytes())[1:]
    np.testing.assert_array_equal(unpack(shifted, 9, bits), vector)
