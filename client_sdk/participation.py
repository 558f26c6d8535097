"""The loop of a site: stay in touch with the coordinator, answer invitations and evaluation tasks, never give up."""

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from client_sdk.attempt import Workplace, take_part
from client_sdk.config import SiteConfig
from client_sdk.connections import Connections
from client_sdk.download import ModelDownload
from client_sdk.evaluation import report_failure, report_result, task_from_proto
from client_sdk.feedback import Feedback
from client_sdk.journal import SiteJournal
from client_sdk.leaving import reason_of
from client_sdk.network import Network
from client_sdk.observer import SiteObserver, tell
from client_sdk.privacy import PrivacyLedger
from client_sdk.reconnecting import Reconnecting
from client_sdk.spool import UpdateSpool
from client_sdk.trainer import Trainer
from client_sdk.training import TrainerThread
from fl_core import __version__
from fl_core.errors import IdentityError, InternalError, PeerLost, PermissionRefused, RemoteProtocolError, TacitError
from fl_core.rounds.plan import RoundPlan
from fl_core.transport.errors import rpc_errors
from fl_core.transport.peer import call_unary
from fl_core.transport.tls import Credentials
from fl_core.transport.tracing import continued
from fl_core.wire.convert import (
    abandon_reason_from_proto,
    dropout_reason_to_proto,
    plan_from_proto,
)
from fl_core.wire.v1 import coordinator_pb2, round_pb2

if TYPE_CHECKING:
    from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceAsyncStub

log = structlog.get_logger(__name__)

LEAVE_TIMEOUT_S = 5.0
MAX_EVALUATIONS = 4
INSTANCE_BYTES = 16
LONGEST_DETAIL = 500


