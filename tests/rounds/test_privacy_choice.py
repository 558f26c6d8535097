"""What a job may say about privacy, and the draw of a cohort as the accountant assumes it."""

import os

import numpy as np
import pytest

from fl_core.errors import NotEnough, PlanError
from fl_core.rounds.cohort import CohortBounds, choose_cohort, pool_bounds
from fl_core.rounds.job import JobSpec, job_from_json, job_from_mapping
from fl_core.rounds.plan import ClientId
from fl_core.rounds.planner import check_private_job
from fl_core.rounds.privacy_terms import exposure

PRIVACY = {"mechanism": "central", "epsilon": 4.0, "delta": 1e-5, "clip": 0.5}


def _job(privacy: dict[str, object] | None, **fields: object) -> JobSpec:
    return job_from_mapping({"name": "x", "rounds": 5, "evaluate_every": 0, "privacy": privacy, **fields})


def test_a_private_job_travels_as_json_and_none_is_no_privacy() -> None:
    job = _job({**PRIVACY, "noise": "both", "quantile": 0.5})
    assert job_from_json(job.to_json()) == job
    assert _job({"mechanism": "none"}).privacy is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1e6}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 0.5}, "delta"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"clip": 0.0}, r"privacy\.clip"),
        ({"clip": None}, "clip"),
        ({"sampling_rate": 0.0}, r"privacy\.sampling_rate"),
        ({"mechanism": "distributed", "sampling_rate": 0.5}, "amplification"),
        ({"colluders": 2}, "colluders"),
        ({"mechanism": "local", "noise": "both"}, "both servers"),
        ({"levels": 1}, r"privacy\.levels"),
        ({"quantile": 1.0}, r"privacy\.quantile"),
        ({"mechanism": "magic"}, "mechanism is unknown"),
        ({"epsilom": 1.0}, "did you mean 'epsilon'"),
    ],
)
def test_a_wrong_number_is_refused_by_its_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        _job({**PRIVACY, **change})


def test_a_clip_that_is_missing_is_named() -> None:
    with pytest.raises(PlanError, match="lacks 'clip'"):
        _job({name: value for name, value in PRIVACY.items() if name != "clip"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"aggregation": "plain", "privacy": {**PRIVACY, "mechanism": "distributed"}}, "needs masks"),
        ({"aggregation": "plain", "privacy": {**PRIVACY, "noise": "both"}}, "needs masks"),
        ({"evaluate_every": 1}, "evaluate_every: 0"),
        ({"codec": {"rotation": True}}, "codec"),
    ],
)
def test_what_does_not_fit_privacy_is_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        job_from_mapping({"name": "x", "rounds": 5, "evaluate_every": 0, "privacy": PRIVACY, **fields})


def test_a_cohort_that_its_colluders_would_leave_without_noise_is_refused() -> None:
    job = _job({**PRIVACY, "mechanism": "distributed", "colluders": 3}, cohort={"min": 3, "max": 3})
    with pytest.raises(PlanError, match="colluders"):
        check_private_job(job, 100)


def test_the_draw_is_poisson_with_the_chance_of_the_job() -> None:
    # 400 draws of 50 sites: each site is drawn 80 times, give or take 8; nobody is out by six times that.
    names = [ClientId(f"s{number:02d}") for number in range(50)]
    bounds, counts, sizes = CohortBounds(1, 50), dict.fromkeys(names, 0), []
    for _ in range(400):
        drawn = choose_cohort(names, bounds, os.urandom, 0.2)
        sizes.append(len(drawn))
        for name in drawn:
            counts[name] += 1
    assert all(32 < count < 128 for count in counts.values())
    # Of a fixed size the variance would be none; of a Poisson draw it is 50 * 0.2 * 0.8.
    assert np.var(sizes) == pytest.approx(8.0, rel=0.5)
    with pytest.raises(NotEnough, match="drawn"):
        choose_cohort(names, CohortBounds(49, 50), os.urandom, 0.1)


def test_a_draw_of_too_few_is_given_up_and_everybody_is_drawn_again() -> None:
    # Three draws of six sites: three of them, nobody, and four.
    draws = iter(["101010", "111111", "110000"])
    names = [ClientId(name) for name in "abcdef"]

    def entropy(count: int) -> bytes:
        assert count == 6 * 8
        return b"".join(bytes([255 * int(coin)]) * 8 for coin in next(draws))

    assert choose_cohort(names, CohortBounds(4, 6), entropy, 0.5) == ("c", "d", "e", "f")
    assert next(draws, None) is None


def test_a_drawn_cohort_waits_for_as_many_sites_as_its_bounds_are_made_for() -> None:
    bounds = CohortBounds(40, 60)
    assert pool_bounds(bounds, None) == (40, 60)
    assert pool_bounds(bounds, 0.1) == (400, 500)
    assert pool_bounds(CohortBounds(3, 3), 0.4) == (8, 8)


def test_the_exposure_is_the_chance_that_one_site_decides() -> None:
    # Every subset of six others, one by one: a cohort of 3 to 5, drawn with a chance of 0.4.
    decides = taken = 0.0
    for others in range(1 << 6):
        count = others.bit_count()
        chance = 0.4**count * 0.6 ** (6 - count)
        decides += chance * (count == 2 or count >= 5)
        taken += chance * (count >= 3)
    assert exposure(7, 0.4, 3, 5) == pytest.approx(decides / taken)
