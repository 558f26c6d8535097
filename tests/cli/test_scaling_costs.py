"""The arithmetic of the scaling benchmark."""

import pytest

from benchmarks.scaling import Cost


def test_two_measurements_give_the_cost_of_a_site_and_of_a_parameter() -> None:
    cost = Cost.through(0.5 + 3e-6 * 1_000, 0.5 + 3e-6 * 9_000, at=(1_000, 9_000))
    assert cost.fixed == pytest.approx(0.5)
    assert cost.each == pytest.approx(3e-6)
    assert cost.of(100_000) == pytest.approx(0.8)


def test_noise_makes_no_cost_negative() -> None:
    assert Cost.through(0.5, 0.4, at=(1_000, 9_000)) == Cost(0.5, 0.0)
    assert Cost.through(0.001, 0.9, at=(1_000, 9_000)).fixed == 0.0
