"""Attack: the servers shrink the cohort until the sum is as good as one update.

What stops it: a site reveals nothing for fewer survivors than the plan says, and takes part in no plan, and signs no
sum, with fewer sites than its owner says.
"""

from typing import Any

import pytest

from client_sdk import SitePolicy
from client_sdk.policy import check_survivors
from fl_core.errors import NotEnough, PlanError, PolicyRefused, RemoteProtocolError
from fl_core.secagg import client
from fl_core.secagg.context import SessionContext
from fl_core.secagg.messages import ConsistencyProof, SurvivorSet
from fl_core.simulation import stages

SIZE, SMALLEST = 7, 6


def shrunk(size: int) -> list[client.Revealed]:
    """A key server asks for the shares of the first `size` sites only, and those sign and reveal."""
    stage = stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE, threshold=4, min_survivors=SMALLEST))))
    told = SurvivorSet(tuple(range(size)))
    waiting = [stage.sites[index].step(told) for index in told.survivors]
    proof = ConsistencyProof(tuple(signature for _, signature in waiting))
    return [phase.step(proof)[0] for phase, _ in waiting]


def test_one_survivor_fewer_than_the_plan_says_and_nobody_signs() -> None:
    with pytest.raises(NotEnough, match=f">= {SMALLEST}, got {SMALLEST - 1}"):
        shrunk(SMALLEST - 1)


def test_exactly_as_many_as_the_plan_says_are_unmasked() -> None:
    assert len(shrunk(SMALLEST)) == SMALLEST


def test_without_the_check_a_threshold_of_sites_is_unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.AwaitingSurvivors, "check", lambda *_: None)
    assert len(shrunk(4)) == 4


@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_session_of_two_cannot_even_be_made(size: int) -> None:
    with pytest.raises(PlanError):
        SessionContext(bytes(32), size, max(size, 1), max(size, 1), 32, 6)


def test_a_plan_with_a_low_minimum_does_not_lower_the_owners(plan_of: Any) -> None:
    plan = plan_of(*(f"site-{number}" for number in range(SIZE)))
    assert len(check_survivors(plan, 0, range(5), SitePolicy(min_cohort=5), [])) == 5
    with pytest.raises(PolicyRefused, match="the sum is too small for this site: expected >= 5 sites, got 4"):
        check_survivors(plan, 0, range(4), SitePolicy(min_cohort=5), [])


def test_a_survivor_outside_of_the_roster_is_a_lie(plan_of: Any) -> None:
    plan = plan_of("alpha", "beta", "gamma")
    with pytest.raises(RemoteProtocolError, match="not in the roster"):
        check_survivors(plan, 0, (0, 1, 3), SitePolicy(), [])
