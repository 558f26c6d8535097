"""The sessions of one attempt, taken together. Each runs through the round machine by itself."""

from collections.abc import Sequence
from dataclasses import replace

from fl_core.errors import LocalProtocolError
from fl_core.rounds.machine import (
    AbandonReason,
    AttemptAbandoned,
    DropoutReason,
    RoundRecord,
    RoundState,
    SiteDropped,
    advance,
)

_ORDER = list(RoundState)


def attempt_state(sessions: Sequence[RoundRecord]) -> RoundState:
    """What an attempt waits for: the slowest of its sessions that were not given up.

    Raises:
        LocalProtocolError: every session was given up, and with the last one the attempt.
    """
    going = [session.state for session in sessions if session.state is not RoundState.ABANDONED]
    if not going:
        raise LocalProtocolError("no session of the attempt goes on", expected="one at least", got=len(sessions))
    return min(going, key=_ORDER.index)


def give_up(session: RoundRecord, reason: AbandonReason, detail: str, now_s: float) -> RoundRecord:
    """Give up one session of an attempt that goes on: its sites dropped out, and nobody of it is in the sum.

    Raises:
        LocalProtocolError: it has ended.
    """
    record = session
    for client_id in session.invited:
        if client_id not in session.lost:
            record, _ = advance(record, SiteDropped(client_id, DropoutReason.SESSION_ABANDONED), now_s)
    record, _ = advance(record, AttemptAbandoned(reason, detail), now_s)
    return replace(record, survivors=())


def fails_for_absence(reason: AbandonReason, sessions: Sequence[RoundRecord], *, is_private: bool) -> bool:
    """Whether an attempt is given up only because sites were away: no reason to give up its job.

    It is not when so many sites dropped out for another reason (they refuse the plan, cannot train, send nonsense) that
    those who were away would not have been enough either. Nor when noise was counted for a sum that never came: to go
    on like that would use up the budget.

    Args:
        reason: why it is given up.
        sessions: of the attempt; none when it did not get beyond recruiting.
        is_private: whether each unmasking is counted against a budget.
    """
    unmasked = any(phase.state is RoundState.UNMASKING for session in sessions for phase in session.phases)
    if not reason.is_shortage or (is_private and unmasked):
        return False
    return all(session.is_enough_without_absences for session in sessions)


def join(attempt: RoundRecord, sessions: Sequence[RoundRecord]) -> RoundRecord:
    """One record of the whole attempt: its own state and end, and the sites of all sessions, session by session.

    Args:
        attempt: state, times and end of the attempt.
        sessions: in the order of their numbers.
    """
    return replace(
        attempt,
        invited=tuple(name for session in sessions for name in session.invited),
        eligible=tuple(name for session in sessions for name in session.eligible),
        survivors=tuple(name for session in sessions for name in session.survivors),
        dropouts=tuple(dropout for session in sessions for dropout in session.dropouts),
    )
