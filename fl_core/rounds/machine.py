"""The round machine: what an attempt is waiting for, and what may happen next. Pure; the clock is an argument.

recruiting -> exchanging -> uploading -> unmasking -> applying -> committed     (secure)
recruiting -> uploading -> applying -> committed                                (plain)
every state before committed -> abandoned
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from fl_core.errors import LocalProtocolError
from fl_core.rounds.plan import Aggregation, ClientId, JobId, PhaseBounds


class RoundState(StrEnum):
    """What an attempt is waiting for."""

    RECRUITING = "recruiting"
    EXCHANGING = "exchanging"
    UPLOADING = "uploading"
    UNMASKING = "unmasking"
    APPLYING = "applying"
    COMMITTED = "committed"
    ABANDONED = "abandoned"

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen any more."""
        return self in (RoundState.COMMITTED, RoundState.ABANDONED)


class DropoutReason(StrEnum):
    """Why a site that was invited is not among the survivors, or did not finish."""

    DISCONNECTED = "disconnected"
    POLICY_REFUSED = "policy_refused"
    TRAINING_FAILED = "training_failed"
    INVALID_UPDATE = "invalid_update"
    ADVERTISE_TIMEOUT = "advertise_timeout"
    SHARE_TIMEOUT = "share_timeout"
    UPLOAD_TIMEOUT = "upload_timeout"
    UPLOAD_TRUNCATED = "upload_truncated"
    UPLOAD_REFUSED = "upload_refused"
    BAD_SIGNATURE = "bad_signature"
    BAD_KEY = "bad_key"
    BAD_SHARES = "bad_shares"
    UNMASK_TIMEOUT = "unmask_timeout"
    PROTOCOL_VIOLATION = "protocol_violation"
    FALSE_REVEAL = "false_reveal"
    FALSE_DEALING = "false_dealing"
    SESSION_ABANDONED = "session_abandoned"

    @property
    def is_blame(self) -> bool:
        """Whether the site was caught lying, which no fault of a network looks like."""
        return self in (DropoutReason.FALSE_REVEAL, DropoutReason.FALSE_DEALING)

    @property
    def is_absence(self) -> bool:
        """Whether the site was merely away, or its link bad, which says nothing about it or the job."""
        return self in (
            DropoutReason.DISCONNECTED,
            DropoutReason.ADVERTISE_TIMEOUT,
            DropoutReason.SHARE_TIMEOUT,
            DropoutReason.UPLOAD_TRUNCATED,
            DropoutReason.UNMASK_TIMEOUT,
            DropoutReason.SESSION_ABANDONED,
        )


class AbandonReason(StrEnum):
    """Why an attempt was given up."""

    TOO_FEW_SITES = "too_few_sites"
    TOO_FEW_KEYS = "too_few_keys"
    TOO_FEW_SHARES = "too_few_shares"
    TOO_FEW_UPLOADS = "too_few_uploads"
    TOO_FEW_SIGNATURES = "too_few_signatures"
    TOO_FEW_REVEALS = "too_few_reveals"
    BAD_SHARES = "bad_shares"
    BAD_AGGREGATE = "bad_aggregate"
    SERVICE_LOST = "service_lost"
    SERVICE_RESTARTED = "service_restarted"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    BUDGET_EXHAUSTED = "budget_exhausted"

    @property
    def is_shortage(self) -> bool:
        """Whether too few sites did something in time."""
        return self in (
            AbandonReason.TOO_FEW_SITES,
            AbandonReason.TOO_FEW_KEYS,
            AbandonReason.TOO_FEW_SHARES,
            AbandonReason.TOO_FEW_UPLOADS,
            AbandonReason.TOO_FEW_SIGNATURES,
            AbandonReason.TOO_FEW_REVEALS,
        )


class Quorum(StrEnum):
    """What to do with a phase now."""

    WAIT = "wait"
    CLOSE = "close"
    FAIL = "fail"


def quorum(answered: int, expected: int, needed: int, elapsed_s: float, bounds: PhaseBounds) -> Quorum:
    """Decide whether a phase goes on waiting, closes, or fails.

    Args:
        answered: sites that answered, whether or not they are still there.
        expected: sites that answered or still may: everybody who is not lost.
        needed: answers without which the attempt cannot go on.
        elapsed_s: seconds since the phase began.
        bounds: of the phase.

    Returns:
        CLOSE when everybody answered, when `min_seconds` passed and enough did, or at `max_seconds` when enough did;
        FAIL when enough cannot answer any more, or did not by `max_seconds`; WAIT otherwise.

    Raises:
        LocalProtocolError: 0 <= answered <= expected does not hold.
    """
    if not 0 <= answered <= expected:
        raise LocalProtocolError("the counts of a phase are impossible", expected=f"0 to {expected}", got=answered)
    if expected < needed:
        return Quorum.FAIL
    if answered < needed:
        return Quorum.FAIL if elapsed_s >= bounds.max_seconds else Quorum.WAIT
    is_over = answered == expected or elapsed_s >= bounds.min_seconds
    return Quorum.CLOSE if is_over else Quorum.WAIT


