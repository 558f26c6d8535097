"""Vectors in slots: any sum that fits is exact, and one that does not fit is refused or seen."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_core.crypto.paillier.slots import SignedVectors, SlotLayout
from fl_core.errors import BadAggregate, CryptoError, PlanError


@st.composite
def signed_sums(draw: st.DrawFn) -> tuple[SignedVectors, npt.NDArray[np.int64]]:
    """Vectors of any form, and slots in which their sum fits."""
    bits, sites, length = draw(st.integers(2, 32)), draw(st.integers(1, 12)), draw(st.integers(0, 90))
    spec = SignedVectors(bits, draw(st.integers(sites, 5000)), draw(st.integers(64, 4096)))
    half = 1 << (bits - 1)
    return spec, draw(arrays(np.int64, (sites, length), elements=st.integers(-half, half - 1)))


@given(signed_sums())
def test_the_sum_of_signed_vectors_is_exact(case: tuple[SignedVectors, npt.NDArray[np.int64]]) -> None:
    spec, vectors = case
    columns = zip(*(spec.encode(vector) for vector in vectors), strict=True)
    plaintexts = [sum(column) for column in columns]
    assert all(plaintext < 1 << (spec.modulus_bits - 1) for plaintext in plaintexts)
    decoded = spec.decode(plaintexts, vectors.shape[1], len(vectors))
    np.testing.assert_array_equal(decoded, vectors.sum(axis=0))


@given(st.integers(1, 2**32 - 1), st.integers(1, 2**20), st.integers(16, 4096))
def test_a_layout_holds_the_largest_sum_or_is_refused(largest: int, cohort: int, bits: int) -> None:
    try:
        layout = SlotLayout(largest, cohort, bits)
    except PlanError:
        assert (largest * cohort).bit_length() + 1 > min(bits - 1, 63)
        return
    row = np.full(layout.slots, largest, np.uint64)
    total = sum(layout.pack(row)) * cohort
    assert total < 1 << (bits - 1)
    np.testing.assert_array_equal(layout.unpack([total], layout.slots, cohort), row * np.uint64(cohort))


def test_sixteen_bits_and_a_cohort_of_a_hundred_are_85_slots() -> None:
    layout = SlotLayout((1 << 16) - 1, 100, 2048)
    assert (layout.slot_bits, layout.slots) == (24, 85)
    assert 512 / layout.slots < 7.5


@pytest.mark.parametrize(
    ("largest", "cohort", "bits"), [(0, 3, 2048), (2**32, 3, 2048), (2**32 - 1, 2**32, 2048), (1, 0, 2048), (9, 9, 8)]
)
def test_what_overflows_is_refused_when_the_plan_is_built(largest: int, cohort: int, bits: int) -> None:
    with pytest.raises(PlanError):
        SlotLayout(largest, cohort, bits)


@pytest.mark.parametrize("bits", [1, 33])
def test_signed_numbers_of_impossible_bits_are_refused(bits: int) -> None:
    with pytest.raises(PlanError):
        SignedVectors(bits, 3, 2048)


def test_a_number_too_large_for_its_slot_is_refused() -> None:
    with pytest.raises(CryptoError, match="does not fit its slot"):
        list(SlotLayout(9, 3, 64).pack(np.array([10], np.uint32)))
    with pytest.raises(CryptoError, match="out of range"):
        SignedVectors(4, 3, 64).encode(np.array([8], np.int64))
    with pytest.raises(CryptoError, match="wrong form"):
        list(SlotLayout(9, 3, 64).pack(np.array([1], np.int64)))


def test_a_carry_into_the_guard_bit_is_seen() -> None:
    layout = SlotLayout(15, 3, 64)
    with pytest.raises(BadAggregate, match="a slot holds more"):
        layout.unpack([46], 1, 3)
    with pytest.raises(BadAggregate, match="a slot holds more"):
        layout.unpack([31], 1, 2)
    with pytest.raises(BadAggregate, match="above the last slot"):
        layout.unpack([1 << 63], 1, 3)


def test_something_behind_the_last_number_is_seen() -> None:
    layout = SlotLayout(15, 3, 64)
    with pytest.raises(BadAggregate):
        layout.unpack([1 << layout.slot_bits], 1, 3)


@pytest.mark.parametrize(("length", "survivors"), [(0, 1), (99, 1), (1, 0), (1, 4)])
def test_a_sum_of_another_size_is_refused(length: int, survivors: int) -> None:
    with pytest.raises(BadAggregate, match="wrong size"):
        SlotLayout(15, 3, 64).unpack([1], length, survivors)


def test_a_forged_count_is_seen() -> None:
    spec = SignedVectors(8, 5, 256)
    honest = spec.encode(np.array([1, -2], np.int64))
    with pytest.raises(BadAggregate, match="count"):
        spec.decode([sum(column) for column in zip(honest, honest, strict=True)], 2, 3)
