"""The sessions of one attempt, taken together."""

from dataclasses import replace

import pytest

from fl_core.errors import LocalProtocolError
from fl_core.rounds.machine import (
    AbandonReason,
    CohortInvited,
    DropoutReason,
    ExchangeClosed,
    RoundRecord,
    RoundState,
    SiteDropped,
    SurvivorsFrozen,
    advance,
    begin,
)
from fl_core.rounds.plan import Aggregation, ClientId, JobId
from fl_core.rounds.sessions import attempt_state, give_up, join


def session(*names: str) -> RoundRecord:
    record = begin(JobId("job"), 1, 1, Aggregation.SECAGG, 0.0)
    return advance(record, CohortInvited(tuple(map(ClientId, names)), 2), 1.0)[0]


def test_an_attempt_waits_for_its_slowest_session_that_goes_on() -> None:
    slow, fast = session("a", "b"), session("c", "d")
    fast, _ = advance(fast, ExchangeClosed(fast.invited), 2.0)
    assert attempt_state([slow, fast]) is RoundState.EXCHANGING
    assert attempt_state([give_up(slow, AbandonReason.SERVICE_LOST, "", 3.0), fast]) is RoundState.UPLOADING


def test_an_attempt_without_a_session_that_goes_on_waits_for_nothing() -> None:
    ended = give_up(session("a", "b"), AbandonReason.SERVICE_LOST, "", 3.0)
    with pytest.raises(LocalProtocolError, match="goes on"):
        attempt_state([ended])


def test_a_session_that_is_given_up_has_no_survivor_and_a_reason_for_everybody() -> None:
    record = session("a", "b", "c")
    record, _ = advance(record, SiteDropped(ClientId("b"), DropoutReason.TRAINING_FAILED), 1.5)
    record, _ = advance(record, ExchangeClosed(record.invited), 2.0)
    record, _ = advance(record, SurvivorsFrozen((ClientId("a"), ClientId("c"))), 2.5)
    ended = give_up(record, AbandonReason.BAD_AGGREGATE, "why", 3.0)
    assert (ended.state, ended.survivors, ended.detail) == (RoundState.ABANDONED, (), "why")
    assert {drop.client_id: drop.reason for drop in ended.dropouts} == {
        "a": DropoutReason.SESSION_ABANDONED,
        "b": DropoutReason.TRAINING_FAILED,
        "c": DropoutReason.SESSION_ABANDONED,
    }


def test_the_record_of_the_attempt_has_the_sites_session_by_session() -> None:
    own = replace(begin(JobId("job"), 1, 1, Aggregation.SECAGG, 0.0), state=RoundState.EXCHANGING)
    whole = join(own, [session("x", "y"), session("a", "b")])
    assert whole.invited == ("x", "y", "a", "b")
    assert whole.state is RoundState.EXCHANGING
