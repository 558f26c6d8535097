"""Released formats: nearest values, and nothing lost over the versions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_core.codec.model_format import ModelFormat, round_to_format
from fl_core.errors import CodecError
from services.coordinator.released import ReleasedModel

MODERATE = st.lists(st.floats(-60_000, 60_000, width=32), max_size=40)


@given(MODERATE)
def test_bf16_is_that_of_torch_and_fp16_that_of_numpy(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(round_to_format(values, ModelFormat.BF16), expected)
    half = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(round_to_format(values, ModelFormat.FP16), half)
    np.testing.assert_array_equal(round_to_format(values, ModelFormat.EXACT), values)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CodecError, match="fp16"):
        round_to_format(np.array([1e6], np.float32), ModelFormat.FP16)
    with pytest.raises(CodecError, match="bf16"):
        round_to_format(np.array([np.finfo(np.float32).max], np.float32), ModelFormat.BF16)


@pytest.mark.parametrize("form", list(ModelFormat)[1:])
def test_steps_too_small_for_the_format_add_up_all_the_same(form: ModelFormat) -> None:
    released = ReleasedModel(form, np.zeros(4, np.float32))
    model = np.ones(4, np.float32)
    # A coordinate that moves far makes the levels of a difference too coarse for the others.
    step = np.array([1e-4, 1e-4, 1e-4, 0.1], np.float32)
    for _ in range(1000):
        model = np.asarray(released.take(model, model + step, slice(0, 4)), np.float32)
    np.testing.assert_allclose(model, [1.1, 1.1, 1.1, 101], rtol=0.01)
    lost = np.ones(4, np.float32)
    for _ in range(1000):
        fresh = ReleasedModel(form, np.zeros(4, np.float32))
        lost = np.asarray(fresh.take(lost, lost + step, slice(0, 4)), np.float32)
    assert (lost[:3] == 1).all() or form is ModelFormat.INT8_DIFFERENCE, "without the rest nothing would move"


@pytest.mark.parametrize("form", [ModelFormat.BF16, ModelFormat.INT8_DIFFERENCE])
def test_only_floats_of_32_bits_are_rounded(form: ModelFormat) -> None:
    released = ReleasedModel(form, np.zeros(2, np.float32))
    counts = np.array([123_456_789, 1])
    assert released.take(counts - 1, counts, slice(0, 2)) is counts


def test_a_difference_rounds_no_single_values() -> None:
    with pytest.raises(CodecError, match="difference"):
        round_to_format(np.zeros(1, np.float32), ModelFormat.INT8_DIFFERENCE)
