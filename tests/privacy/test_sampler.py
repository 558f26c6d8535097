"""The samplers: the exact distribution, decided bit by bit, held against second implementations."""

from fractions import Fraction
from itertools import repeat
from math import exp, sqrt

import numpy as np
import pytest

from fl_core.errors import CryptoError
from fl_core.privacy import kernels_noise, kernels_noise_numpy
from fl_core.privacy.distributions import magnitude_cdf
from fl_core.privacy.events import Noise
from fl_core.privacy.sampler import NUMBER_BITS, add_noise, decide, noise_table
from tests.privacy.exact_divergence import log_discrete_gaussian, log_skellam

KEY = bytes(range(16))
BOTH = pytest.mark.parametrize("noise", [Noise.DISCRETE_GAUSSIAN, Noise.SKELLAM])


def _draw(noise: Noise, variance: float, count: int, key: bytes = KEY) -> np.ndarray:
    vector = np.zeros(count, np.uint32)
    add_noise(vector, noise_table(noise, variance), key)
    return vector.astype(np.int32)


@BOTH
@pytest.mark.parametrize("variance", [0.3, 7.25, 400.0])
def test_the_table_is_the_distribution(noise: Noise, variance: float) -> None:
    reach = int(9 * sqrt(variance)) + 12
    make = log_skellam if noise is Noise.SKELLAM else log_discrete_gaussian
    mass = np.exp(make(variance, reach))[reach:]
    expected = np.cumsum(np.concatenate([mass[:1], 2 * mass[1:]]))
    ours = noise_table(noise, variance).cdf / 2.0**NUMBER_BITS
    shorter = min(len(ours), len(expected))
    np.testing.assert_allclose(ours[:shorter], expected[:shorter], rtol=0, atol=1e-12)


@BOTH
def test_samples_pass_a_chi_square_test(noise: Noise) -> None:
    # 200,000 samples and 31 cells; a false alarm has a chance below 1e-6 (chi-square of 30 above 91).
    variance, count = 25.0, 200_000
    drawn = np.clip(_draw(noise, variance, count), -15, 15)
    make = log_skellam if noise is Noise.SKELLAM else log_discrete_gaussian
    mass = np.exp(make(variance, 60))
    cells = mass[45:76].copy()
    cells[0] += mass[:45].sum()
    cells[-1] += mass[76:].sum()
    seen = np.bincount(drawn + 15, minlength=31)
    assert ((seen - count * cells) ** 2 / (count * cells)).sum() < 91


def test_the_sampler_agrees_with_rejection_sampling_by_canonne_kamath_and_steinke() -> None:
    # Two samples of 20,000; the chi-square of 12 degrees of freedom is above 52 with a chance below 1e-6.
    ours = np.clip(_draw(Noise.DISCRETE_GAUSSIAN, 9.0, 20_000), -6, 6)
    bits = np.random.default_rng(7)
    theirs = np.clip([_rejection_sample(Fraction(9), bits) for _ in range(20_000)], -6, 6)
    a, b = np.bincount(ours + 6, minlength=13), np.bincount(theirs + 6, minlength=13)
    assert ((a - b) ** 2 / (a + b)).sum() < 52


@BOTH
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_compiled_and_numpy_kernels_give_the_same_bits(noise: Noise, dtype: type) -> None:
    table = noise_table(noise, 123.5)
    words = np.random.default_rng(1).integers(0, 1 << 64, 5000, np.uint64)
    words[17] = table.cdf[5] << np.uint64(1)
    words[18] = table.cdf[9] << np.uint64(1) | np.uint64(1)
    outcomes = []
    for kernel in (kernels_noise_numpy.add_samples, kernels_noise.add_samples):
        out, ties = np.full(5000, 3, dtype), np.zeros(5000, np.int64)
        count = kernel(words, table.cdf, table.guide, table.shift, out, ties)
        outcomes.append((out, ties[:count]))
    np.testing.assert_array_equal(outcomes[0][0], outcomes[1][0])
    np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])
    assert outcomes[0][1].tolist() == [17, 18]


