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
from fl_core.rounds.sessions import attempt_state, fails_for_absence, give_up, join


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


def without(reason: DropoutReason, *gone: str) -> RoundRecord:
    """A session of three sites, of which two are needed and some dropped out."""
    record = session("a", "b", "c")
    for name in gone:
        record, _ = advance(record, SiteDropped(ClientId(name), reason), 1.5)
    return record


@pytest.mark.parametrize("reason", list(AbandonReason))
def test_only_a_shortage_of_sites_is_excused(reason: AbandonReason) -> None:
    is_excused = fails_for_absence(reason, [without(DropoutReason.DISCONNECTED, "a", "b")], is_private=False)
    assert is_excused == reason.value.startswith("too_few")


@pytest.mark.parametrize("reason", list(DropoutReason))
def test_a_shortage_is_excused_when_those_who_were_away_would_have_been_enough(reason: DropoutReason) -> None:
    is_network = reason in {
        DropoutReason.DISCONNECTED,
        DropoutReason.ADVERTISE_TIMEOUT,
        DropoutReason.SHARE_TIMEOUT,
        DropoutReason.UPLOAD_TRUNCATED,
        DropoutReason.UNMASK_TIMEOUT,
        DropoutReason.SESSION_ABANDONED,
    }
    shortage = AbandonReason.TOO_FEW_UPLOADS
    assert fails_for_absence(shortage, [without(reason, "a", "b")], is_private=False) == is_network
    # One that misbehaves leaves two, which are enough.
    assert fails_for_absence(shortage, [without(reason, "a")], is_private=False)
    lacking = [without(reason, "a", "b"), without(DropoutReason.DISCONNECTED, "a", "b", "c")]
    assert fails_for_absence(shortage, lacking, is_private=False) == is_network


def test_a_shortage_before_anybody_was_invited_is_excused() -> None:
    assert fails_for_absence(AbandonReason.TOO_FEW_SITES, [], is_private=True)


def test_a_shortage_whose_noise_was_counted_is_not_excused() -> None:
    waiting = without(DropoutReason.UNMASK_TIMEOUT, "a")
    waiting, _ = advance(waiting, ExchangeClosed(waiting.invited), 2.0)
    counted, _ = advance(waiting, SurvivorsFrozen((ClientId("b"), ClientId("c"))), 2.5)
    counted = give_up(counted, AbandonReason.TOO_FEW_REVEALS, "", 3.0)
    ended = give_up(waiting, AbandonReason.TOO_FEW_UPLOADS, "", 3.0)
    assert fails_for_absence(AbandonReason.TOO_FEW_UPLOADS, [ended], is_private=True)
    assert fails_for_absence(AbandonReason.TOO_FEW_REVEALS, [counted], is_private=False)
    assert not fails_for_absence(AbandonReason.TOO_FEW_REVEALS, [ended, counted], is_private=True)


def test_the_record_of_the_attempt_has_the_sites_session_by_session() -> None:
    own = replace(begin(JobId("job"), 1, 1, Aggregation.SECAGG, 0.0), state=RoundState.EXCHANGING)
    whole = join(own, [session("x", "y"), session("a", "b")])
    assert whole.invited == ("x", "y", "a", "b")
    assert whole.state is RoundState.EXCHANGING
