"""The largest coordinates are those that sorting finds, whatever the vector looks like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.codec.kernels import COMPILED_FROM
from fl_core.codec.largest import largest_places
from fl_core.errors import CodecError

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def by_sorting(vector: np.ndarray, count: int) -> np.ndarray:
    order = np.lexsort((np.arange(len(vector)), -np.abs(vector.astype(np.float64))))
    return np.sort(order[:count])


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 200), elements=FINITE), st.data())
def test_they_are_those_that_sorting_finds(vector: np.ndarray, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(vector)))
    np.testing.assert_array_equal(largest_places(vector, count), by_sorting(vector, count))


@pytest.mark.parametrize("count", [0, 1, 3000, COMPILED_FROM // 2, COMPILED_FROM])
@pytest.mark.parametrize("shape", ["normal", "equal", "sparse", "only in the sample", "never in the sample"])
def test_a_large_vector_of_any_shape_is_searched_right(shape: str, count: int) -> None:
    draw = np.random.default_rng(1)
    vector = draw.standard_normal(COMPILED_FROM).astype(np.float32)
    if shape == "equal":
        vector[:] = -1.5
    if shape == "sparse":
        vector[draw.random(len(vector)) < 0.999] = 0
    if shape == "only in the sample":
        vector[::61] *= 1000
    if shape == "never in the sample":
        vector[::61] = 0
    np.testing.assert_array_equal(largest_places(vector, count), by_sorting(vector, count))


def test_what_cannot_be_searched_is_refused() -> None:
    for count in (-1, 4):
        with pytest.raises(CodecError, match="0 to 3"):
            largest_places(np.zeros(3, np.float32), count)
    with pytest.raises(CodecError, match="one dimension of float32"):
        largest_places(np.zeros(3), 1)  # type: ignore[arg-type]
