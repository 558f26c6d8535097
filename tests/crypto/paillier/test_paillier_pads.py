"""Pads are uniform, made in any part, and belong to one seed."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.paillier.keys import PrivateKey
from fl_core.crypto.paillier.pads import add_pads, pads, subtract_pads
from fl_core.errors import CryptoError


@settings(deadline=None)
@given(first=st.integers(0, 40), count=st.integers(0, 10))
def test_any_part_of_the_pads_is_the_same(small_key: PrivateKey, first: int, count: int) -> None:
    seed = b"s" * 32
    whole = pads(seed, small_key.public_key, 0, first + count)
    assert pads(seed, small_key.public_key, first, count) == whole[first:]
    assert all(0 <= pad < small_key.public_key.n for pad in whole)


def test_what_is_moved_up_is_moved_down_again_around_n(small_key: PrivateKey) -> None:
    n = int(small_key.public_key.n)
    plaintexts = [0, 1, n - 1]
    pad = pads(os.urandom(32), small_key.public_key, 7, 3)
    assert subtract_pads(add_pads(plaintexts, pad, n), pad, n) == plaintexts


def test_each_bit_of_the_seed_changes_every_pad(small_key: PrivateKey) -> None:
    seed = bytes(32)
    pad = pads(seed, small_key.public_key, 0, 4)
    for bit in range(256):
        other = (1 << bit).to_bytes(32, "big")
        assert not set(pads(other, small_key.public_key, 0, 4)) & set(pad)


def test_pads_are_spread_evenly_over_the_numbers_below_n(small_key: PrivateKey) -> None:
    # Chi-square over 16 cells with 15 degrees of freedom: above 50 by chance once in 80,000 seeds; the seed is fixed.
    n, drawn = int(small_key.public_key.n), pads(b"u" * 32, small_key.public_key, 0, 16_000)
    cells = [0] * 16
    for pad in drawn:
        cells[int(16 * pad // n)] += 1
    assert sum((cell - 1000) ** 2 / 1000 for cell in cells) < 50


@pytest.mark.parametrize("arguments", [(bytes(31), 0, 1), (bytes(32), -1, 1), (bytes(32), 0, -1)])
def test_impossible_pads_are_refused(small_key: PrivateKey, arguments: tuple[bytes, int, int]) -> None:
    seed, first, count = arguments
    with pytest.raises(CryptoError):
        pads(seed, small_key.public_key, first, count)
