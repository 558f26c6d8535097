"""The journal of unmasked sessions, on both databases, and the counting of answers in a phase."""

import asyncio
from typing import Any

import pytest
from secagg_cluster import Cluster
from settling import settle

from fl_core.errors import ConfigError, SessionFrozen, UnknownSession
from fl_core.rounds.plan import PhaseBounds, RoundPlan
from fl_core.transport.identity import Role
from services.keyserver.gathering import Gathering
from services.keyserver.journal import UnmaskJournal
from services.runtime.events import EventLog, Notice


@pytest.fixture
def plan(federation: Any) -> RoundPlan:
    addresses = {Role.AGGREGATOR: "127.0.0.1:1", Role.KEYSERVER: "127.0.0.1:2"}
    missing: Any = None
    return Cluster(federation, missing, missing, missing, missing, addresses, missing).plan()


async def test_a_session_is_recorded_once_for_ever(database_url: str, plan: RoundPlan) -> None:
    journal = await UnmaskJournal.open(database_url)
    await journal.check_not_unmasked(plan.session_id)
    await journal.record(plan, (0, 1, 2))
    with pytest.raises(SessionFrozen):
        await journal.record(plan, (0, 1, 3))
    await journal.close()
    again = await UnmaskJournal.open(database_url)
    with pytest.raises(SessionFrozen, match=plan.session_id.hex()):
        await again.check_not_unmasked(plan.session_id)
    await again.check_not_unmasked(bytes(16))
    await again.close()


async def test_of_two_records_at_once_one_is_refused(database_url: str, plan: RoundPlan) -> None:
    journal = await UnmaskJournal.open(database_url)
    outcomes = await asyncio.gather(
        journal.record(plan, (0, 1, 2)), journal.record(plan, (0, 1, 3)), return_exceptions=True
    )
    await journal.close()
    assert sorted(outcome is None for outcome in outcomes) == [False, True]


async def test_an_unusable_url_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        await UnmaskJournal.open("mysql://nobody@nowhere/nothing")


def gathering(*, gone: tuple[int, ...] = (), needed: int = 2, low: float = 0.05, high: float = 0.2) -> Gathering:
    return Gathering(range(4), gone, needed, PhaseBounds(low, high), Notice())


def alive() -> None:
    """A session that was not ended."""


async def test_a_phase_closes_at_once_when_everybody_left_answered() -> None:
    phase = gathering(gone=(3,), low=60.0, high=60.0)
    for index in (0, 1, 2):
        phase.answer(index)
    async with asyncio.timeout(20):
        assert await phase.is_met(alive)
    assert phase.missing == frozenset()


async def test_a_phase_closes_after_the_minimum_when_enough_answered() -> None:
    phase = gathering(high=60.0)
    phase.answer(0)
    phase.answer(1)
    async with asyncio.timeout(20):
        assert await phase.is_met(alive)
    assert phase.missing == {2, 3}


async def test_a_phase_fails_at_its_deadline_and_as_soon_as_enough_cannot_come() -> None:
    assert not await gathering().is_met(alive)
    late = gathering(low=60.0, high=60.0)
    waiting = asyncio.create_task(late.is_met(alive))
    await settle(0.02)
    late.drop([0, 1, 2])
    async with asyncio.timeout(20):
        assert not await waiting


async def test_a_lost_site_that_answers_all_the_same_counts() -> None:
    phase = gathering(gone=(0, 1, 2), needed=2, low=60.0, high=60.0)
    phase.answer(0)
    phase.answer(3)
    async with asyncio.timeout(20):
        assert await phase.is_met(alive)


async def test_facts_are_replayed_in_order_and_end_with_the_error() -> None:
    facts: EventLog[int] = EventLog()
    facts.append(1)
    seen: list[int] = []

    async def watch() -> None:
        async for fact in facts.follow():
            seen.append(fact)

    watching = asyncio.create_task(watch())
    await settle(0.02)
    facts.append(2)
    facts.append(3)
    facts.fail(UnknownSession("gone"))
    with pytest.raises(UnknownSession):
        await watching
    assert seen == [1, 2, 3]