@BOTH
def test_a_tie_is_decided_by_more_bits_exactly_where_the_distribution_puts_it(noise: Noise) -> None:
    table = noise_table(noise, 50.0)
    k = 6
    exact = magnitude_cdf(noise, 50.0, NUMBER_BITS + 128).floors[k]
    rest = exact & (1 << 128) - 1
    word = int(table.cdf[k]) << 1
    for above, expected in ((1, k + 1), (-1, k)):
        number = rest + above * (1 << 40)
        assert decide(table, word, iter([number >> 64, number & (1 << 64) - 1, 0, 0])) == expected
        assert decide(table, word | 1, iter([number >> 64, number & (1 << 64) - 1, 0, 0])) == -expected


def test_the_farthest_tail_is_reached() -> None:
    table = noise_table(Noise.DISCRETE_GAUSSIAN, 4.0)
    word = (1 << 64) - 2
    beyond = decide(table, word, repeat((1 << 64) - 1 - (1 << 30)))
    assert beyond >= len(table.cdf) - 1


@BOTH
def test_noise_wraps_around_its_lane_and_depends_on_the_whole_key(noise: Noise) -> None:
    table = noise_table(noise, 90.0)
    narrow, wide = np.zeros(3000, np.uint16), np.zeros(3000, np.uint32)
    add_noise(narrow, table, KEY)
    add_noise(wide, table, KEY)
    np.testing.assert_array_equal(narrow.astype(np.int16), wide.astype(np.int32))
    other = np.zeros(3000, np.uint32)
    add_noise(other, table, KEY[:-1] + b"\x8f")
    assert not np.array_equal(other, wide)


@BOTH
@pytest.mark.parametrize("variance", [0.0, -1.0, float("inf"), 2.0**33])
def test_a_variance_without_a_sampler_is_refused(noise: Noise, variance: float) -> None:
    with pytest.raises(CryptoError, match="noise is too wide"):
        noise_table(noise, variance)


def test_halved_noise_is_seen_by_the_variance_of_many_samples() -> None:
    # 100,000 samples: the standard error of the variance is 0.45%.
    right = _draw(Noise.SKELLAM, 200.0, 100_000).astype(float).var()
    halved = _draw(Noise.SKELLAM, 100.0, 100_000).astype(float).var()
    assert right == pytest.approx(200.0, rel=0.03)
    assert halved < 0.55 * 200


def _rejection_sample(variance: Fraction, bits: np.random.Generator) -> int:
    """Algorithm 3 of Canonne, Kamath, Steinke 2020, with exact fractions."""
    scale = int(sqrt(variance)) + 1
    while True:
        candidate = _discrete_laplace(scale, bits)
        gap = abs(candidate) - variance / scale
        if _bernoulli_exp(gap**2 / (2 * variance), bits):
            return candidate


def _discrete_laplace(scale: int, bits: np.random.Generator) -> int:
    while True:
        low = int(bits.integers(scale))
        if not _bernoulli_exp(Fraction(low, scale), bits):
            continue
        high = 0
        while _bernoulli_exp(Fraction(1), bits):
            high += 1
        value, negative = low + scale * high, bool(bits.integers(2))
        if not (negative and value == 0):
            return -value if negative else value


def _bernoulli_exp(gamma: Fraction, bits: np.random.Generator) -> bool:
    while gamma > 1:
        if not _bernoulli_exp(Fraction(1), bits):
            return False
        gamma -= 1
    k = 1
    while int(bits.integers(gamma.denominator * k)) < gamma.numerator:
        k += 1
    return k % 2 == 1


def test_the_reference_sampler_has_the_right_chance() -> None:
    bits = np.random.default_rng(3)
    hits = sum(_bernoulli_exp(Fraction(1, 2), bits) for _ in range(20_000))
    assert hits / 20_000 == pytest.approx(exp(-0.5), abs=0.02)
