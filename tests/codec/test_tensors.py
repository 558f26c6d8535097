"""Named tensors, the flat vector that stands for them, and the errors that name a tensor."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_core.codec.tensors import (
    DTYPES,
    MAX_ELEMENTS,
    TensorManifest,
    TensorSpec,
    add_update,
    difference,
    flatten,
    manifest_of,
    unflatten,
)
from fl_core.errors import CodecError

Array = npt.NDArray[Any]
SMALL = {"float16", "float32", "int8", "int16", "uint8", "bool"}


def arrays(dtypes: set[str]) -> st.SearchStrategy[Array]:
    def of(dtype: str) -> st.SearchStrategy[Array]:
        elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None
        return hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=elements)

    return st.sampled_from(sorted(dtypes)).flatmap(of)


def models(dtypes: set[str]) -> st.SearchStrategy[dict[str, Array]]:
    return st.dictionaries(st.text("abc.", min_size=1, max_size=6), arrays(dtypes), min_size=1, max_size=5)


@given(models(SMALL))
def test_unflatten_gives_back_what_flatten_took(tensors: dict[str, Array]) -> None:
    manifest = manifest_of(tensors)
    back = unflatten(flatten(tensors, manifest), manifest)
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


@given(models(set(DTYPES)))
def test_a_zero_update_changes_no_tensor_of_any_dtype(tensors: dict[str, Array]) -> None:
    manifest = manifest_of(tensors)
    zero = difference(tensors, tensors, manifest)
    assert not zero.any()
    for name, array in add_update(tensors, zero, manifest).items():
        assert array.dtype == tensors[name].dtype
        np.testing.assert_array_equal(array, tensors[name])


def test_the_update_of_a_large_counter_is_exact() -> None:
    before, after = {"steps": np.array([2**40])}, {"steps": np.array([2**40 + 3])}
    manifest = manifest_of(before)
    update = difference(after, before, manifest)
    assert update.tolist() == [3.0]
    assert add_update(before, update, manifest)["steps"].tolist() == [2**40 + 3]


def test_integers_are_rounded_and_clamped_and_booleans_decided() -> None:
    manifest = TensorManifest(
        (TensorSpec("i", "int8", (4,)), TensorSpec("b", "bool", (2,)), TensorSpec("l", "int64", (2,)))
    )
    back = unflatten(np.array([1.6, -1.6, 300, -300, 0.4, 0.6, 1e30, -1e30], np.float32), manifest)
    assert back["i"].tolist() == [2, -2, 127, -128]
    assert back["b"].tolist() == [False, True]
    assert back["l"].tolist() == [2**63 - 1, -(2**63)]


def test_the_order_of_the_manifest_is_the_order_of_the_vector() -> None:
    tensors = {"z": np.array([1.0], np.float32), "a": np.array([2.0], np.float32)}
    assert flatten(tensors, manifest_of(tensors)).tolist() == [1.0, 2.0]
    assert flatten(dict(reversed(tensors.items())), manifest_of(tensors)).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"w": np.zeros((2, 2), np.float32)}, ["'b'", "missing"]),
        ({"w": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32)}, ["'b'", "shape", "(2,)", "(3,)"]),
        ({"w": np.zeros((2, 2), np.float64), "b": np.zeros(2, np.float32)}, ["'w'", "dtype", "float32", "float64"]),
        (
            {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32), "x": np.zeros(1)},
            ["'x'", "not in the manifest"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors: dict[str, Array], words: list[str]) -> None:
    manifest = TensorManifest((TensorSpec("w", "float32", (2, 2)), TensorSpec("b", "float32", (2,))))
    with pytest.raises(CodecError) as refused:
        flatten(tensors, manifest)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused_by_the_name_of_its_tensor(wrong: float) -> None:
    before = {"ok": np.zeros(2, np.float32), "layer.weight": np.zeros((2, 2), np.float32)}
    after = {"ok": np.zeros(2, np.float32), "layer.weight": np.array([[0, 0], [wrong, 0]], np.float32)}
    with pytest.raises(CodecError, match=r"'layer.weight'.*element 2"):
        difference(after, before, manifest_of(before))


def test_a_float64_beyond_float32_is_refused() -> None:
    tensors = {"w": np.array([1e300])}
    with pytest.raises(CodecError, match="'w'"):
        flatten(tensors, manifest_of(tensors))


def test_a_float16_that_would_overflow_is_refused() -> None:
    manifest = TensorManifest((TensorSpec("h", "float16", (1,)),))
    with pytest.raises(CodecError, match="'h'"):
        unflatten(np.array([1e6], np.float32), manifest)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(CodecError, match=r"\(2,\).*\(3,\)"):
        unflatten(np.zeros(3, np.float32), TensorManifest((TensorSpec("w", "float32", (2,)),)))


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("", "float32", (1,)),
        ("n" * 513, "float32", (1,)),
        ("\ud800", "float32", (1,)),
        ("w", "complex64", (1,)),
        ("w", "float32", (-1,)),
        ("w", "float32", (1,) * 17),
    ],
)
def test_an_impossible_tensor_is_refused(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CodecError):
        TensorSpec(name, dtype, shape)


def test_an_impossible_manifest_is_refused() -> None:
    spec = TensorSpec("w", "float32", (1,))
    with pytest.raises(CodecError, match="number of tensors"):
        TensorManifest(())
    with pytest.raises(CodecError, match="twice"):
        TensorManifest((spec, spec))
    with pytest.raises(CodecError, match="too many elements"):
        TensorManifest((TensorSpec("w", "float32", (MAX_ELEMENTS, 2)),))


def test_a_dtype_that_is_not_carried_is_refused() -> None:
    with pytest.raises(CodecError, match="complex128"):
        manifest_of({"w": np.zeros(1, np.complex128)})


def test_every_part_of_a_manifest_changes_its_digest() -> None:
    specs = [
        (TensorSpec("w", "float32", (2, 3)),),
        (TensorSpec("w", "float32", (3, 2)),),
        (TensorSpec("w", "float32", (6,)),),
        (TensorSpec("w", "int32", (2, 3)),),
        (TensorSpec("v", "float32", (2, 3)),),
        (TensorSpec("w", "float32", (2,)), TensorSpec("v", "float32", (3,))),
        (TensorSpec("v", "float32", (3,)), TensorSpec("w", "float32", (2,))),
    ]
    assert len({TensorManifest(spec).digest() for spec in specs}) == len(specs)