def next_deadline_s(answered: int, needed: int, bounds: PhaseBounds) -> float:
    """Seconds after the start of a phase at which `quorum` can change without a new answer or loss."""
    return bounds.min_seconds if answered >= needed else bounds.max_seconds


@dataclass(frozen=True, slots=True)
class CohortInvited:
    """The roster stands and the plan is written: recruiting is over."""

    invited: tuple[ClientId, ...]
    min_survivors: int


@dataclass(frozen=True, slots=True)
class ExchangeClosed:
    """The key server closed the exchange: these sites are U2."""

    shared: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class SurvivorsFrozen:
    """The aggregator takes no upload any more: these sites are U3. Secure attempts only."""

    survivors: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class AggregateReceived:
    """The checked sum of exactly these sites is here."""

    survivors: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class ModelCommitted:
    """The new model version is stored."""

    model_version: int


@dataclass(frozen=True, slots=True)
class SiteDropped:
    """A site left, was lost or was refused. The first reason stands, unless a later one is blame."""

    client_id: ClientId
    reason: DropoutReason


@dataclass(frozen=True, slots=True)
class AttemptAbandoned:
    """The attempt is given up."""

    reason: AbandonReason
    detail: str = ""


Event = (
    CohortInvited
    | ExchangeClosed
    | SurvivorsFrozen
    | AggregateReceived
    | ModelCommitted
    | SiteDropped
    | AttemptAbandoned
)


@dataclass(frozen=True, slots=True)
class SiteDropout:
    """A site that dropped out, why, and what the attempt was waiting for then."""

    client_id: ClientId
    reason: DropoutReason
    phase: RoundState


@dataclass(frozen=True, slots=True)
class PhaseDuration:
    """Seconds that an attempt spent in one state."""

    state: RoundState
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """Everything that the machine knows about one attempt.

    Args:
        job_id: the job.
        round_id: counts from 1.
        attempt: counts from 1 within the round.
        aggregation: plain or secure, which decides the way through the states.
        started_s: when the attempt began, on the caller's monotonic clock.
        entered_s: when the present state was entered, on the same clock.
        state: what the attempt is waiting for.
        invited: the roster, by ascending client_id.
        eligible: sites whose upload counts: U2, or the roster in a plain attempt.
        survivors: sites in the sum.
        min_survivors: smallest number of survivors.
        dropouts: in the order in which they were seen.
        phases: states that are over.
        model_version: the version that the attempt committed.
        abandon_reason: why it was given up.
        detail: one sentence more about that.
        is_excused: whether it was given up only because sites were away.
    """

    job_id: JobId
    round_id: int
    attempt: int
    aggregation: Aggregation
    started_s: float
    entered_s: float
    state: RoundState = RoundState.RECRUITING
    invited: tuple[ClientId, ...] = ()
    eligible: tuple[ClientId, ...] = ()
    survivors: tuple[ClientId, ...] = ()
    min_survivors: int = 1
    dropouts: tuple[SiteDropout, ...] = ()
    phases: tuple[PhaseDuration, ...] = ()
    model_version: int | None = None
    abandon_reason: AbandonReason | None = None
    detail: str = ""
    is_excused: bool = False

    @property
    def is_enough_without_absences(self) -> bool:
        """Whether enough sites would have been there, had those not been away that were merely away."""
        faults = sum(not dropout.reason.is_absence for dropout in self.dropouts)
        return len(self.invited) - faults >= self.min_survivors

    @property
    def lost(self) -> frozenset[ClientId]:
        """Sites that dropped out."""
        return frozenset(dropout.client_id for dropout in self.dropouts)

    def is_news(self, client_id: ClientId, reason: DropoutReason) -> bool:
        """Whether a drop-out changes anything: the first reason stands, unless it is no blame and this one is."""
        known = next((dropout.reason for dropout in self.dropouts if dropout.client_id == client_id), None)
        return known is None or (reason.is_blame and not known.is_blame)

    @property
    def seconds(self) -> float:
        """Seconds of all states that are over."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of the machine, as it is written down before anything acts on it."""

    before: RoundState
    after: RoundState
    event: Event
    seconds: float

    @property
    def changed_state(self) -> bool:
        """Whether the attempt now waits for something else."""
        return self.before is not self.after


def begin(job_id: JobId, round_id: int, attempt: int, aggregation: Aggregation, now_s: float) -> RoundRecord:
    """Start an attempt in recruiting.

    Raises:
        LocalProtocolError: round and attempt do not count from 1.
    """
    if round_id < 1 or attempt < 1:
        raise LocalProtocolError("round and attempt count from 1", got=f"round {round_id}, attempt {attempt}")
    return RoundRecord(job_id, round_id, attempt, aggregation, now_s, now_s)


