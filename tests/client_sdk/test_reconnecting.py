"""How soon a site calls again: sparingly when nobody answers, often when another replica is about to take over."""

import pytest

from client_sdk.reconnecting import LONGEST_PAUSE_S, LONGEST_TAKEOVER_PAUSE_S, STEADY_S, Reconnecting
from fl_core.errors import NotLeading, PeerLost, TacitError

GONE = PeerLost("no coordinator can be reached")
WAITS = NotLeading("this coordinator does not drive the rounds")


def longest(_low: float, high: float) -> float:
    return high


def pauses(reconnecting: Reconnecting, *errors: TacitError) -> list[float]:
    return [reconnecting.next_delay(error, held_s=0.0) for error in errors]


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_when_nobody_answers_the_pauses_grow_to_the_longest(replicas: int) -> None:
    waited = pauses(Reconnecting(replicas, longest), *[GONE] * 12)
    assert waited == sorted(waited)
    assert waited[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize("replicas", [2, 3, 5])
def test_while_one_replica_answers_no_pause_is_long(replicas: int) -> None:
    circle = [WAITS, *[GONE] * (replicas - 1)]
    waited = pauses(Reconnecting(replicas, longest), *circle * 12)
    assert waited[-1] == max(waited) == LONGEST_TAKEOVER_PAUSE_S


def test_a_replica_that_fell_silent_too_is_not_waited_for() -> None:
    waited = pauses(Reconnecting(2, longest), WAITS, *[GONE] * 12)
    assert waited[-1] == LONGEST_PAUSE_S


def test_after_a_connection_that_held_the_next_pause_is_short() -> None:
    reconnecting = Reconnecting(2, longest)
    first, *_ = pauses(reconnecting, *[GONE] * 12)
    assert reconnecting.next_delay(GONE, held_s=STEADY_S + 1) == first
    pauses(reconnecting, *[GONE] * 12)
    reconnecting.reset()
    assert reconnecting.next_delay(GONE, held_s=0.0) == first


def test_the_pauses_of_many_sites_are_spread() -> None:
    waited = {Reconnecting(2).next_delay(WAITS, held_s=0.0) for _ in range(50)}
    assert len(waited) == 50
