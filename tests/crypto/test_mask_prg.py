"""The mask generator against NIST SP 800-38A and a second implementation, and the arithmetic of its ring."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.mask_prg import (
    BLOCK_BYTES,
    RingVector,
    add_mask,
    generate_mask,
    lane_dtype,
    reduce_ring,
    subtract_mask,
)
from fl_core.errors import CryptoError, LocalProtocolError

NIST: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "primitives.json").read_text())["aes128_ctr"]
KEY = bytes(range(16))
LANES = {8: "uint8", 16: "uint16", 32: "uint32", 64: "uint64"}


def by_ecb(key: bytes, first_block: int, blocks: int) -> bytes:
    """The same keystream by its definition: the cipher over counted blocks."""
    counters = b"".join((first_block + place).to_bytes(16, "big") for place in range(blocks))
    return Cipher(algorithms.AES128(key), modes.ECB()).encryptor().update(counters)


@pytest.mark.parametrize("bits", LANES)
def test_the_keystream_equals_nist_sp_800_38a(bits: int) -> None:
    keystream = bytes(a ^ b for a, b in zip(*map(bytes.fromhex, (NIST["plaintext"], NIST["ciphertext"])), strict=True))
    lane = lane_dtype(bits)
    words = np.zeros(len(keystream) // lane.itemsize, lane)
    # A key's counter starts at zero; the standard's is a start far away.
    start = int(NIST["counter"], 16) * 16 // lane.itemsize
    add_mask(words, bytes.fromhex(NIST["key"]), start)
    assert words.tobytes() == keystream


@pytest.mark.parametrize("bits", LANES)
def test_blocks_join_without_a_seam(bits: int) -> None:
    lane = lane_dtype(bits)
    words = 2 * BLOCK_BYTES // lane.itemsize + 5
    mask = generate_mask(KEY, words, bits)
    assert mask.tobytes() == by_ecb(KEY, 0, words * lane.itemsize // 16 + 1)[: words * lane.itemsize]


@given(bits=st.sampled_from(sorted(LANES)), start=st.integers(0, 300), length=st.integers(0, 300))
def test_any_part_of_a_mask_can_be_made_alone(bits: int, start: int, length: int) -> None:
    part: RingVector = np.zeros(length, lane_dtype(bits))
    add_mask(part, KEY, start)
    assert np.array_equal(part, generate_mask(KEY, 600, bits)[start : start + length])


def test_a_part_that_starts_inside_a_cipher_block_continues_over_many_blocks() -> None:
    words = BLOCK_BYTES // 4 * 2 + 7
    part = np.zeros(words, np.uint32)
    add_mask(part, KEY, 3)
    assert np.array_equal(part, generate_mask(KEY, words + 3, 32)[3:])


@given(vector=st.lists(st.integers(0, 2**16 - 1), max_size=50), bits=st.integers(9, 16))
def test_subtracting_undoes_adding_in_every_ring(vector: list[int], bits: int) -> None:
    original = np.array(vector, np.uint16)
    reduce_ring(original, bits)
    masked = original.copy()
    add_mask(masked, KEY)
    reduce_ring(masked, bits)
    subtract_mask(masked, KEY)
    reduce_ring(masked, bits)
    assert np.array_equal(masked, original)


@pytest.mark.parametrize("ring_bits", range(1, 65))
def test_a_ring_lives_in_the_smallest_lane_and_a_mask_stays_in_the_ring(ring_bits: int) -> None:
    lane = lane_dtype(ring_bits)
    assert lane.itemsize * 8 == next(width for width in (8, 16, 32, 64) if width >= ring_bits)
    mask = generate_mask(KEY, 1000, ring_bits)
    assert int(mask.max()) < 1 << ring_bits
    assert int(mask.max()) >= (1 << ring_bits) * 9 // 10


@settings(max_examples=20)
@given(bit=st.integers(0, 127))
def test_every_bit_of_a_key_changes_the_whole_mask(bit: int) -> None:
    other = (int.from_bytes(KEY, "big") ^ 1 << bit).to_bytes(16, "big")
    equal = np.count_nonzero(generate_mask(KEY, 1000, 32) == generate_mask(other, 1000, 32))
    # Two uniform words are equal with chance 2**-32; one equal word among a thousand has a chance below 3e-7.
    assert equal == 0


def test_the_mask_is_uniform_to_the_highest_value() -> None:
    counts = np.bincount(generate_mask(KEY, 256_000, 8), minlength=256)
    statistic = float(((counts - 1000.0) ** 2 / 1000.0).sum())
    # Chi-square of 255 degrees of freedom: beyond 360 with a chance below 2e-5, and the key is fixed.
    assert statistic < 360
    assert counts[255] > 0


@pytest.mark.parametrize("length", [0, 15, 17, 24, 32])
def test_a_key_of_another_length_makes_no_mask(length: int) -> None:
    with pytest.raises(CryptoError, match="16 bytes"):
        add_mask(np.zeros(1, np.uint32), bytes(length))


def test_only_a_contiguous_writable_lane_takes_a_mask() -> None:
    frozen = np.zeros(4, np.uint32)
    frozen.flags.writeable = False
    for refused in (np.zeros(4, np.float32), np.zeros(4, np.int32), np.zeros(8, np.uint32)[::2], frozen):
        with pytest.raises(LocalProtocolError):
            add_mask(refused, KEY)  # type: ignore[arg-type]


def test_a_negative_start_and_a_ring_without_a_lane_are_refused() -> None:
    with pytest.raises(CryptoError, match="before its first"):
        add_mask(np.zeros(1, np.uint32), KEY, -1)
    for ring_bits in (0, 65):
        with pytest.raises(CryptoError, match="1 to 64"):
            lane_dtype(ring_bits)


def test_a_vector_of_another_lane_is_not_reduced() -> None:
    with pytest.raises(CryptoError, match="uint16"):
        reduce_ring(np.zeros(1, np.uint32), 16)


def test_keys_from_different_places_give_unrelated_masks() -> None:
    first, second = generate_mask(os.urandom(16), 4096, 1), generate_mask(os.urandom(16), 4096, 1)
    # Agreements of two random bit strings: 2048 +- 32; eight standard deviations have a chance below 2e-15.
    assert abs(np.count_nonzero(first == second) - 2048) < 256
