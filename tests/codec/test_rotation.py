"""The rotation: it keeps lengths, is undone exactly as far as float32 goes, and makes spikes flat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.codec import kernels_hadamard, kernels_hadamard_numpy
from fl_core.codec.kernels import COMPILED_FROM
from fl_core.codec.rotation import padded_length, rotate, rotation_block, unrotate
from fl_core.crypto.mask_prg import generate_mask
from fl_core.errors import CodecError, CryptoError

KEY = bytes(range(16))


def normal(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def hadamard_matrix(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_a_rotated_vector_can_be_turned_back(length: int, seed: int) -> None:
    vector = normal(length, seed)
    rotated = rotate(vector, KEY)
    assert len(rotated) == padded_length(length)
    np.testing.assert_allclose(np.linalg.norm(rotated), np.linalg.norm(vector), rtol=1e-5)
    np.testing.assert_allclose(unrotate(rotated, KEY, length), vector, atol=1e-5)


@pytest.mark.parametrize("length", [COMPILED_FROM, 300_001, 1 << 20])
def test_a_large_vector_can_be_turned_back(length: int) -> None:
    vector = normal(length)
    np.testing.assert_allclose(unrotate(rotate(vector, KEY), KEY, length), vector, atol=1e-5)


def test_it_is_the_hadamard_matrix_times_the_signs_of_the_keystream() -> None:
    vector = normal(64)
    assert rotation_block(64) == 64
    bits = np.unpackbits(generate_mask(KEY, 8, 8), bitorder="little")
    expected = hadamard_matrix(64) @ (vector * (1.0 - 2.0 * bits))
    np.testing.assert_allclose(rotate(vector, KEY), expected, atol=1e-5)


@settings(deadline=None)
@given(st.integers(4, 18), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_compiled_rotation_equals_numpy(power: int, blocks: int, seed: int) -> None:
    block = 1 << power
    ours = normal(blocks * block, seed)
    theirs = ours.copy()
    signs = np.random.default_rng(seed).integers(0, 256, len(ours) // 8).astype(np.uint8)
    for kernels, vector in ((kernels_hadamard, ours), (kernels_hadamard_numpy, theirs)):
        kernels.flip_signs(vector, signs)
        kernels.hadamard(vector, block)
    assert ours.tobytes() == theirs.tobytes()


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.data())
def test_compiled_dealing_equals_numpy(blocks: int, hands: int, data: st.DataObject) -> None:
    padded = 16 * blocks * hands
    length = data.draw(st.integers(0, padded))
    vector = normal(length)
    ours, theirs = np.ones(padded, np.float32), np.zeros(padded, np.float32)
    kernels_hadamard.deal(vector, blocks, ours)
    kernels_hadamard_numpy.deal(vector, blocks, theirs)
    assert ours.tobytes() == theirs.tobytes()
    for kernels in (kernels_hadamard, kernels_hadamard_numpy):
        back = np.ones(length, np.float32)
        kernels.gather(ours, blocks, back)
        assert back.tobytes() == vector.tobytes()


def test_a_spike_is_spread_over_its_block() -> None:
    spike = np.zeros(1 << 12, np.float32)
    spike[77] = 64.0
    np.testing.assert_array_equal(np.abs(rotate(spike, KEY)), np.ones(1 << 12, np.float32))


def test_a_layer_that_is_louder_than_the_rest_is_spread_over_all_blocks() -> None:
    vector = normal(1 << 18)
    vector[: 1 << 14] *= 100
    widths = rotate(vector, KEY).reshape(-1, rotation_block(1 << 18)).std(axis=1)
    assert len(widths) == 4
    assert widths.max() < 1.1 * widths.min()


def test_another_key_gives_another_rotation_that_does_not_turn_back() -> None:
    vector, other = normal(512), bytes(16)
    assert np.abs(rotate(vector, KEY) - rotate(vector, other)).max() > 0.1
    assert np.abs(unrotate(rotate(vector, KEY), other, 512) - vector).max() > 0.1


@given(st.integers(0, 1 << 22))
def test_padding_is_small_and_blocks_fit(length: int) -> None:
    block, padded = rotation_block(length), padded_length(length)
    assert padded % block == 0
    assert 0 <= padded - length < max(16, length // 32 + 1)


def test_what_cannot_be_rotated_is_refused() -> None:
    with pytest.raises(CodecError, match="one dimension of float32"):
        rotate(np.zeros((2, 2), np.float32), KEY)
    with pytest.raises(CodecError, match="one dimension of float32"):
        unrotate(np.zeros(16), KEY, 16)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="wrong length"):
        unrotate(np.zeros(16, np.float32), KEY, 17)
    with pytest.raises(CodecError, match="impossible length"):
        padded_length(-1)
    with pytest.raises(CryptoError, match="16 bytes"):
        rotate(np.zeros(16, np.float32), b"short")
