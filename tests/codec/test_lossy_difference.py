"""A version made of few bits: the reader has the writer's bit for bit, close to what was wanted; nothing is lost."""

from collections.abc import Sequence

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.codec.lossy_difference import BLOCK, DifferenceWriter, apply_difference
from fl_core.codec.tensors import TensorManifest, TensorSpec, manifest_of
from fl_core.errors import CodecError

MODERATE = st.floats(-(2.0**60), 2.0**60, width=32)


def vector(size: int, seed: int, width: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * width).astype(np.float32)


def written(bits: int, before: np.ndarray, wanted: np.ndarray, part: int = BLOCK) -> tuple[np.ndarray, bytes]:
    writer = DifferenceWriter(bits)
    parts = [
        writer.round(before[start : start + part], wanted[start : start + part])
        for start in range(0, len(before), part)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts]), writer.finish()


def flat(size: int) -> TensorManifest:
    return TensorManifest((TensorSpec("w", "float32", (size,)),))


@settings(deadline=None)
@given(
    st.sampled_from([0, 1, 255, 256, 257, 600]).flatmap(
        lambda d: st.tuples(*(hnp.arrays(np.float32, d, elements=MODERATE) for _ in range(2)))
    ),
    st.integers(2, 8),
)
def test_the_reader_has_the_version_of_the_writer(vectors: tuple[np.ndarray, np.ndarray], bits: int) -> None:
    before, wanted = vectors
    made, code = written(bits, before, wanted)
    read = apply_difference(code, before.tobytes(), flat(len(before)))
    assert read.tobytes() == made.tobytes()


@pytest.mark.parametrize(("bits", "most_bytes"), [(8, 1.02), (4, 0.47)])
def test_a_coordinate_is_off_by_half_a_level_and_has_few_bits(bits: int, most_bytes: float) -> None:
    size = 100_000
    before = vector(size, 1)
    wanted = before + vector(size, 2, 0.01)
    made, code = written(bits, before, wanted, part=1 << 16)
    scales = np.array([np.abs((wanted - before)[start : start + BLOCK]).max() for start in range(0, size, BLOCK)]) / (
        (1 << (bits - 1)) - 1
    )
    assert (np.abs(made - wanted) <= 0.501 * np.repeat(scales, BLOCK)[:size] + 1e-6).all()
    assert len(code) < most_bytes * size


def test_a_part_that_stays_costs_next_to_nothing() -> None:
    before = vector(100_000, 1)
    wanted = before.copy()
    wanted[:100] += np.float32(0.1)
    made, code = written(8, before, wanted)
    assert len(code) < 500
    assert (made[BLOCK:] == before[BLOCK:]).all()


def test_product_and_sum_are_each_rounded_to_float32() -> None:
    # float64 holds both exactly, or closely enough that rounding twice is rounding once: no processor may fuse them.
    before, wanted = vector(1000, 1), vector(1000, 2)
    made, code = written(8, before, wanted)
    content = zstandard.ZstdDecompressor().decompress(code)
    levels = np.frombuffer(content, np.int8, 1000)
    scales = np.repeat(np.frombuffer(content, "<f4", 4, 1000), BLOCK)[:1000]
    steps = (levels.astype(np.float64) * scales.astype(np.float64)).astype(np.float32)
    expected = (before.astype(np.float64) + steps.astype(np.float64)).astype(np.float32)
    assert made.tobytes() == expected.tobytes()


def test_what_is_no_float32_is_exact() -> None:
    before = {"h": np.array([1, 2], np.float16), "w": vector(300, 1), "n": np.array([3], np.int64)}
    after = {"h": np.array([1.5, 2], np.float16), "w": vector(300, 2), "n": np.array([4], np.int64)}
    manifest = manifest_of(before)
    writer = DifferenceWriter(8)
    writer.copy(before["h"].tobytes(), after["h"].tobytes())
    made = writer.round(before["w"], after["w"])
    writer.copy(before["n"].tobytes(), after["n"].tobytes())
    read = apply_difference(writer.finish(), b"".join(array.tobytes() for array in before.values()), manifest)
    assert read.tobytes() == after["h"].tobytes() + made.tobytes() + after["n"].tobytes()


@pytest.mark.parametrize("moves", [[np.nan], [np.inf], [3e38]])
def test_a_move_that_is_not_finite_is_refused(moves: Sequence[float]) -> None:
    with pytest.raises(CodecError, match="farther"):
        DifferenceWriter(8).round(np.array([-3e38], np.float32), np.array(moves, np.float32))


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(CodecError, match="bits"):
        DifferenceWriter(bits)


def test_a_damaged_code_is_refused() -> None:
    before, wanted = vector(1000, 1), vector(1000, 2)
    _, code = written(8, before, wanted)
    for damaged in (code[:-1], code + b"\0", b"", b"nonsense", code[4:]):
        with pytest.raises(CodecError):
            apply_difference(damaged, before.tobytes(), flat(1000))
    for size in (999, 1001):
        with pytest.raises(CodecError, match="wrong size"):
            apply_difference(code, before[:1].tobytes() * size, flat(size))
    with pytest.raises(CodecError, match="model has the wrong size"):
        apply_difference(code, before[:-1].tobytes(), flat(1000))
