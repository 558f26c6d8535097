"""Differences of models: exact for every dtype, small where little changed, refused when damaged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.codec.model_difference import decode_difference, encode_difference
from fl_core.codec.tensors import DTYPES, TensorManifest, TensorSpec
from fl_core.errors import CodecError

MANIFEST = TensorManifest(tuple(TensorSpec(f"t{dtype}", dtype, (5, 7)) for dtype in DTYPES))
LARGE = TensorManifest((TensorSpec("empty", "float32", (0,)), TensorSpec("w", "float32", (100_000,))))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_model_comes_back_bit_for_bit(seed: int) -> None:
    draw = np.random.default_rng(seed)
    after, before = draw.bytes(MANIFEST.nbytes), draw.bytes(MANIFEST.nbytes)
    assert decode_difference(encode_difference(after, before, MANIFEST), before, MANIFEST).tobytes() == after


def test_it_is_small_where_little_changed_and_never_much_larger_than_the_model() -> None:
    draw = np.random.default_rng(1)
    before = draw.standard_normal(100_000).astype(np.float32)
    step = draw.standard_normal(100_000).astype(np.float32) * np.float32(1e-3)
    dense, sparse = before + step, before + step * (draw.random(100_000) < 0.01)
    sizes = [len(encode_difference(model.tobytes(), before.tobytes(), LARGE)) for model in (dense, sparse, before)]
    assert sizes[0] < 0.85 * LARGE.nbytes
    assert sizes[1] < 0.05 * LARGE.nbytes
    assert sizes[2] < 1000
    assert len(encode_difference(draw.bytes(LARGE.nbytes), before.tobytes(), LARGE)) < 1.01 * LARGE.nbytes


def test_to_another_base_it_is_another_model() -> None:
    after, before, other = (np.random.default_rng(seed).bytes(MANIFEST.nbytes) for seed in range(3))
    assert decode_difference(encode_difference(after, before, MANIFEST), other, MANIFEST).tobytes() != after


def test_what_is_damaged_is_refused() -> None:
    model = bytes(MANIFEST.nbytes)
    code = encode_difference(model, model, MANIFEST)
    for wrong in (
        b"",
        b"nonsense",
        code[:-1],
        code + b"x",
        encode_difference(bytes(LARGE.nbytes), bytes(LARGE.nbytes), LARGE),
    ):
        with pytest.raises(CodecError):
            decode_difference(wrong, model, MANIFEST)
    with pytest.raises(CodecError, match="wrong size"):
        decode_difference(code, model[:-1], MANIFEST)
    with pytest.raises(CodecError, match="wrong size"):
        encode_difference(model + b"x", model, MANIFEST)
