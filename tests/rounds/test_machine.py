"""The round machine: the two ways through it, what may not happen, and its invariants under any events."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fl_core.errors import LocalProtocolError
from fl_core.rounds.machine import (
    AbandonReason,
    AggregateReceived,
    AttemptAbandoned,
    CohortInvited,
    DropoutReason,
    Event,
    ExchangeClosed,
    ModelCommitted,
    Quorum,
    RoundRecord,
    RoundState,
    SiteDropout,
    SiteDropped,
    SurvivorsFrozen,
    advance,
    begin,
    next_deadline_s,
    quorum,
)
from fl_core.rounds.plan import Aggregation, ClientId, JobId, PhaseBounds
from fl_core.wire.v1 import round_pb2

SITES = tuple(ClientId(f"site-{place}") for place in range(5))
SECURE: list[Event] = [
    CohortInvited(SITES, 3),
    ExchangeClosed(SITES[:4]),
    SurvivorsFrozen(SITES[1:4]),
    AggregateReceived(SITES[1:4]),
    ModelCommitted(8),
]
PLAIN: list[Event] = [CohortInvited(SITES, 3), AggregateReceived(SITES[:3]), ModelCommitted(8)]


def walk(aggregation: Aggregation, events: list[Event]) -> RoundRecord:
    record = begin(JobId("job"), 1, 1, aggregation, 100.0)
    for place, event in enumerate(events):
        record, _ = advance(record, event, 101.0 + place)
    return record


def test_a_secure_attempt_passes_every_state() -> None:
    record = walk(Aggregation.SECAGG, SECURE)
    assert record.state is RoundState.COMMITTED
    assert [phase.state.value for phase in record.phases] == [
        "recruiting",
        "exchanging",
        "uploading",
        "unmasking",
        "applying",
    ]
    assert (record.survivors, record.model_version, record.seconds) == (SITES[1:4], 8, 5.0)


def test_a_plain_attempt_skips_keys_and_masks() -> None:
    record = walk(Aggregation.PLAIN, PLAIN)
    assert [phase.state.value for phase in record.phases] == ["recruiting", "uploading", "applying"]
    assert record.survivors == SITES[:3]


@pytest.mark.parametrize(
    ("aggregation", "events"), [(Aggregation.SECAGG, SECURE), (Aggregation.PLAIN, PLAIN)], ids=["secure", "plain"]
)
def test_every_event_out_of_turn_is_refused_and_changes_nothing(aggregation: Aggregation, events: list[Event]) -> None:
    for done in range(len(events) + 1):
        record = walk(aggregation, events[:done])
        for event in (*SECURE, *PLAIN):
            if done < len(events) and type(event) is type(events[done]):
                continue
            before = repr(record)
            with pytest.raises(LocalProtocolError):
                advance(record, event, 200.0)
            assert repr(record) == before


@pytest.mark.parametrize("done", range(5))
def test_every_state_before_the_end_can_be_abandoned_and_nothing_follows(done: int) -> None:
    record = walk(Aggregation.SECAGG, [*SECURE[:done], AttemptAbandoned(AbandonReason.SERVICE_LOST, "keyserver")])
    assert record.state is RoundState.ABANDONED
    assert (record.abandon_reason, record.detail) == (AbandonReason.SERVICE_LOST, "keyserver")
    for event in (*SECURE, AttemptAbandoned(AbandonReason.DEADLINE), SiteDropped(SITES[0], DropoutReason.DISCONNECTED)):
        with pytest.raises(LocalProtocolError):
            advance(record, event, 200.0)


@pytest.mark.parametrize("first", [DropoutReason.DISCONNECTED, DropoutReason.BAD_SHARES])
def test_blame_replaces_any_other_reason_and_is_never_replaced(first: DropoutReason) -> None:
    blamed = SiteDropped(SITES[0], DropoutReason.FALSE_REVEAL)
    record = walk(Aggregation.SECAGG, [*SECURE[:1], SiteDropped(SITES[0], first), SECURE[1], blamed])
    assert record.dropouts == (SiteDropout(SITES[0], DropoutReason.FALSE_REVEAL, RoundState.UPLOADING),)
    assert not record.is_news(SITES[0], DropoutReason.FALSE_DEALING)
    after, _ = advance(record, SiteDropped(SITES[0], first), 200.0)
    assert after == record


def test_the_first_reason_of_a_dropout_stands_with_its_phase() -> None:
    dropped = SiteDropped(SITES[0], DropoutReason.DISCONNECTED)
    record = walk(Aggregation.SECAGG, [*SECURE[:1], dropped, SECURE[1], SiteDropped(SITES[0], DropoutReason.BAD_KEY)])
    assert [(one.client_id, one.reason, one.phase) for one in record.dropouts] == [
        (SITES[0], DropoutReason.DISCONNECTED, RoundState.EXCHANGING)
    ]
    assert record.lost == {SITES[0]}


def test_a_dropout_is_no_change_of_state_and_does_not_restart_the_clock_of_its_phase() -> None:
    record = walk(Aggregation.SECAGG, SECURE[:1])
    after, transition = advance(record, SiteDropped(SITES[2], DropoutReason.TRAINING_FAILED), 107.0)
    assert not transition.changed_state
    assert (after.entered_s, transition.seconds) == (record.entered_s, 6.0)


@pytest.mark.parametrize(
    ("done", "event", "words"),
    [
        (0, CohortInvited(SITES[:2], 3), "too few"),
        (0, CohortInvited(SITES[::-1], 3), "order"),
        (0, CohortInvited(SITES, 0), "min_survivors"),
        (1, ExchangeClosed((*SITES[:3], ClientId("site-9"))), "may not be there"),
        (1, ExchangeClosed(SITES[:2]), "too few"),
        (2, SurvivorsFrozen(SITES[2:]), "may not be there"),
        (2, SurvivorsFrozen((SITES[0], SITES[0], SITES[1])), "distinct"),
        (3, AggregateReceived(SITES[:3]), "frozen survivors"),
        (1, SiteDropped(ClientId("stranger"), DropoutReason.DISCONNECTED), "not invited"),
    ],
)
def test_sites_that_may_not_be_named_are_refused(done: int, event: Event, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        advance(walk(Aggregation.SECAGG, SECURE[:done]), event, 200.0)


def test_a_clock_that_runs_backwards_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="clock"):
        advance(walk(Aggregation.SECAGG, SECURE[:2]), SECURE[2], 1.0)


@pytest.mark.parametrize(("round_id", "attempt"), [(0, 1), (1, 0), (-1, 1)])
def test_rounds_and_attempts_count_from_one(round_id: int, attempt: int) -> None:
    with pytest.raises(LocalProtocolError):
        begin(JobId("job"), round_id, attempt, Aggregation.PLAIN, 0.0)


@pytest.mark.parametrize(
    ("kind", "enum", "prefix"),
    [
        (RoundState, round_pb2.RoundState, "ROUND_STATE_"),
        (DropoutReason, round_pb2.DropoutReason, "DROPOUT_REASON_"),
        (AbandonReason, round_pb2.AbandonReason, "ABANDON_REASON_"),
    ],
)
def test_the_enums_have_the_members_of_the_wire(kind: type[RoundState], enum: object, prefix: str) -> None:
    wire = {name.removeprefix(prefix).lower() for name in enum.keys()} - {"unspecified"}  # type: ignore[attr-defined]  # noqa: SIM118
    assert {member.value for member in kind} == wire


BOUNDS = PhaseBounds(5.0, 60.0)


@pytest.mark.parametrize(
    ("answered", "expected", "elapsed_s", "verdict"),
    [
        (10, 10, 0.0, Quorum.CLOSE),
        (7, 10, 4.9, Quorum.WAIT),
        (7, 10, 5.0, Quorum.CLOSE),
        (6, 10, 59.9, Quorum.WAIT),
        (6, 10, 60.0, Quorum.FAIL),
        (6, 6, 0.0, Quorum.FAIL),
        (0, 6, 0.0, Quorum.FAIL),
        (7, 7, 0.0, Quorum.CLOSE),
        (9, 10, 1000.0, Quorum.CLOSE),
    ],
)
def test_a_phase_waits_closes_or_fails(answered: int, expected: int, elapsed_s: float, verdict: Quorum) -> None:
    assert quorum(answered, expected, 7, elapsed_s, BOUNDS) is verdict


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.floats(0, 100))
def test_a_phase_never_closes_without_enough_and_never_waits_beyond_its_bound(
    answered: int, missing: int, needed: int, elapsed_s: float
) -> None:
    verdict = quorum(answered, answered + missing, needed, elapsed_s, BOUNDS)
    assert verdict is not Quorum.CLOSE or answered >= needed
    assert verdict is not Quorum.FAIL or answered < needed
    assert verdict is not Quorum.WAIT or elapsed_s < next_deadline_s(answered, needed, BOUNDS)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(LocalProtocolError):
        quorum(3, 2, 1, 0.0, BOUNDS)


@dataclass
class Facts:
    """What the machine should know, kept in another way."""

    states: list[RoundState]
    dropped: dict[ClientId, DropoutReason]


class Attempts(RuleBasedStateMachine):
    """Any order of events: legal ones move the attempt forward, the others leave it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    @initialize(aggregation=st.sampled_from(Aggregation))
    def start(self, aggregation: Aggregation) -> None:
        self.record = begin(JobId("job"), 2, 1, aggregation, self.now_s)
        self.facts = Facts([self.record.state], {})

    def take(self, event: Event) -> None:
        self.now_s += 1
        before = self.record
        try:
            self.record, transition = advance(before, event, self.now_s)
        except LocalProtocolError:
            assert self.record is before
            return
        assert transition.before is before.state
        assert transition.after is self.record.state
        if transition.changed_state:
            self.facts.states.append(self.record.state)

    @rule(sites=st.sets(st.sampled_from(SITES)), needed=st.integers(0, 4))
    def invite(self, sites: set[ClientId], needed: int) -> None:
        self.take(CohortInvited(tuple(sorted(sites)), needed))

    @rule(sites=st.sets(st.sampled_from(SITES)), event=st.sampled_from([ExchangeClosed, SurvivorsFrozen]))
    def narrow(self, sites: set[ClientId], event: type[ExchangeClosed] | type[SurvivorsFrozen]) -> None:
        self.take(event(tuple(sorted(sites))))

    @precondition(lambda self: self.record.state in (RoundState.UPLOADING, RoundState.UNMASKING))
    @rule(is_right=st.booleans())
    def aggregate(self, is_right: bool) -> None:
        right = self.record.survivors or self.record.eligible
        self.take(AggregateReceived(right if is_right else right[1:]))

    @rule(version=st.integers(1, 9))
    def commit(self, version: int) -> None:
        self.take(ModelCommitted(version))

    @rule(site=st.sampled_from((*SITES, ClientId("stranger"))), reason=st.sampled_from(DropoutReason))
    def drop(self, site: ClientId, reason: DropoutReason) -> None:
        if site in self.record.invited and not self.record.state.is_final:
            before = self.facts.dropped.setdefault(site, reason)
            if reason.is_blame and not before.is_blame:
                self.facts.dropped[site] = reason
        self.take(SiteDropped(site, reason))

    @rule(reason=st.sampled_from(AbandonReason))
    @precondition(lambda self: self.now_s > 8)
    def abandon(self, reason: AbandonReason) -> None:
        self.take(AttemptAbandoned(reason))

    @invariant()
    def states_only_move_forward(self) -> None:
        order = list(RoundState)
        places = [order.index(state) for state in self.facts.states]
        assert places == sorted(set(places))
        assert [phase.state for phase in self.record.phases] == self.facts.states[:-1]

    @invariant()
    def sets_only_shrink(self) -> None:
        assert set(self.record.survivors) <= set(self.record.eligible) <= set(self.record.invited)
        assert not self.record.survivors or len(self.record.survivors) >= self.record.min_survivors

    @invariant()
    def every_dropout_has_its_first_reason_or_the_first_blame(self) -> None:
        assert {one.client_id: one.reason for one in self.record.dropouts} == self.facts.dropped

    @invariant()
    def only_a_committed_attempt_has_a_version_and_only_an_abandoned_one_a_reason(self) -> None:
        assert (self.record.model_version is not None) == (self.record.state is RoundState.COMMITTED)
        assert (self.record.abandon_reason is not None) == (self.record.state is RoundState.ABANDONED)


TestAttempts = Attempts.TestCase
TestAttempts.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
