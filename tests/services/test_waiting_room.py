"""Uploads that wait: a bounded number, the others come back when they are told to."""

import asyncio
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from secagg_cluster import plain_sum, running_cluster

from fl_core.errors import Overloaded
from fl_core.transport.retry import retry
from services.aggregator import intake
from services.aggregator.waiting_room import FIRST_PACE_S, HASTE, LONGEST_RETRY_AFTER_S, WaitingRoom


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def turned_away(room: WaitingRoom) -> float:
    with pytest.raises(Overloaded) as caught, room.seat():
        raise AssertionError("there was a seat")
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_who_finds_no_seat_is_told_a_time_of_his_own_at_the_pace_of_the_turns() -> None:
    clock = Clock()
    room = WaitingRoom(2, clock)
    with ExitStack() as seats:
        for _ in range(2):
            seats.enter_context(room.seat())
        times = [turned_away(room) for _ in range(3)]
    assert times == pytest.approx([HASTE * FIRST_PACE_S * place for place in (2, 3, 4)])


def test_the_pace_is_that_of_the_turns_that_were_waited_for() -> None:
    clock = Clock()
    room = WaitingRoom(3, clock)
    with ExitStack() as waiting:
        for _ in range(2):
            waiting.enter_context(room.seat())
        for _ in range(60):
            clock.now += 2.0
            with room.seat():
                pass
        waiting.enter_context(room.seat())
        first, second = turned_away(room), turned_away(room)
    assert second - first == pytest.approx(2.0 * HASTE, rel=0.01)


def test_nobody_is_sent_away_for_longer_than_the_limit() -> None:
    room = WaitingRoom(1, Clock())
    with room.seat():
        times = [turned_away(room) for _ in range(4000)]
    assert max(times) == LONGEST_RETRY_AFTER_S


async def test_sites_that_found_no_seat_come_back_and_are_in_the_sum(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SPARE_SENDERS", 0)
    settings = {"max_uploads": 1, "max_waiting_uploads": 1}
    async with running_cluster(federation, aggregator=settings) as cluster:
        plan = cluster.plain_plan()
        await cluster.open_plan(plan)
        sites = [await cluster.site(plan, index) for index in range(len(plan.roster))]
        turned = []

        async def upload(site: Any) -> None:
            async def once() -> None:
                try:
                    await site.upload()
                except Overloaded as error:
                    turned.append(error.retry_after_s)
                    raise

            await retry(once, deadline_s=20.0)

        await asyncio.gather(*(upload(site) for site in sites))
        assert turned
        assert all(seconds is not None and seconds <= LONGEST_RETRY_AFTER_S for seconds in turned)
        everybody = list(range(len(plan.roster)))
        assert await cluster.freeze(plan, everybody) == tuple(everybody)
        (reported,) = cluster.coordinator.reports
        np.testing.assert_array_equal(reported.vector, plain_sum(plan, everybody))
