"""What a cohort would get: counts that can be worked out by hand, and refusals that name the number to change."""

from dataclasses import replace

import pytest

from fl_core.codec.packing import packed_bytes
from fl_core.errors import PlanError
from fl_core.rounds.costs import PACKAGED, SessionShape, UnitCosts, aggregator_cost, key_server_cost, site_cost
from fl_core.rounds.forecast import Question, foresee
from fl_core.secagg.degrees import Profile
from fl_core.secagg.profiles import choose_graph

ONE_SECOND = UnitCosts("a machine on which everything takes a second", *([1.0] * 16))
SHAPE = SessionShape(size=10, degree=9, threshold=7, dropped=3, parameters=98, ring_bits=16)


def question(**changes: object) -> Question:
    return replace(Question(sites=10, parameters=98, max_dropout=0.3, max_corrupt=0.1, bits=12), **changes)  # type: ignore[arg-type]


def test_the_key_server_agrees_once_for_each_dropped_site_and_survivor() -> None:
    steps = key_server_cost(SHAPE, ONE_SECOND).seconds_by_step
    assert steps["agreeing"] == 3 * 7 * 2
    assert steps["expanding"] == (7 + 3 * 7) * 100 * 2
    assert steps["signatures"] == 10 + 7
    assert steps["rebuilding"] == 7 * 7 + 10 * 7 + 3


def test_a_site_agrees_twice_and_checks_everybody_once_and_the_survivors_again() -> None:
    steps = site_cost(SHAPE, ONE_SECOND).seconds_by_step
    assert steps["masking"] == 9 * 2 + 10 * 200
    assert steps["unmasking"] == 7
    assert steps["keys"] == 3 + 2 + 9 * 3 + 9 * 7
    assert steps["encoding"] == 100


def test_the_aggregator_adds_each_upload_once_and_takes_one_mask_off() -> None:
    cost = aggregator_cost(SHAPE, ONE_SECOND)
    assert cost.seconds == (7 + 1) * 100
    assert cost.memory_bytes == 2 * 200 + 200


def test_a_sparse_graph_costs_the_key_server_fewer_agreements() -> None:
    sparse = replace(SHAPE, size=1000, degree=76, threshold=25, dropped=300)
    complete = replace(sparse, degree=999, threshold=667)
    ours, theirs = (key_server_cost(shape, ONE_SECOND).seconds_by_step["agreeing"] for shape in (sparse, complete))
    assert ours == pytest.approx(theirs * 76 / 999)


def test_the_ring_is_the_smallest_that_holds_the_sum() -> None:
    assert foresee(question(sites=1000, bits=16), PACKAGED).shape.ring_bits == 26
    assert foresee(question(sites=16, bits=12), PACKAGED).shape.ring_bits == 16
    assert foresee(question(sites=17, bits=12), PACKAGED).shape.ring_bits == 17
    assert foresee(question(bits=1), PACKAGED).shape.ring_bits == 8


def test_the_bytes_are_the_upload_and_little_more() -> None:
    forecast = foresee(question(sites=100, parameters=1_000_000, bits=12), PACKAGED)
    payload = packed_bytes(1_000_002, forecast.shape.ring_bits)
    assert payload < forecast.bytes_up < 1.02 * payload
    assert 4_000_000 < forecast.bytes_down < 1.05 * 4_000_000


def test_threshold_and_survivors_are_those_of_a_plan() -> None:
    forecast = foresee(question(sites=99, max_corrupt=0.05), PACKAGED)
    assert (forecast.graph, forecast.shape.degree) == ("complete", 98)
    assert (forecast.shape.threshold, forecast.min_survivors, forecast.shape.dropped) == (67, 67, 29)


@pytest.mark.parametrize("profile", Profile)
def test_a_large_cohort_gets_the_sparse_graph_of_the_planner(profile: Profile) -> None:
    forecast, chosen = (
        foresee(question(sites=1000, max_corrupt=0.05, profile=profile), PACKAGED),
        choose_graph(1000, 0.05, 0.3, profile),
    )
    assert (forecast.graph, forecast.shape.degree, forecast.shape.threshold) == (
        chosen.kind.value,
        chosen.degree,
        chosen.threshold,
    )
    assert forecast.min_survivors == 700
    # Bell et al.: a sparse graph is what makes a thousand sites affordable.
    complete = foresee(question(sites=1000, max_corrupt=0.05, threshold=667), PACKAGED)
    assert forecast.parties["key server"].seconds < complete.parties["key server"].seconds / 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": 2}, "too small"),
        ({"parameters": 0}, "at least one parameter"),
        ({"bits": 25}, "1 to 24"),
        ({"max_dropout": 1.0}, "max_dropout"),
        ({"max_corrupt": -0.1}, "max_corrupt"),
        ({"max_dropout": 0.5, "max_corrupt": 0.3}, "lower max_dropout or max_corrupt"),
        ({"sites": 1000, "bits": 24}, "lower bits to 22"),
        ({"ring_bits": 15}, "raise ring_bits"),
        ({"threshold": 5}, "raise threshold to 6"),
        ({"threshold": 8}, "lower threshold to 7"),
        ({"min_survivors": 8}, "lower min_survivors"),
    ],
)
def test_what_cannot_hold_is_refused_with_the_number_to_change(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        foresee(question(**changes), PACKAGED)


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_unit_cost_that_is_no_duration_is_refused(cost: float) -> None:
    with pytest.raises(PlanError, match="pair"):
        replace(PACKAGED, pair=cost)


def test_an_impossible_shape_is_refused() -> None:
    for changes in ({"degree": 10}, {"degree": 0}, {"dropped": 10}, {"parameters": 0}):
        with pytest.raises(PlanError, match="impossible"):
            replace(SHAPE, **changes)
