"""Retries: what is tried again, how long, and how the delays spread."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settling import settle

from fl_core.errors import ConfigError, IdentityError, PeerLost
from fl_core.transport.retry import Backoff, retry


def failing(times: int, error: Exception) -> Callable[[], Awaitable[str]]:
    left = [times]

    async def call() -> str:
        if left[0] == 0:
            return "done"
        left[0] -= 1
        raise error

    return call


class FakeSleep:
    def __init__(self) -> None:
        self.delays: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.delays.append(seconds)


async def test_a_retryable_error_is_tried_again_with_growing_delays() -> None:
    sleep = FakeSleep()
    backoff = Backoff(first_s=1, max_s=5, uniform=lambda _low, high: high)
    assert await retry(failing(5, PeerLost("gone")), deadline_s=60, backoff=backoff, sleep=sleep) == "done"
    assert sleep.delays == [1, 2, 4, 5, 5]


async def test_an_error_for_good_is_raised_at_once() -> None:
    sleep = FakeSleep()
    with pytest.raises(IdentityError, match="revoked"):
        await retry(failing(1, IdentityError("revoked")), deadline_s=60, sleep=sleep)
    assert sleep.delays == []


async def test_a_foreign_error_is_not_tried_again() -> None:
    with pytest.raises(ZeroDivisionError):
        await retry(failing(1, ZeroDivisionError()), deadline_s=60, sleep=FakeSleep())


async def test_the_last_error_is_raised_at_the_deadline() -> None:
    backoff = Backoff(first_s=0.01, max_s=0.01)
    with pytest.raises(PeerLost, match="still gone"):
        await retry(failing(10**6, PeerLost("still gone")), deadline_s=0.1, backoff=backoff)


async def test_a_call_that_hangs_is_cancelled_at_the_deadline() -> None:
    with pytest.raises(PeerLost, match=r"no answer before the deadline: expected within 0.05 s"):
        await retry(lambda: asyncio.sleep(60), deadline_s=0.05)


async def test_a_timeout_of_the_call_itself_is_not_taken_for_the_deadline() -> None:
    with pytest.raises(TimeoutError):
        await retry(failing(1, TimeoutError()), deadline_s=60, sleep=FakeSleep())


async def test_cancellation_passes_through() -> None:
    task = asyncio.create_task(retry(failing(10**6, PeerLost("gone")), deadline_s=60))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@given(failures=st.integers(0, 5000), first=st.floats(0.001, 1), limit=st.floats(1, 100))
def test_a_delay_never_leaves_its_bounds(failures: int, first: float, limit: float) -> None:
    backoff = Backoff(first_s=first, max_s=limit)
    backoff._failures = failures
    assert 0 <= backoff.next_delay() <= limit


def test_success_begins_anew() -> None:
    backoff = Backoff(first_s=1, max_s=100, uniform=lambda _low, high: high)
    assert [backoff.next_delay() for _ in range(3)] == [1, 2, 4]
    backoff.reset()
    assert backoff.next_delay() == 1


@pytest.mark.parametrize(("first", "limit"), [(0, 1), (-1, 1), (2, 1)])
def test_delays_that_make_no_sense_are_refused(first: float, limit: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Backoff(first_s=first, max_s=limit)
