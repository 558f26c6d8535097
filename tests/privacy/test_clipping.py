"""Clipping: the bound holds, the direction stays, and what is not finite is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.errors import CodecError
from fl_core.privacy.clipping import clip_coordinates, clip_l2, l2_norm

VECTORS = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(-(2.0**60), 2.0**60, width=32))
BOUNDS = st.floats(1e-3, 1e6)


@given(VECTORS, BOUNDS)
def test_the_norm_is_never_above_its_bound(update: np.ndarray, norm: float) -> None:
    clipped = clip_l2(update, norm)
    assert clipped.dtype == np.float32
    assert l2_norm(clipped) <= norm * (1 + 1e-12)


@given(VECTORS, BOUNDS)
def test_an_update_within_the_bound_is_not_changed_and_a_longer_one_keeps_its_direction(
    update: np.ndarray, norm: float
) -> None:
    length, clipped = l2_norm(update), clip_l2(update, norm)
    if length <= norm:
        np.testing.assert_array_equal(clipped, update)
        return
    np.testing.assert_allclose(clipped, update.astype(np.float64) * (norm / length), rtol=1e-6, atol=1e-37)


def test_a_known_vector() -> None:
    assert clip_l2(np.array([3, 4], np.float32), 2.5).tolist() == [1.5, 2.0]
    assert clip_coordinates(np.array([-3, 0.5, 4], np.float32), 2.0).tolist() == [-2.0, 0.5, 2.0]


def test_a_long_vector_is_summed_without_losing_its_small_coordinates() -> None:
    update = np.full(1_000_000, 1e-3, np.float32)
    assert l2_norm(update) == pytest.approx(1.0, rel=1e-6)


@given(VECTORS, st.floats(1e-3, 1e300))
def test_no_coordinate_is_above_its_bound(update: np.ndarray, bound: float) -> None:
    clipped = clip_coordinates(update, bound)
    assert np.abs(clipped).max(initial=0) <= np.float64(bound) * (1 + 1e-7)
    inside = np.abs(update.astype(np.float64)) < bound * (1 - 1e-6)
    np.testing.assert_array_equal(clipped[inside], update[inside])


def test_the_argument_is_left_alone() -> None:
    update = np.array([3, 4], np.float32)
    for clipped in (clip_l2(update, 1.0), clip_l2(update, 9.0), clip_coordinates(update, 1.0)):
        clipped[:] = 0
    assert update.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(wrong: float) -> None:
    for clip in (clip_l2, clip_coordinates):
        with pytest.raises(CodecError, match="NaN or infinite"):
            clip(np.array([1, wrong], np.float32), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_out_of_range_is_refused(bound: float) -> None:
    for clip in (clip_l2, clip_coordinates):
        with pytest.raises(CodecError, match="out of range"):
            clip(np.zeros(2, np.float32), bound)