def advance(record: RoundRecord, event: Event, now_s: float) -> tuple[RoundRecord, Transition]:
    """Take one step.

    Args:
        record: the attempt before the step; it is not changed.
        event: what happened.
        now_s: now, on the clock of `record.started_s`.

    Returns:
        The attempt after the step, and the step itself with the seconds spent in the state so far.

    Raises:
        LocalProtocolError: the event cannot happen in this state, or names sites that it may not name.
    """
    if record.state.is_final:
        raise _illegal(record, event)
    if now_s < record.entered_s:
        raise LocalProtocolError("the clock ran backwards", expected=f">= {record.entered_s}", got=now_s)
    match event:
        case SiteDropped():
            after = _drop(record, event)
        case AttemptAbandoned():
            after = replace(record, state=RoundState.ABANDONED, abandon_reason=event.reason, detail=event.detail)
        case _:
            after = _move(record, event)
    seconds = now_s - record.entered_s
    if after.state is not record.state:
        phases = (*record.phases, PhaseDuration(record.state, seconds))
        after = replace(after, entered_s=now_s, phases=phases)
    return after, Transition(record.state, after.state, event, seconds)


def _move(record: RoundRecord, event: Event) -> RoundRecord:
    is_secure = record.aggregation is Aggregation.SECAGG
    match record.state, event:
        case RoundState.RECRUITING, CohortInvited():
            return _invite(record, event)
        case RoundState.EXCHANGING, ExchangeClosed():
            _check_members(event.shared, record.invited, record.min_survivors, "the sites that shared keys")
            return replace(record, state=RoundState.UPLOADING, eligible=event.shared)
        case RoundState.UPLOADING, SurvivorsFrozen() if is_secure:
            _check_members(event.survivors, record.eligible, record.min_survivors, "the survivors")
            return replace(record, state=RoundState.UNMASKING, survivors=event.survivors)
        case RoundState.UPLOADING, AggregateReceived() if not is_secure:
            _check_members(event.survivors, record.eligible, record.min_survivors, "the survivors")
            return replace(record, state=RoundState.APPLYING, survivors=event.survivors)
        case RoundState.UNMASKING, AggregateReceived():
            _check_same(event.survivors, record.survivors)
            return replace(record, state=RoundState.APPLYING)
        case RoundState.APPLYING, ModelCommitted():
            return replace(record, state=RoundState.COMMITTED, model_version=event.model_version)
    raise _illegal(record, event)


def _invite(record: RoundRecord, event: CohortInvited) -> RoundRecord:
    if not event.min_survivors >= 1:
        raise LocalProtocolError("min_survivors is out of range", expected=">= 1", got=event.min_survivors)
    _check_members(event.invited, event.invited, event.min_survivors, "the cohort")
    is_secure = record.aggregation is Aggregation.SECAGG
    return replace(
        record,
        state=RoundState.EXCHANGING if is_secure else RoundState.UPLOADING,
        invited=event.invited,
        eligible=() if is_secure else event.invited,
        min_survivors=event.min_survivors,
    )


def _drop(record: RoundRecord, event: SiteDropped) -> RoundRecord:
    if event.client_id not in record.invited:
        raise LocalProtocolError("a site dropped out that was not invited", got=event.client_id)
    if not record.is_news(event.client_id, event.reason):
        return record
    dropout = SiteDropout(event.client_id, event.reason, record.state)
    # A liar that hangs up in time is a liar all the same.
    others = tuple(known for known in record.dropouts if known.client_id != event.client_id)
    return replace(record, dropouts=(*others, dropout))


def _check_members(members: tuple[ClientId, ...], allowed: tuple[ClientId, ...], needed: int, whose: str) -> None:
    if list(members) != sorted(set(members)):
        raise LocalProtocolError(f"{whose} are not in order", expected="distinct client_ids, ascending")
    strangers = set(members) - set(allowed)
    if strangers:
        raise LocalProtocolError(f"{whose} include a site that may not be there", got=min(strangers))
    if len(members) < needed:
        raise LocalProtocolError(f"{whose} are too few", expected=f"at least {needed}", got=len(members))


def _check_same(survivors: tuple[ClientId, ...], frozen: tuple[ClientId, ...]) -> None:
    if survivors != frozen:
        raise LocalProtocolError(
            "the sum is not over the frozen survivors", expected=f"{len(frozen)} sites", got=f"{len(survivors)} sites"
        )


def _illegal(record: RoundRecord, event: Event) -> LocalProtocolError:
    return LocalProtocolError(
        "an event does not belong to this state of the attempt",
        expected=f"an event of {record.aggregation.value} {record.state.value}",
        got=type(event).__name__,
    )