class Participation:
    """One run of a site. Made for each `Site.participate`."""

    def __init__(
        self,
        config: SiteConfig,
        credentials: Credentials,
        trainer: Trainer,
        journal: SiteJournal,
        observer: SiteObserver,
        network: Network | None = None,
    ) -> None:
        self._client_id = credentials.identity.id
        self._connections = Connections(credentials, config.coordinators, network)
        spool = UpdateSpool(config.state_dir, credentials.storage_key(), config.keep_training_after_s)
        self._work = TrainerThread(trainer, self._client_id, spool)
        self._download = ModelDownload()
        self._observer = observer
        self._ledger = PrivacyLedger(config.state_dir)
        self._site = Workplace(
            policy=config.policy,
            connections=self._connections,
            journal=journal,
            ledger=self._ledger,
            download=self._download,
            trainer=self._work,
            observer=observer,
            record_plain_updates=config.record_plain_updates,
            feedback=Feedback(config.state_dir, credentials.storage_key()),
        )
        self._stopped = asyncio.Event()
        self._instance = os.urandom(INSTANCE_BYTES)
        self._was_connected = False
        self._plan: RoundPlan | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._evaluations: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """End `run` soon."""
        self._stopped.set()

    async def run(self) -> None:
        """Take part until stopped or cancelled.

        Raises:
            IdentityError: the federation does not accept this site, or the coordinator never showed that it is of it.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                connected = tasks.create_task(self._stay_connected(tasks))
                stopped = tasks.create_task(self._stopped.wait())
                await asyncio.wait((connected, stopped), return_when=asyncio.FIRST_COMPLETED)
                for task in (connected, stopped, self._attempt, *self._evaluations):
                    if task is not None:
                        task.cancel()
        except* IdentityError as group:
            raise group.exceptions[0] from None
        finally:
            self._work.close()
            self._ledger.close()
            await self._connections.close()

    async def _stay_connected(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        pauses = Reconnecting(self._connections.replicas)
        while True:
            began = loop.time()
            try:
                await self._watch(tasks)
                pauses.reset()
                continue
            except PermissionRefused:
                raise
            except TacitError as error:
                # Before the first contact a wrong certificate is a mistake of set-up; later it may be an attacker's,
                # who must not be able to end this site.
                if isinstance(error, IdentityError) and not self._was_connected:
                    raise
                log.warning("coordinator_lost", coordinator=self._connections.coordinator_address, error=str(error))
                self._connections.turn(error)
                pause_s = pauses.next_delay(error, loop.time() - began)
            await asyncio.sleep(pause_s)

    async def _watch(self, tasks: asyncio.TaskGroup) -> None:
        coordinator = await self._connections.connect()
        trained = self._work.trained
        request = coordinator_pb2.WatchRoundsRequest(
            sdk_version=__version__,
            trained_job_id=trained.job_id if trained else "",
            trained_round_id=trained.round_id if trained else 0,
            instance=self._instance,
        )
        call = coordinator.WatchRounds(request)
        try:
            with rpc_errors():
                async for response in call:
                    self._greet()
                    self._dispatch(response, tasks)
                    if self._connections.has_new_certificate and self._is_idle:
                        log.info("certificate_changed")
                        return
        finally:
            call.cancel()
        raise PeerLost("the coordinator ended the connection")

    @property
    def _is_idle(self) -> bool:
        """Whether a new connection would disturb nothing: the roster of an attempt names our certificate."""
        return self._attempt is None or self._attempt.done()

    def _greet(self) -> None:
        if not self._was_connected:
            log.info(
                "coordinator_connected", coordinator=self._connections.coordinator_address, client_id=self._client_id
            )
            tell(self._observer.connected, self._connections.coordinator_address)
        self._was_connected = True

    def _dispatch(self, response: coordinator_pb2.WatchRoundsResponse, tasks: asyncio.TaskGroup) -> None:
        match response.WhichOneof("event"):
            case "invitation":
                self._invited(response.invitation, response.trace_context, tasks)
            case "attempt_ended":
                self._attempt_ended(response.attempt_ended)
            case "evaluation":
                self._evaluate(response.evaluation, tasks)
            case "job_ended":
                self._site.feedback.forget(response.job_ended.job_id)
                self._work.forget_job(response.job_ended.job_id)
                tell(self._observer.job_ended, response.job_ended.job_id, response.job_ended.status)
            case _:
                # A heartbeat, or something newer than this site.
                pass

    def _invited(self, message: round_pb2.RoundPlan, trace_context: str, tasks: asyncio.TaskGroup) -> None:
        try:
            plan = plan_from_proto(message)
        except TacitError as error:
            # A plan that cannot be read has no session that one could leave.
            log.error("invitation_unreadable", error=str(error))
            return
        if self._plan is not None and plan.session_id == self._plan.session_id:
            return
        previous, self._plan = self._attempt, plan
        self._attempt = tasks.create_task(self._answer(plan, previous, trace_context))

    async def _answer(self, plan: RoundPlan, previous: asyncio.Task[None] | None, trace_context: str) -> None:
        if previous is not None and not previous.done():
            previous.cancel()
            await asyncio.wait((previous,))
        facts = {
            "job_id": plan.job_id,
            "round_id": plan.round_id,
            "attempt": plan.attempt,
            "session_id": plan.session_id.hex(),
        }
        with structlog.contextvars.bound_contextvars(**facts):
            log.info("attempt_joined", cohort=len(plan.roster), aggregation=plan.aggregation.value)
            try:
                with continued(trace_context, "take_part", client_id=self._client_id):
                    await take_part(plan, self._site)
            except TacitError as error:
                await self._leave(plan, error)
            except Exception as error:
                # Whatever went wrong in one attempt, the site stays in the federation.
                log.exception("attempt_failed")
                await self._leave(plan, InternalError("the site failed", got=type(error).__name__))
            else:
                log.info("attempt_finished")

    async def _leave(self, plan: RoundPlan, error: TacitError) -> None:
        reason = reason_of(error)
        log.warning("attempt_left", reason=reason.value, error=str(error))
        tell(self._observer.left, plan, error)
        request = coordinator_pb2.LeaveRoundRequest(
            session_id=plan.session_id, reason=dropout_reason_to_proto(reason), detail=str(error)[:LONGEST_DETAIL]
        )
        try:
            await call_unary(self._connections.coordinator.LeaveRound, request, timeout_s=LEAVE_TIMEOUT_S)
        except TacitError as refusal:
            # The attempt may be over already; the coordinator's own deadline does the rest.
            log.info("leave_not_delivered", error=str(refusal))

    def _attempt_ended(self, message: coordinator_pb2.AttemptEnded) -> None:
        committed = message.state == round_pb2.ROUND_STATE_COMMITTED
        if committed:
            self._work.forget(message.job_id, message.round_id)
        plan = self._plan
        ended = (message.job_id, message.round_id, message.attempt)
        is_ours = plan is not None and ended == (plan.job_id, plan.round_id, plan.attempt)
        if is_ours and self._attempt is not None:
            self._attempt.cancel()
        self._site.feedback.settle(*ended, committed)
        why = None if committed else _reason_name(message.reason)
        log.info("attempt_ended", job_id=ended[0], round_id=ended[1], attempt=ended[2], reason=why)
        tell(self._observer.attempt_ended, *ended, why)

    def _evaluate(self, message: coordinator_pb2.EvaluationTask, tasks: asyncio.TaskGroup) -> None:
        if len(self._evaluations) >= MAX_EVALUATIONS:
            log.warning("evaluation_ignored", task_id=message.task_id, waiting=len(self._evaluations))
            return
        task = tasks.create_task(self._measure(message))
        self._evaluations.add(task)
        task.add_done_callback(self._evaluations.discard)

    async def _measure(self, message: coordinator_pb2.EvaluationTask) -> None:
        coordinator = self._connections.coordinator
        try:
            await self._measure_and_report(message, coordinator)
        except TacitError as error:
            log.warning("evaluation_failed", task_id=message.task_id, error=str(error))
            await _report_failure(coordinator, message.task_id, error)
        except Exception as error:
            log.exception("evaluation_failed", task_id=message.task_id)
            failure = InternalError("the site failed", got=type(error).__name__)
            await _report_failure(coordinator, message.task_id, failure)

    async def _measure_and_report(
        self, message: coordinator_pb2.EvaluationTask, coordinator: "CoordinatorServiceAsyncStub"
    ) -> None:
        task = task_from_proto(message, self._client_id)
        try:
            async with asyncio.timeout(task.timeout_s):
                model = await self._download.get(coordinator, task.model, task.timeout_s)
                result = await self._work.evaluate(model, task.context)
        except TimeoutError as error:
            raise PeerLost("the evaluation took too long", expected=f"{task.timeout_s:.0f} s") from error
        await report_result(coordinator, task.task_id, result)
        tell(self._observer.evaluated, task.model.model_version, result)


def _reason_name(number: int) -> str:
    try:
        reason = abandon_reason_from_proto(number)
    except RemoteProtocolError:
        # A coordinator newer than this site may have reasons that are new too.
        return f"reason {number}"
    return reason.value if reason else "unspecified"


async def _report_failure(coordinator: "CoordinatorServiceAsyncStub", task_id: str, error: TacitError) -> None:
    try:
        await report_failure(coordinator, task_id, error)
    except TacitError as refusal:
        log.info("evaluation_report_not_delivered", error=str(refusal))
