"""The trainer at work: one task at a time in a thread of its own, its result checked, and kept for the next attempt."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, ClassVar, TypeVar

import structlog

from client_sdk.download import Model
from client_sdk.spool import UpdateSpool
from client_sdk.trained import Task, TrainedUpdate
from client_sdk.trainer import EvaluationResult, Trainer, TrainingContext, TrainResult
from fl_core.codec.tensors import difference
from fl_core.errors import CodecError, Fault, TacitError
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.privacy_terms import PrivacyTerms

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class TrainingFailed(TacitError):
    """The site's own trainer raised."""

    code: ClassVar[str] = "training_failed"
    fault: ClassVar[Fault] = Fault.CALLER


class TrainerThread:
    """Runs a trainer. `close` does not wait for a task that is running.

    Args:
        trainer: of the site.
        client_id: the site.
        spool: keeps the update through a restart of the site.
    """

    def __init__(self, trainer: Trainer, client_id: str, spool: UpdateSpool) -> None:
        self._trainer = trainer
        self._client_id = client_id
        self._spool = spool
        # Bounded by those who ask: one training, one keeping, one forgetting, and MAX_EVALUATIONS.
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._kept: Task | None = spool.task()
        self._task: Task | None = None
        self._update: asyncio.Future[TrainedUpdate] | None = None
        self._unsaved: tuple[Task, TrainedUpdate] | None = None
        # A daemon: a site that is stopped must not wait for the end of an epoch.
        Thread(target=self._work, name="tacit-trainer", daemon=True).start()

    def close(self) -> None:
        """Take no more tasks."""
        self._jobs.put(None)

    @property
    def trained(self) -> Task | None:
        """The task whose update is here, if any; after a restart it is the one on the disk."""
        if self._update is None:
            return self._kept
        return self._task if self._update.done() and not _failed(self._update) else None

    async def update_for(self, plan: RoundPlan, model: Model) -> TrainedUpdate:
        """Train for a plan, or wait for the training of an earlier attempt at the same round.

        Raises:
            CodecError: the trainer's result does not fit the model.
            TrainingFailed: the trainer raised.
        """
        task = Task(plan.job_id, plan.round_id, plan.model_digest)
        if task != self._task or self._update is None or _failed(self._update):
            self._task, self._update = task, self._start(task, plan, model)
        # An attempt that is given up must not take the training of the next one with it.
        return await asyncio.shield(self._update)

    def forget(self, job_id: str, round_id: int) -> None:
        """Let go of the update of a round that is over."""
        self._forget_if(lambda task: (task.job_id, task.round_id) == (job_id, round_id))

    def forget_job(self, job_id: str) -> None:
        """Let go of the update of a job that is over."""
        self._forget_if(lambda task: task.job_id == job_id)

    def _forget_if(self, is_over: Callable[[Task], bool]) -> None:
        if self._task is not None and is_over(self._task):
            self._task = self._update = None
        if self._kept is not None and is_over(self._kept):
            self._kept = None
            # In the thread, behind a `save` that may be running.
            self._submit(self._spool.forget)

    async def evaluate(self, model: Model, context: TrainingContext) -> EvaluationResult:
        """Evaluate a model.

        Raises:
            CodecError: the trainer's result makes no sense.
            TrainingFailed: the trainer raised.
        """
        return await self._submit(lambda: _checked(self._trainer.evaluate(model.copy(), context), EvaluationResult))

    def _start(self, task: Task, plan: RoundPlan, model: Model) -> asyncio.Future[TrainedUpdate]:
        context = TrainingContext(
            plan.job_id,
            plan.round_id,
            plan.attempt,
            plan.model_version,
            self._client_id,
            plan.training,
            local_terms(plan),
        )
        future = self._submit(lambda: self._taken_up(task, model) or self._train(task, model, context))
        # Every attempt may be gone when training fails; its error is not lost then, the next attempt trains again.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Behind the training in the same thread: the round does not wait for the disk.
        self._kept = task
        self._submit(self._keep)
        return future

    # In the thread:

    def _train(self, task: Task, model: Model, context: TrainingContext) -> TrainedUpdate:
        trained = _trained(self._trainer, model, context)
        self._unsaved = task, trained
        return trained

    def _taken_up(self, task: Task, model: Model) -> TrainedUpdate | None:
        kept = self._spool.load(task)
        if kept is None or kept.update.size != model.manifest.size:
            return None
        log.info("training_taken_up", job_id=task.job_id, round_id=task.round_id, saved_seconds=kept.seconds)
        return kept

    def _keep(self) -> None:
        if self._unsaved is not None:
            self._spool.save(*self._unsaved)
            self._unsaved = None

    def _submit(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        future: Future[Result] = Future()
        self._jobs.put((future, work))
        return asyncio.wrap_future(future)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            if future.set_running_or_notify_cancel():
                _fulfil(future, work)


def _fulfil(future: Future[Result], work: Callable[[], Result]) -> None:
    try:
        future.set_result(work())
    except TacitError as error:
        future.set_exception(error)
    except (Exception, SystemExit) as error:
        # The text of a foreign exception may quote data, so that it stays in the log of this site.
        log.exception("trainer_raised")
        failure = TrainingFailed("the trainer raised", got=type(error).__name__, fix="see the log of the site")
        failure.__cause__ = error
        future.set_exception(failure)


def _trained(trainer: Trainer, model: Model, context: TrainingContext) -> TrainedUpdate:
    began = monotonic()
    checked = _checked(trainer.train(model.copy(), context), TrainResult)
    if not isinstance(checked.parameters, Mapping):
        raise CodecError(
            "the trainer's parameters have no names", expected="a dict", got=type(checked.parameters).__name__
        )
    update = difference(checked.parameters, model.tensors, model.manifest)
    return TrainedUpdate(update, checked.num_samples, checked.metrics, monotonic() - began, checked.privacy)


def local_terms(plan: RoundPlan) -> PrivacyTerms | None:
    """The terms that concern training: those of local noise."""
    return plan.privacy if plan.privacy is not None and not plan.privacy.mechanism.is_in_ring else None


def _checked(result: object, kind: type[Result]) -> Result:
    if not isinstance(result, kind):
        raise CodecError("the trainer gave a wrong result", expected=kind.__name__, got=type(result).__name__)
    return result


def _failed(update: asyncio.Future[TrainedUpdate]) -> bool:
    return update.done() and (update.cancelled() or update.exception() is not None)
