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


@pytest.mark.parametrize("form", [ModelFormat.FP16, ModelFormat.BF16])
def test_steps_too_small_for_the_format_add_up_all_the_same(form: ModelFormat) -> None:
    released = ReleasedModel(form, np.zeros(4, np.float32))
    model = np.ones(4, np.float32)
    for _ in range(1000):
        model = np.asarray(released.take(model + np.float32(1e-4), slice(0, 4)), np.float32)
    np.testing.assert_allclose(model, 1.1, rtol=0.005)
    lost = np.ones(4, np.float32)
    for _ in range(1000):
        lost = round_to_format(lost + np.float32(1e-4), form)
    assert (lost == 1).all(), "without the rest nothing would move"


def test_only_floats_of_32_bits_are_rounded() -> None:
    released = ReleasedModel(ModelFormat.BF16, np.zeros(2, np.float32))
    counts = np.array([123_456_789, 1])
    assert released.take(counts, slice(0, 2)) is counts
