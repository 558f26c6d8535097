"""`tacit privacy plan`: from epsilon to noise and back, and what it refuses."""

import json

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.privacy.prv import prv_epsilon
from fl_core.errors import TacitError
from fl_core.privacy.calibration import epsilon_after
from fl_core.privacy.events import Noise, PrivacyEvent

BASE = ["privacy", "plan", "--delta", "1e-5", "--rounds", "20", "--sites", "100", "--json"]


def _plan(*options: str) -> dict[str, dict[str, float]]:
    done = CliRunner().invoke(app, [*BASE, *options], catch_exceptions=False)
    return {one["mechanism"]: one for one in json.loads(done.stdout)["mechanisms"]}


def test_epsilon_gives_noise_and_the_noise_gives_the_epsilon_back() -> None:
    there = _plan("--target-epsilon", "2")
    assert set(there) == {"local", "central", "distributed"}
    for mechanism, forecast in there.items():
        assert forecast["epsilon"] == pytest.approx(2.0, rel=0.01)
        back = _plan("--noise-multiplier", str(forecast["noise_multiplier"]))[mechanism]
        assert back["epsilon"] == pytest.approx(2.0, rel=0.01)


def test_distributed_noise_is_that_of_central_noise_for_whoever_survives_unless_sites_collude() -> None:
    plain = _plan("--noise-multiplier", "2", "--survivors", "70")
    for mechanism in ("central", "distributed"):
        assert plain[mechanism]["noise_of_the_mean_in_clips"] == pytest.approx(2 / 100)
        assert plain[mechanism]["noise_of_the_mean_of_fewest_in_clips"] == pytest.approx(2 / 70)
    guarded = _plan("--noise-multiplier", "2", "--survivors", "70", "--colluders", "19")["distributed"]
    assert guarded["noise_of_the_mean_in_clips"] == pytest.approx(2 / 100 / 0.9)
    drawn = _plan("--noise-multiplier", "2", "--sampling", "0.5")["central"]
    assert drawn["noise_of_the_mean_in_clips"] == drawn["noise_of_the_mean_of_fewest_in_clips"] == pytest.approx(2 / 50)


def test_the_second_figure_is_tighter_and_only_for_gaussian_noise() -> None:
    event = PrivacyEvent(Noise.GAUSSIAN, 1.0, 4.0, 0.1)
    tighter = prv_epsilon(event, 20, 1e-5)
    assert tighter is not None
    assert 0.5 * epsilon_after(event, 20, 1e-5) < tighter <= epsilon_after(event, 20, 1e-5)
    assert prv_epsilon(PrivacyEvent(Noise.DISCRETE_GAUSSIAN, 1.0, 4.0), 20, 1e-5) is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--target-epsilon or --noise-multiplier"),
        (["--target-epsilon", "0"], "epsilon is out of range"),
        (["--target-epsilon", "1", "--sampling", "0"], "--sampling"),
        (["--target-epsilon", "1", "--colluders", "100"], "colluders"),
        (["--noise-multiplier", "0"], "noise"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options: list[str], named: str) -> None:
    with pytest.raises(TacitError, match=named):
        CliRunner().invoke(app, [*BASE, *options], catch_exceptions=False)
