"""Virtual time and the faults that are fixed before a session."""

from functools import partial

import pytest

from fl_core.errors import LocalProtocolError, PlanError
from fl_core.simulation.clock import VirtualClock
from fl_core.simulation.entropy import seeded_entropy
from fl_core.simulation.faults import MOMENTS, DropoutSchedule, Step, Vanish, spread_dropouts


def test_events_run_in_order_and_time_stands_at_the_last() -> None:
    clock, seen = VirtualClock(), list[tuple[str, float]]()
    for delay_s, name in ((2.0, "later"), (1.0, "first"), (1.0, "second")):
        clock.after(delay_s, partial(lambda name: seen.append((name, clock.now_s)), name))
    clock.run(10.0, lambda: len(seen) == 3)
    assert seen == [("first", 1.0), ("second", 1.0), ("later", 2.0)]
    assert clock.now_s == 2.0


def test_a_deadline_leaves_later_events_for_later() -> None:
    clock, seen = VirtualClock(), []
    clock.after(5.0, lambda: seen.append(clock.now_s))
    clock.run(3.0, lambda: False)
    assert (clock.now_s, seen) == (3.0, [])
    clock.drain()
    assert seen == [5.0]


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(LocalProtocolError, match="backwards"):
        VirtualClock().after(-1.0, lambda: None)
    with pytest.raises(PlanError, match="before it is sent"):
        DropoutSchedule(delay_s={(0, Step.SHARE): -1.0})


def test_a_site_that_vanishes_sends_what_came_before() -> None:
    before, after = Vanish(Step.UPLOAD, sent=False), Vanish(Step.UPLOAD, sent=True)
    assert [step for step in Step if before.sends(step)] == [Step.ADVERTISE, Step.SHARE]
    assert [step for step in Step if after.sends(step)] == [Step.ADVERTISE, Step.SHARE, Step.UPLOAD]


def test_dropouts_are_spread_over_all_moments() -> None:
    schedule = spread_dropouts(range(20))
    assert set(schedule.vanish.values()) == set(MOMENTS)
    assert len(MOMENTS) == 10
    assert schedule.sends(20, Step.REVEAL)


def test_seeded_entropy_repeats_itself_and_depends_on_the_seed() -> None:
    first, again, other = seeded_entropy(1), seeded_entropy(1), seeded_entropy(2)
    drawn = first(40)
    assert again(15) + again(25) == drawn
    assert other(40) != drawn
