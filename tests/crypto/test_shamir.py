"""Secret sharing against Python's integers: the twin below is the definition that the kernels must equal."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from operator import mul
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import kernels_shamir, kernels_shamir_numpy, shamir
from fl_core.crypto.shamir import (
    LIMB_BITS,
    LIMBS,
    PRIME,
    SHARE_BYTES,
    combine,
    combine_each,
    lagrange_at_zero,
    lagrange_each,
    parse_share,
    parse_shares,
    split_secrets,
)
from fl_core.errors import BadShares, CryptoError
from fl_core.simulation.entropy import seeded_entropy

VECTOR: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "primitives.json").read_text())["shamir"]
KERNELS = (kernels_shamir, kernels_shamir_numpy)
elements = st.one_of(st.integers(0, PRIME - 1), st.sampled_from([0, 1, 2, PRIME - 1, PRIME - 2, PRIME // 2]))


def evaluate_slowly(coefficients: Sequence[int], point: int) -> int:
    return sum(coefficient * pow(point, power, PRIME) for power, coefficient in enumerate(coefficients)) % PRIME


def lagrange_slowly(points: Sequence[int]) -> list[int]:
    coefficients = []
    for point in points:
        coefficient = 1
        for other in points:
            if other != point:
                coefficient = coefficient * other * pow(other - point, -1, PRIME) % PRIME
        coefficients.append(coefficient)
    return coefficients


def rebuild(shares: Sequence[Sequence[bytes]], holders: Sequence[int], chosen: Sequence[int]) -> list[bytes]:
    rows = np.stack([parse_shares(shares[holders.index(holder)]) for holder in chosen])
    return combine(lagrange_at_zero(chosen), rows)


@pytest.mark.parametrize("kernels", KERNELS)
@given(st.lists(st.lists(elements, min_size=3, max_size=3), min_size=1, max_size=8), st.lists(elements, min_size=1))
def test_evaluation_equals_pythons_integers(
    kernels: ModuleType, coefficients: list[list[int]], points: list[int]
) -> None:
    out = np.empty((len(points), 3), np.uint64)
    kernels.evaluate(np.array(coefficients, np.uint64), np.array(points, np.uint64), out)
    columns = list(zip(*coefficients, strict=True))
    assert out.tolist() == [[evaluate_slowly(column, point) for column in columns] for point in points]


@pytest.mark.parametrize("kernels", KERNELS)
@given(st.lists(st.tuples(elements, elements), min_size=1, max_size=30))
def test_weighted_sums_equal_pythons_integers(kernels: ModuleType, pairs: list[tuple[int, int]]) -> None:
    weights, values = (np.array(side, np.uint64) for side in zip(*pairs, strict=True))
    out = np.empty((2, 1), np.uint64)
    kernels.weighted_sums(np.stack([weights, values]), np.stack([values, values])[:, :, np.newaxis], out)
    assert out[0].tolist() == [sum(weight * value for weight, value in pairs) % PRIME]
    assert out[1].tolist() == [sum(value * value for _, value in pairs) % PRIME]


@pytest.mark.parametrize("kernels", KERNELS)
@given(st.lists(st.tuples(elements, elements.filter(bool)), min_size=1, max_size=20))
def test_quotients_equal_pythons_integers(kernels: ModuleType, numbers: list[tuple[int, int]]) -> None:
    numerators, denominators = (np.array(column, np.uint64) for column in zip(*numbers, strict=True))
    out = np.empty_like(numerators)
    kernels.divide(numerators, denominators, out)
    assert out.tolist() == [above * pow(below, -1, PRIME) % PRIME for above, below in numbers]


@pytest.mark.parametrize("kernels", KERNELS)
@given(st.lists(elements.filter(bool), min_size=1, max_size=20, unique=True))
def test_lagrange_fractions_equal_pythons_integers(kernels: ModuleType, points: list[int]) -> None:
    numerators, denominators = np.empty((2, 2, len(points)), np.uint64)
    kernels.lagrange_fractions(np.array([points, points[::-1]], np.uint64), numerators, denominators)
    for row, expected in enumerate((points, points[::-1])):
        fractions = zip(numerators[row].tolist(), denominators[row].tolist(), strict=True)
        assert [above * pow(below, -1, PRIME) % PRIME for above, below in fractions] == lagrange_slowly(expected)


@pytest.mark.parametrize(("groups", "threshold"), [(1, 1), (3, 4), (40, 25), (400, 60)])
def test_secrets_with_holders_of_their_own_are_rebuilt_together(groups: int, threshold: int) -> None:
    secrets = [os.urandom(32) for _ in range(groups)]
    generator = np.random.default_rng(groups)
    holders = [generator.choice(1000, threshold, replace=False).tolist() for _ in range(groups)]
    shares = [
        [parse_shares(held)[0] for held in split_secrets([secret], threshold, near, os.urandom)]
        for secret, near in zip(secrets, holders, strict=True)
    ]
    coefficients = lagrange_each(holders)
    assert combine_each(coefficients, np.array(shares)) == secrets
    pairs = zip(holders, shares, strict=True)
    alone = [combine(lagrange_at_zero(near), np.array(own)[:, np.newaxis]) for near, own in pairs]
    assert [secret for (secret,) in alone] == secrets


def test_sets_of_holders_must_be_equally_large_and_fit_the_shares() -> None:
    for groups in ([], [[1, 2], [3]]):
        with pytest.raises(CryptoError, match="equally large"):
            lagrange_each(groups)
    with pytest.raises(CryptoError, match="twice"):
        lagrange_each([[1, 2], [3, 3]])
    with pytest.raises(CryptoError, match="do not fit"):
        combine_each(lagrange_each([[1, 2]]), np.zeros((2, 2, 5), np.uint64))


@pytest.mark.parametrize("chosen", list(combinations(range(5), 3)))
def test_coefficients_rebuild_the_vector_of_another_implementation(chosen: tuple[int, ...]) -> None:
    """Their field is another one, so that each coefficient is read as the fraction that it is: over 24 at most here."""
    prime, limbs = VECTOR["prime"], []
    numerators = [24 * coefficient % PRIME for coefficient in lagrange_at_zero(chosen).tolist()]
    fractions = [(number - PRIME if number > PRIME // 2 else number) * pow(24, -1, prime) for number in numerators]
    for limb in range(2):
        values = [int(VECTOR["shares"][index][8 * limb : 8 * limb + 8], 16) for index in chosen]
        limbs.append(sum(map(mul, fractions, values)) % prime)
    assert limbs == VECTOR["limbs"]


def test_a_small_cohort_does_not_load_numba() -> None:
    program = (
        "import os, sys; from fl_core.crypto.shamir import *;"
        "shares = split_secrets([bytes(32)], 7, range(10), os.urandom);"
        "import numpy as np; combine(lagrange_at_zero(range(10)), np.stack([parse_shares(row) for row in shares]));"
        "print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@given(st.sets(st.integers(0, shamir.MAX_INDEX - 1), min_size=1, max_size=20))
def test_lagrange_coefficients_equal_pythons_integers(indices: set[int]) -> None:
    holders = list(indices)
    assert lagrange_at_zero(holders).tolist() == lagrange_slowly([index + 1 for index in holders])


def test_coefficients_add_up_to_one_because_constants_are_their_own_secret() -> None:
    assert sum(lagrange_at_zero([0, 5, 77, 1000, 16383]).tolist()) % PRIME == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_any_threshold_of_holders_rebuilds_every_secret(data: st.DataObject, size: int, seed: int) -> None:
    entropy = seeded_entropy(seed)
    threshold = data.draw(st.integers(1, size))
    holders = data.draw(st.lists(st.integers(0, 10**6), min_size=size, max_size=size, unique=True))
    secrets = [entropy(32) for _ in range(data.draw(st.integers(1, 3)))]
    shares = split_secrets(secrets, threshold, holders, entropy)
    chosen = data.draw(st.permutations(holders))[: data.draw(st.integers(threshold, size))]
    assert rebuild(shares, holders, chosen) == secrets


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\x01", b"\x01" + bytes(31)])
def test_extreme_secrets_survive(secret: bytes) -> None:
    shares = split_secrets([secret], 3, range(5), os.urandom)
    for chosen in combinations(range(5), 3):
        assert rebuild(shares, range(5), chosen) == [secret]


def test_more_holders_than_a_byte_counts() -> None:
    secret = os.urandom(32)
    shares = split_secrets([secret], 200, range(300), os.urandom)
    assert rebuild(shares, range(300), range(100, 300)) == [secret]


def test_one_share_too_few_fits_every_secret_equally_well() -> None:
    """For each other secret there is one draw of the randomness that gives the holder the very same share."""
    secret, other = os.urandom(32), os.urandom(32)
    ((share,), _) = split_secrets([secret], 2, [0, 1], os.urandom)
    other_limbs = [int.from_bytes(other, "little") >> LIMB_BITS * limb & (1 << LIMB_BITS) - 1 for limb in range(LIMBS)]
    slopes = [(value - limb) % PRIME for value, limb in zip(parse_share(share).tolist(), other_limbs, strict=True)]
    draw = b"".join(slope.to_bytes(8, "little") for slope in slopes)
    assert split_secrets([other], 2, [0, 1], lambda count: draw)[0] == [share]


def test_every_coefficient_is_uniform_the_highest_too() -> None:
    """With t = n = 2 and a zero secret a share of holder 0 is the highest coefficient itself."""
    entropy = seeded_entropy(7)
    draws = [parse_share(split_secrets([bytes(32)], 2, [0, 1], entropy)[0][0]) for _ in range(2000)]
    top_bits = np.stack(draws).astype(np.uint64) >> np.uint64(58)
    counts = np.bincount(top_bits.ravel().astype(np.int64), minlength=8)
    expected = 2000 * LIMBS / 8
    # Chi-square of 7 degrees of freedom: beyond 40 with a chance below 2e-6, and the seed is fixed.
    assert float(((counts - expected) ** 2 / expected).sum()) < 40


def test_a_draw_that_is_no_field_element_is_drawn_again() -> None:
    answers = iter([b"\xff" * 8 * LIMBS, (5).to_bytes(8, "little") * LIMBS])
    ((share,),) = split_secrets([bytes(32)], 1, [0], lambda count: b"")
    assert parse_share(share).tolist() == [0] * LIMBS
    shares = split_secrets([bytes(32)], 2, [0, 1], lambda count: next(answers))
    assert parse_share(shares[1][0]).tolist() == [10] * LIMBS


def test_a_share_always_has_the_same_length() -> None:
    shares = split_secrets([bytes(32), b"\xff" * 32], 2, range(4), os.urandom)
    assert {len(share) for row in shares for share in row} == {SHARE_BYTES}


@pytest.mark.parametrize("length", [0, 39, 41, 80])
def test_a_share_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadShares, match=f"40 bytes, got {length} bytes"):
        parse_share(bytes(length))


@pytest.mark.parametrize("limb", range(LIMBS))
@pytest.mark.parametrize("value", [PRIME, PRIME + 1, 2**64 - 1])
def test_a_number_that_is_no_field_element_is_refused(limb: int, value: int) -> None:
    share = bytearray(SHARE_BYTES)
    share[8 * limb : 8 * limb + 8] = value.to_bytes(8, "little")
    with pytest.raises(BadShares, match="out of range"):
        parse_share(bytes(share))


def test_a_false_share_rebuilds_something_else_or_nothing() -> None:
    secret = os.urandom(32)
    shares = split_secrets([secret], 3, range(3), os.urandom)
    false = bytearray(shares[1][0])
    false[0] ^= 1
    shares[1][0] = bytes(false)
    try:
        rebuilt = rebuild(shares, range(3), range(3))
    except BadShares:
        return
    assert rebuilt != [secret]


def test_limbs_that_are_larger_than_any_secret_are_refused() -> None:
    for limb, value in ((0, 1 << 52), (LIMBS - 1, 1 << 48)):
        row = np.zeros((1, 1, LIMBS), np.uint64)
        row[0, 0, limb] = value
        with pytest.raises(BadShares, match="do not rebuild"):
            combine(lagrange_at_zero([0]), row)


@pytest.mark.parametrize("holders", [[], [0, 0], [-1, 0], [0, shamir.MAX_INDEX]])
def test_nobody_twice_nobody_negative_nobody_beyond_the_range(holders: list[int]) -> None:
    with pytest.raises(CryptoError):
        lagrange_at_zero(holders)
    with pytest.raises(CryptoError):
        split_secrets([bytes(32)], 1, holders, os.urandom)


@pytest.mark.parametrize("threshold", [0, 4])
def test_a_threshold_that_cannot_be_met_is_refused(threshold: int) -> None:
    with pytest.raises(CryptoError, match="threshold"):
        split_secrets([bytes(32)], threshold, range(3), os.urandom)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(CryptoError, match="32 bytes"):
        split_secrets([bytes(length)], 1, [0], os.urandom)


def test_shares_that_do_not_fit_their_coefficients_are_refused() -> None:
    coefficients = lagrange_at_zero([0, 1])
    for shape in ((3, 1, LIMBS), (2, 1, LIMBS + 1), (2, LIMBS)):
        with pytest.raises(CryptoError, match="do not fit"):
            combine(coefficients, np.zeros(shape, np.uint64))


def test_a_thousand_holders_take_milliseconds() -> None:
    """Budgets with much room for a slow machine: 30 ms to split and 100 ms to rebuild are what it must reach."""
    secrets = [os.urandom(32) for _ in range(2)]
    shares = split_secrets(secrets, 667, range(1000), os.urandom)
    began = time.process_time()
    split_secrets(secrets, 667, range(1000), os.urandom)
    split_s = time.process_time() - began
    coefficients = lagrange_at_zero(range(667))
    rows = np.repeat(np.stack([parse_shares(shares[holder]) for holder in range(667)]), 150, axis=1)
    began = time.process_time()
    assert combine(coefficients, rows) == [secret for secret in secrets for _ in range(150)]
    assert split_s < 0.15
    assert time.process_time() - began < 0.5
