"""Membership audits: the best distinguisher stays below the claimed epsilon, and sees noise that is halved."""

import os
from math import exp, log, sqrt

import numpy as np
import pytest

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.events import Noise
from fl_core.privacy.renyi import epsilon_of
from fl_core.privacy.sampler import add_noise, noise_table
from fl_core.rounds.privacy_choice import Draw, PrivacyChoice
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.rounds.private_codec import PrivateCodec
from fl_core.secagg.noise_seeds import parts_needed

RUNS = 400_000
COHORT, FEWEST, SURVIVORS = 10, 7, 9
DEVIATIONS = 5.0
"""Of a binomial, for the bounds: a false alarm of one of them has a chance below 1e-6."""

BUDGET = PrivacyBudget(0.5, 0.01)


def _codec(mechanism: Mechanism) -> PrivateCodec:
    """Of a job with one parameter and one round, which spends its whole budget."""
    choice = PrivacyChoice(mechanism, BUDGET.epsilon, BUDGET.delta, 1.0)
    terms = choice.terms(1, 1, Draw(10, 10, 10))
    manifest = TensorManifest((TensorSpec("w", "float32", (1,)),))
    return PrivateCodec(terms, manifest, 32, COHORT, FEWEST)


def _sums(codec: PrivateCodec, takes_part: bool, noise_scale: float) -> np.ndarray:
    """Sums of many runs in which all other sites send nothing: one coordinate each."""
    total = np.zeros(RUNS, np.uint32)
    for kind, variance in _noises(codec):
        add_noise(total, noise_table(kind, variance * noise_scale**2), os.urandom(16))
    signed = total.astype(np.int32).astype(np.int64)
    return signed + (_contributions(codec) if takes_part else 0)


def _noises(codec: PrivateCodec) -> list[tuple[Noise, float]]:
    """All noise of a sum: with distributed noise the parts that every survivor keeps."""
    if codec.terms.mechanism is Mechanism.CENTRAL:
        return [(Noise.DISCRETE_GAUSSIAN, codec.terms.variance(codec.coordinates))]
    tiers = codec.terms.noise_tiers(COHORT, FEWEST)
    parts = codec.terms.part_variances(codec.coordinates, tiers)
    return [(Noise.SKELLAM, part) for part in parts[: parts_needed(tiers, SURVIVORS)]] * SURVIVORS


def _contributions(codec: PrivateCodec) -> np.ndarray:
    """What the site adds with the largest update that it can have, as its codec rounds it; without its noise."""
    silent = PrivateCodec(codec.terms, codec.manifest, codec.ring_bits, COHORT, FEWEST)
    if codec.terms.mechanism is Mechanism.DISTRIBUTED:
        # The worst update: the rotation leaves all of it in one coordinate.
        return np.full(RUNS, int(codec.terms.sensitivity(codec.coordinates)))
    encoded = [int(silent.encode(np.array([1e6], np.float32), 1, os.urandom)[2]) for _ in range(200)]
    return np.resize(np.array(encoded, np.int64), RUNS)


def audited_epsilon(without: np.ndarray, with_site: np.ndarray, delta: float) -> float:
    """A lower bound of epsilon that holds but with a chance below 1e-5, for the best threshold.

    The threshold is chosen on one half of the runs and judged on the other.
    """
    half = len(without) // 2
    thresholds = np.quantile(without[:half], np.linspace(0.5, 0.99, 50))

    def bound(threshold: float, runs: slice, deviations: float) -> float:
        hits, alarms = (with_site[runs] > threshold).mean(), (without[runs] > threshold).mean()
        count = len(without[runs])
        hits -= deviations * sqrt(hits * (1 - hits) / count)
        alarms += deviations * sqrt(alarms * (1 - alarms) / count)
        return log((hits - delta) / alarms) if hits > delta and alarms > 0 else 0.0

    best = max(thresholds, key=lambda threshold: bound(threshold, slice(0, half), 0.0))
    return bound(float(best), slice(half, None), DEVIATIONS)


@pytest.mark.parametrize("mechanism", [Mechanism.CENTRAL, Mechanism.DISTRIBUTED])
def test_no_distinguisher_beats_the_claimed_epsilon_and_halved_noise_is_caught(mechanism: Mechanism) -> None:
    codec = _codec(mechanism)
    claimed = epsilon_of(codec.terms.event(codec.coordinates).curve(), BUDGET.delta)
    assert claimed <= BUDGET.epsilon
    honest = audited_epsilon(_sums(codec, False, 1.0), _sums(codec, True, 1.0), BUDGET.delta)
    assert 0 < honest <= claimed
    halved = audited_epsilon(_sums(codec, False, 0.5), _sums(codec, True, 0.5), BUDGET.delta)
    assert halved > claimed


def test_the_audit_finds_a_known_epsilon() -> None:
    # Randomised answers with odds of e: epsilon is exactly 1, and the bound comes close from below.
    generator = np.random.default_rng(5)
    truth = exp(1) / (1 + exp(1))
    without = (generator.random(RUNS) < 1 - truth).astype(float)
    with_site = (generator.random(RUNS) < truth).astype(float)
    half = RUNS // 2
    hits, alarms = (with_site[half:] > 0.5).mean(), (without[half:] > 0.5).mean()
    assert log(hits / alarms) == pytest.approx(1.0, abs=0.05)
