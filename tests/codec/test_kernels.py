"""The compiled kernels give the same bits as numpy, and small vectors do not load numba."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.codec import kernels_numba, kernels_numpy
from fl_core.codec.kernels import COMPILED_FROM, kernels_for
from fl_core.codec.packing import packed_bytes
from fl_core.codec.quantize import _units
from fl_core.crypto.mask_prg import lane_dtype

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
slow_first_call = settings(deadline=None, max_examples=60)


@slow_first_call
@given(
    st.integers(0, 40).flatmap(
        lambda d: st.tuples(hnp.arrays(np.float32, d, elements=FINITE), hnp.arrays(np.uint32, d))
    ),
    st.floats(0, 1),
    st.floats(2.0**-40, 2.0**40),
    st.integers(1, 24),
    st.sampled_from([np.uint32, np.uint64]),
    st.floats(0, 1),
    st.sampled_from([1, 2]),
)
def test_compiled_quantisation_equals_numpy(
    vectors: tuple[np.ndarray, np.ndarray],
    scale: float,
    clip: float,
    bits: int,
    lane: type[np.uint32],
    bound: float,
    odd: int,
) -> None:
    update, coins = vectors
    ours, theirs = np.zeros(len(update), lane), np.ones(len(update), lane)
    top = (1 << bits) - odd if bits > 1 else 1
    kernels_numpy.quantize(update, scale, clip * bound, clip, top, coins, ours)
    kernels_numba.quantize(update, scale, clip * bound, clip, top, coins, theirs)
    assert ours.tobytes() == theirs.tobytes()
    assert ours.max(initial=0) <= top


def short_coins(length: int) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    return st.tuples(hnp.arrays(np.float32, length, elements=FINITE), hnp.arrays(np.uint16, length))


@slow_first_call
@given(
    st.integers(0, 70).flatmap(short_coins),
    st.floats(0, 1),
    st.floats(2.0**-40, 2.0**40),
    st.integers(1, 16),
    st.sampled_from([np.uint8, np.uint16, np.uint32]),
    st.floats(0, 1),
    st.sampled_from([1, 2]),
)
def test_compiled_quantisation_by_short_coins_equals_numpy(
    vectors: tuple[np.ndarray, np.ndarray],
    scale: float,
    clip: float,
    bits: int,
    lane: type[np.uint32],
    part: float,
    odd: int,
) -> None:
    update, coins = vectors
    lane = lane if bits <= 8 * np.dtype(lane).itemsize else np.uint16
    ours, theirs, exact = np.zeros(len(update), lane), np.ones(len(update), lane), np.ones(len(update), np.uint32)
    top = (1 << bits) - odd if bits > 1 else 1
    bound = min(part * clip * scale, clip)
    for kernels, out in ((kernels_numpy, ours), (kernels_numba, theirs)):
        kernels.quantize_short(update, *_units(scale, bound, clip, top), coins, out)
    assert ours.tobytes() == theirs.tobytes()
    assert ours.max(initial=0) <= top
    # A coin of 32 bits with the same upper half decides otherwise only within 2**-16 of a level of a boundary.
    kernels_numpy.quantize(update, scale, bound, clip, top, coins.astype(np.uint32) << np.uint32(16), exact)
    steps = top / (2 * clip)
    level = (np.clip(update.astype(np.float64) * scale, -bound, bound) + clip) * steps + coins * 2.0**-16
    differs = ours.astype(np.int64) != exact
    assert (np.abs(level - np.rint(level))[differs] <= 2.0**-16 * 1.001).all()
    assert (np.abs(ours.astype(np.int64) - exact) <= 1).all()


@slow_first_call
@given(hnp.arrays(np.float32, st.integers(0, 70), elements=st.floats(width=32)))
def test_the_largest_magnitude_tells_what_is_not_finite(update: np.ndarray) -> None:
    largest = kernels_numba.largest_magnitude(update)
    assert largest == kernels_numpy.largest_magnitude(update)
    assert (largest < kernels_numpy.INFINITY) == np.isfinite(update).all()


@slow_first_call
@given(hnp.arrays(np.uint32, st.integers(0, 40)), st.floats(-1e6, 1e6), st.floats(1e-9, 1e3))
def test_compiled_dequantisation_equals_numpy(levels: np.ndarray, offset: float, step: float) -> None:
    ours, theirs = np.zeros(len(levels), np.float32), np.ones(len(levels), np.float32)
    kernels_numpy.dequantize_sum(levels, offset, step, ours)
    kernels_numba.dequantize_sum(levels, offset, step, theirs)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("bits", range(1, 33))
def test_compiled_packing_equals_numpy(bits: int) -> None:
    for length in (0, 1, 7, 8, 9, 1000):
        drawn = np.random.default_rng(length).integers(0, 1 << bits, length, dtype=np.uint64)
        vector = drawn.astype(lane_dtype(bits))
        ours, theirs = (np.zeros(packed_bytes(length, bits), np.uint8) for _ in range(2))
        kernels_numpy.pack(vector, bits, ours)
        kernels_numba.pack(vector, bits, theirs)
        assert ours.tobytes() == theirs.tobytes()
        back, again = np.zeros_like(vector), np.zeros_like(vector)
        kernels_numpy.unpack(ours, bits, back)
        kernels_numba.unpack(ours, bits, again)
        assert back.tobytes() == again.tobytes() == vector.tobytes()


def test_numpy_blocks_join_without_a_seam() -> None:
    length = 2 * kernels_numpy.BLOCK + 3
    vector = np.random.default_rng(5).integers(0, 1 << 11, length).astype(np.uint16)
    ours, theirs = (np.zeros(packed_bytes(length, 11), np.uint8) for _ in range(2))
    kernels_numpy.pack(vector, 11, ours)
    kernels_numba.pack(vector, 11, theirs)
    assert ours.tobytes() == theirs.tobytes()
    back = np.zeros_like(vector)
    kernels_numpy.unpack(ours, 11, back)
    np.testing.assert_array_equal(back, vector)


def test_only_large_vectors_are_worth_compiling() -> None:
    assert kernels_for(COMPILED_FROM - 1) is kernels_numpy
    assert kernels_for(COMPILED_FROM) is kernels_numba


def test_importing_the_codec_does_not_import_numba() -> None:
    code = (
        "import sys, numpy as np; from fl_core.codec import packing, update_codec; "
        "packing.pack(np.zeros(100, np.uint8), 3); print('numba' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"
