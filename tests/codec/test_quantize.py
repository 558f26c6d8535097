"""Stochastic quantisation: on the grid exactly, between its lines without bias, at its ends clamped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.codec.quantize import dequantize_sum, quantize, quantize_into
from fl_core.errors import CodecError


def halves(length: int) -> np.ndarray:
    return np.full(length, 0.5, np.float32)


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(0, 2**24 - 1), st.floats(2.0**-10, 2.0**10, width=32))
def test_a_level_survives_being_decoded_and_encoded(bits: int, level: int, clip: float) -> None:
    levels = np.array([level % (1 << bits)], np.uint32)
    value = dequantize_sum(levels, 1, clip, bits)
    # float32 resolves 24-bit levels near the ends of the range only to about one level.
    slack = 0 if bits <= 20 else 1
    again = quantize(value, clip, bits, halves(1))
    assert abs(int(again[0]) - int(levels[0])) <= slack


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, 20, elements=st.floats(-4, 4, width=32)),
    hnp.arrays(np.float32, 20, elements=st.floats(0, 1, exclude_max=True, width=32)),
    st.integers(1, 16),
)
def test_the_error_is_below_one_level(update: np.ndarray, uniform: np.ndarray, bits: int) -> None:
    clip = 2.0
    levels = quantize(update, clip, bits, uniform)
    assert levels.dtype == np.uint32
    assert levels.max() < 1 << bits
    width = 2 * clip / ((1 << bits) - 1)
    error = np.abs(dequantize_sum(levels, 1, clip, bits) - np.clip(update, -clip, clip))
    assert error.max() <= width * (1 + 1e-6) + 1e-6


def test_the_mean_over_the_coins_is_the_input() -> None:
    # 200,000 coins per value; the standard error is at most width / 2 / sqrt(200,000), about 0.0011 widths.
    # Five of them over 9 values: chance of a false alarm below 1 in 100,000. The seed is fixed besides.
    coins = np.random.default_rng(7).random(200_000, dtype=np.float32)
    width = 2 * 1.0 / 15
    for value in np.linspace(-1, 1, 9):
        levels = quantize(np.full(len(coins), value, np.float32), 1.0, 4, coins)
        mean = float(dequantize_sum(levels, 1, 1.0, 4).mean(dtype=np.float64))
        assert abs(mean - value) < 0.006 * width


def test_the_ends_of_the_range_are_the_ends_of_the_levels() -> None:
    update = np.array([-9, -1, 1, 9], np.float32)
    for coin in (0.0, float(np.nextafter(np.float32(1), np.float32(0)))):
        levels = quantize(update, 1.0, 24, np.full(4, coin, np.float32))
        assert levels.tolist() == [0, 0, 2**24 - 1, 2**24 - 1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(CodecError, match="at 1"):
        quantize(np.array([0, wrong], np.float32), 1.0, 8, halves(2))


@pytest.mark.parametrize(("clip", "bits"), [(0.0, 8), (-1.0, 8), (np.nan, 8), (np.inf, 8), (1.0, 0), (1.0, 25)])
def test_numbers_out_of_range_are_refused(clip: float, bits: int) -> None:
    with pytest.raises(CodecError, match="out of range"):
        quantize(np.zeros(1, np.float32), clip, bits, halves(1))
    with pytest.raises(CodecError, match="out of range"):
        dequantize_sum(np.zeros(1, np.uint32), 1, clip, bits)


def test_coins_of_another_length_are_refused() -> None:
    with pytest.raises(CodecError, match="length"):
        quantize(np.zeros(2, np.float32), 1.0, 8, halves(3))


def test_a_sum_that_is_too_large_is_refused() -> None:
    assert dequantize_sum(np.array([30], np.uint32), 2, 1.0, 4).tolist() == [2.0]
    with pytest.raises(CodecError, match="too large"):
        dequantize_sum(np.array([31], np.uint32), 2, 1.0, 4)


@pytest.mark.parametrize("bits", [1, 4, 8, 9, 16])
def test_the_mean_over_all_short_coins_is_the_input_to_a_part_of_a_level(bits: int) -> None:
    top, span, scale, bound = (1 << bits) - 1, 0.75, 0.37, 2.0 * 0.37
    coins = np.arange(1 << 16, dtype=np.uint16)
    levels = np.empty(len(coins), np.uint32)
    for value in np.random.default_rng(bits).uniform(-3, 3, 40).astype(np.float32):
        update = np.full(len(coins), value)
        quantize_into(update, scale, 2.0, span, top, coins, levels, kernel_length=len(coins))
        wanted = (np.clip(float(value) * scale, -bound, bound) + span) * top / (2 * span)
        assert abs(levels.mean() - wanted) <= 2.0**-16
        assert np.ptp(levels) <= 1


def test_short_coins_are_refused_where_they_are_too_coarse() -> None:
    coins, out = np.zeros(1, np.uint16), np.zeros(1, np.uint32)
    with pytest.raises(CodecError, match="too short"):
        quantize_into(np.zeros(1, np.float32), 1.0, 1.0, 1.0, 1 << 16, coins, out, kernel_length=1)
