"""Runs jobs: rounds one after the other, attempts until one is committed, evaluations in between."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from fl_core.errors import LocalProtocolError, PeerLost, TacitError, UnknownSession
from fl_core.rounds.job import JobSpec, job_from_mapping
from fl_core.rounds.machine import AbandonReason, RoundRecord, RoundState
from fl_core.rounds.plan import Aggregation, JobId
from fl_core.transport.retry import Backoff
from fl_core.transport.tracing import round_span
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.attempt import Attempt
from services.coordinator.evaluation import EvaluationResult
from services.coordinator.failures import AttemptFailed, Halt, run_beside, until_cancelled
from services.coordinator.journal import AttemptJournal
from services.coordinator.measures import count_bytes, count_ending, forget_budget
from services.coordinator.peers import AggregatorPeer, KeyServerPeer
from services.coordinator.records import JobRecord, JobStatus
from services.coordinator.resources import Resources
from services.coordinator.session_run import SessionRun, forget_sessions
from services.runtime.events import Notice
from services.runtime.metrics import in_turn

log = structlog.get_logger(__name__)

CANCEL_PATIENCE_S = 10.0
LONGEST_PAUSE_S = 5.0
LONGEST_ABSENCE_PAUSE_S = 30.0
"""Between attempts that failed only because sites were away."""

HALT_PATIENCE_S = 5.0
"""How long an attempt may take to be abandoned, with word to the sites and the services."""


def spec_of(job: JobRecord) -> JobSpec:
    """The specification of a stored job.

    Raises:
        PlanError: what was stored is not a job of this version of Tacit.
    """
    return job_from_mapping(json.loads(job.spec_json))


@dataclass(slots=True)
class _Run:
    """A job that is in the hands of the driver."""

    cancelled: Halt
    attempt: Attempt | None = None

    @property
    def is_recruiting(self) -> bool:
        """Whether nobody has been invited yet."""
        return self.attempt is not None and not self.attempt.sessions


@dataclass(slots=True)
class _Pauses:
    """Pauses after attempts that failed, each longer than the one before it; those for sites may grow longest."""

    _failures: Backoff = field(default_factory=lambda: Backoff(max_s=LONGEST_PAUSE_S))
    _absences: Backoff = field(default_factory=lambda: Backoff(max_s=LONGEST_ABSENCE_PAUSE_S))

    def next_delay(self, record: RoundRecord) -> float:
        """Seconds to wait after one more attempt that failed."""
        return (self._absences if record.is_excused else self._failures).next_delay()

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._failures.reset()
        self._absences.reset()


class Driver:
    """Runs the jobs, in the order in which they were submitted.

    Args:
        resources: stores, sites and services.
        concurrent_jobs: jobs that run at the same time.
        evaluation_timeout_s: how long sites may take to evaluate a model.
    """

    def __init__(self, resources: Resources, *, concurrent_jobs: int, evaluation_timeout_s: float) -> None:
        self._with = resources
        self._evaluation_timeout_s = evaluation_timeout_s
        self._slots = asyncio.Semaphore(concurrent_jobs)
        self._runs: dict[JobId, _Run] = {}
        # Bounded by the jobs in the database: each is here once, or twice after a restart.
        self._submitted: asyncio.Queue[JobId] = asyncio.Queue()
        self._draining = False
        self._ended = Notice()
        self._notices: defaultdict[str, Notice] = defaultdict(Notice)

    def changes(self, job_id: str) -> Notice:
        """Announces every change of a job that exists."""
        return self._notices[job_id]

    def submit(self, job_id: JobId) -> None:
        """Run a job that is in the store."""
        self._submitted.put_nowait(job_id)

    def session_of(self, session_id: bytes) -> SessionRun:
        """The open session of this id.

        Raises:
            UnknownSession: there is none, or none any more.
        """
        for run in self._runs.values():
            session = run.attempt.session_of(session_id) if run.attempt is not None else None
            if session is not None:
                return session
        raise UnknownSession("no open attempt has this session", got=session_id.hex(), fix="wait for the next attempt")

    async def cancel(self, job_id: str) -> None:
        """End a job; what it committed stays. Cancelling it again changes nothing.

        Raises:
            NotFound: there is no such job.
            LocalProtocolError: it has ended in another way.
        """
        job = await self._with.jobs.job(job_id)
        if job.status is JobStatus.CANCELLED:
            return
        if job.status.is_final:
            raise LocalProtocolError("the job has ended", expected="a job that is queued or running", got=job.status)
        run = self._runs.get(job.job_id)
        if job.status is JobStatus.QUEUED or run is None:
            await self._end(job.job_id, JobStatus.CANCELLED, "cancelled before it began")
            return
        run.cancelled.set()
        await self._await_end(job.job_id)

    async def drain(self, patience_s: float) -> None:
        """Begin no attempt any more; those that run may end, those that only recruit are given up at once.

        Jobs stay as they are: the coordinator that starts next goes on with them.

        Args:
            patience_s: seconds after which the attempts that still run are abandoned.
        """
        self._draining = True
        detail = "the coordinator stops"
        for run in self._runs.values():
            if run.attempt is None or run.is_recruiting:
                run.cancelled.set_because(AbandonReason.SERVICE_RESTARTED, detail)
        if not await self._all_ended(patience_s):
            log.warning("attempts_interrupted", attempts=len(self._runs))
            for run in self._runs.values():
                run.cancelled.set_because(AbandonReason.SERVICE_RESTARTED, detail)
            await self._all_ended(HALT_PATIENCE_S)

    async def _all_ended(self, patience_s: float) -> bool:
        try:
            async with asyncio.timeout(patience_s):
                while self._runs:
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Run jobs until cancelled: first those that a restart interrupted, then what is submitted.

        Raises:
            StorageError: the database failed; a restart takes up what was open.
        """
        await self._recover()
        async with asyncio.TaskGroup() as tasks:
            while True:
                job_id = await self._submitted.get()
                tasks.create_task(self._run_in_turn(job_id))

    async def _recover(self) -> None:
        now = self._with.clock()
        detail = "the coordinator was restarted"
        sessions = await self._with.rounds.abandon_open(AbandonReason.SERVICE_RESTARTED, now, detail)
        if sessions:
            log.warning("attempts_interrupted", attempts=len(sessions))
            peers: list[AggregatorPeer | KeyServerPeer] = [*self._with.aggregators.peers, *self._with.keyservers.peers]
            await forget_sessions(peers, sessions)
        for job in await self._with.jobs.unfinished():
            self.submit(job.job_id)

    async def _run_in_turn(self, job_id: JobId) -> None:
        async with in_turn(self._slots, "jobs"):
            job = await self._with.jobs.job(job_id)
            # A job that was submitted while a restart was taken up can be in the queue twice.
            if job.status.is_final or job_id in self._runs or self._draining:
                return
            with self._running(job_id) as run, structlog.contextvars.bound_contextvars(job_id=job_id):
                await self._with.jobs.set_status(job_id, JobStatus.RUNNING, self._with.clock())
                self._notices[job_id].announce()
                await self._run_job(job, run)

    @contextmanager
    def _running(self, job_id: JobId) -> Iterator[_Run]:
        run = self._runs[job_id] = _Run(Halt())
        try:
            yield run
        finally:
            del self._runs[job_id]
            self._ended.announce()

    async def _run_job(self, job: JobRecord, run: _Run) -> None:
        try:
            spec = spec_of(job)
        except TacitError as error:
            await self._end(job.job_id, JobStatus.FAILED, str(error))
            return
        pauses, went_well = _Pauses(), False
        while (await self._with.jobs.job(job.job_id)).rounds_committed < spec.rounds:
            if self._draining:
                return
            if run.cancelled.is_set():
                await self._end(job.job_id, JobStatus.CANCELLED, "cancelled by the operator")
                return
            if not went_well:
                await self._await_services(job.job_id, spec, run)
                if run.cancelled.is_set():
                    continue
            record = await self._run_attempt(job, spec, run)
            went_well = record.state is RoundState.COMMITTED
            if went_well:
                pauses.reset()
                await self._stop_waiting(job.job_id)
            elif await self._tries_again(record, spec, run):
                await _pause(run.cancelled, pauses.next_delay(record))
            else:
                return
        await self._end(job.job_id, JobStatus.COMPLETED, "")

    async def _tries_again(self, record: RoundRecord, spec: JobSpec, run: _Run) -> bool:
        """Whether a round that failed is run again. If not, its job has ended."""
        if record.abandon_reason is AbandonReason.BUDGET_EXHAUSTED:
            await self._end(record.job_id, JobStatus.FAILED, record.detail)
            return False
        if await self._tried_enough(record, spec) and not run.cancelled.is_set():
            await self._end(record.job_id, JobStatus.FAILED, _failure(record))
            return False
        if record.is_excused:
            await self._say(record.job_id, f"waits for sites: {_failure(record)}")
        return True

    async def _tried_enough(self, record: RoundRecord, spec: JobSpec) -> bool:
        """Whether a round has failed as often as its job allows. An interruption by a service is no failure of it."""
        if record.abandon_reason is AbandonReason.SERVICE_RESTARTED:
            return False
        allowed = spec.max_absences if record.is_excused else spec.max_attempts
        failures = await self._with.rounds.failures(record.job_id, record.round_id, excused=record.is_excused)
        return failures >= allowed

    async def _await_services(self, job_id: JobId, spec: JobSpec, run: _Run) -> None:
        """Wait until aggregator and key server can be reached, however long they are away.

        Nothing is begun meanwhile, so an outage costs no attempts.
        """
        is_secure = spec.aggregation is not Aggregation.PLAIN
        pools = (self._with.aggregators, self._with.keyservers) if is_secure else (self._with.aggregators,)
        waits_for = ""
        for pool in pools:
            while not run.cancelled.is_set():
                try:
                    await run_beside(pool.place(1), until_cancelled(run.cancelled))
                    break
                except AttemptFailed:
                    return
                except PeerLost as error:
                    waits_for = f"waits for the {pool.role.value}: {error.what}"
                    await self._say(job_id, waits_for)
                except TacitError:
                    # Not what it should be: the attempt says so.
                    break
        if waits_for:
            await self._say(job_id, "")

    async def _stop_waiting(self, job_id: JobId) -> None:
        if (await self._with.jobs.job(job_id)).detail:
            await self._say(job_id, "")

    async def _say(self, job_id: JobId, detail: str) -> None:
        log.warning("job_waits", detail=detail) if detail else log.info("job_goes_on")
        await self._with.jobs.set_status(job_id, JobStatus.RUNNING, self._with.clock(), detail)
        self._notices[job_id].announce()

    async def _run_attempt(self, job: JobRecord, spec: JobSpec, run: _Run) -> RoundRecord:
        journal = await AttemptJournal.open(
            self._with.rounds, job.job_id, spec.aggregation, self._with.clock, self._notices[job.job_id]
        )
        base = await self._with.jobs.model(job.job_id)
        manifest = await self._with.models.manifest(base.blob_name)
        with structlog.contextvars.bound_contextvars(round_id=journal.key.round_id, attempt=journal.key.attempt):
            attempt = run.attempt = Attempt(spec, base, manifest, journal, self._with, run.cancelled)
            key = journal.key
            try:
                with round_span(key.job_id, key.round_id, key.attempt):
                    record = await attempt.run()
            finally:
                run.attempt = None
            count_ending(record)
            measured = await self._evaluate(spec, record, run)
            site_bytes = attempt.site_bytes()
            count_bytes(site_bytes.values())
            await self._with.rounds.close(journal.key, site_bytes, measured.means, measured.sites, self._with.clock())
        self._notices[job.job_id].announce()
        return record

    async def _evaluate(self, spec: JobSpec, record: RoundRecord, run: _Run) -> EvaluationResult:
        due = spec.evaluate_every and record.round_id % spec.evaluate_every == 0
        if not due or record.state is not RoundState.COMMITTED or run.cancelled.is_set():
            return EvaluationResult((), ())
        model = await self._with.jobs.model(record.job_id)
        manifest = await self._with.models.manifest(model.blob_name)
        work = self._with.evaluations.evaluate(spec, model, manifest, self._evaluation_timeout_s)
        try:
            return await run_beside(work, until_cancelled(run.cancelled))
        except AttemptFailed:
            return EvaluationResult((), ())

    async def _end(self, job_id: JobId, status: JobStatus, detail: str) -> None:
        await self._with.jobs.set_status(job_id, status, self._with.clock(), detail)
        log.info("job_ended", job_id=job_id, status=status.value, detail=detail)
        forget_budget(job_id)
        self._with.presence.broadcast(pb.WatchRoundsResponse(job_ended=pb.JobEnded(job_id=job_id, status=status.value)))
        self._notices[job_id].announce()

    async def _await_end(self, job_id: JobId) -> None:
        try:
            async with asyncio.timeout(CANCEL_PATIENCE_S):
                while not (await self._with.jobs.job(job_id)).status.is_final:
                    await self._notices[job_id].wait(0.2)
        except TimeoutError:
            # It ends as soon as the model that is being stored is stored.
            log.info("cancel_takes_long", job_id=job_id)


def _failure(record: RoundRecord) -> str:
    reason = record.abandon_reason.value if record.abandon_reason else "unknown"
    return f"round {record.round_id} was abandoned {record.attempt} times, at last for {reason}: {record.detail}"


async def _pause(cancelled: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await cancelled.wait()
    except TimeoutError:
        return
