"""The trainer at work: one task at a time in a thread of its own, its result checked, and kept for the next attempt."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar, NamedTuple, TypeVar

import structlog

from client_sdk.download import Model
from client_sdk.trainer import EvaluationResult, Trainer, TrainingContext, TrainResult
from fl_core.codec.tensors import FloatVector, difference
from fl_core.errors import CodecError, Fault, TacitError
from fl_core.rounds.plan import RoundPlan

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class TrainingFailed(TacitError):
    """The site's own trainer raised."""

    code: ClassVar[str] = "training_failed"
    fault: ClassVar[Fault] = Fault.CALLER


class Task(NamedTuple):
    """What a trained update answers to: the same in every attempt at a round."""

    job_id: str
    round_id: int
    model_digest: bytes


@dataclass(frozen=True, slots=True)
class TrainedUpdate:
    """What training changed, (d,) float32 in model units, and the result that it came from."""

    update: FloatVector = field(repr=False)
    num_samples: int
    metrics: Mapping[str, float]


class TrainerThread:
    """Runs a trainer. `close` does not wait for a task that is running."""

    def __init__(self, trainer: Trainer, client_id: str) -> None:
        self._trainer = trainer
        self._client_id = client_id
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._task: Task | None = None
        self._update: asyncio.Future[TrainedUpdate] | None = None
        # A daemon: a site that is stopped must not wait for the end of an epoch.
        Thread(target=self._work, name="tacit-trainer", daemon=True).start()

    def close(self) -> None:
        """Take no more tasks."""
        self._jobs.put(None)

    @property
    def trained(self) -> Task | None:
        """The task whose update is here, if any."""
        ready = self._update is not None and self._update.done() and not self._update.cancelled()
        return self._task if ready and self._update is not None and self._update.exception() is None else None

    async def update_for(self, plan: RoundPlan, model: Model) -> TrainedUpdate:
        """Train for a plan, or wait for the training of an earlier attempt at the same round.

        Raises:
            CodecError: the trainer's result does not fit the model.
            TrainingFailed: the trainer raised.
        """
        task = Task(plan.job_id, plan.round_id, plan.model_digest)
        if task != self._task or self._update is None or _failed(self._update):
            self._task, self._update = task, self._start(plan, model)
        # An attempt that is given up must not take the training of the next one with it.
        return await asyncio.shield(self._update)

    def forget(self, job_id: str, round_id: int) -> None:
        """Let go of the update of a round that is over."""
        if self._task is not None and (self._task.job_id, self._task.round_id) == (job_id, round_id):
            self._task = self._update = None

    async def evaluate(self, model: Model, context: TrainingContext) -> EvaluationResult:
        """Evaluate a model.

        Raises:
            CodecError: the trainer's result makes no sense.
            TrainingFailed: the trainer raised.
        """
        return await self._submit(lambda: _checked(self._trainer.evaluate(model.copy(), context), EvaluationResult))

    def _start(self, plan: RoundPlan, model: Model) -> asyncio.Future[TrainedUpdate]:
        context = TrainingContext(
            plan.job_id, plan.round_id, plan.attempt, plan.model_version, self._client_id, plan.training
        )
        future = self._submit(lambda: _measured(self._trainer.train(model.copy(), context), model))
        # Every attempt may be gone when training fails; its error is not lost then, the next attempt trains again.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

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


def _measured(result: object, model: Model) -> TrainedUpdate:
    checked = _checked(result, TrainResult)
    if not isinstance(checked.parameters, Mapping):
        raise CodecError(
            "the trainer's parameters have no names", expected="a dict", got=type(checked.parameters).__name__
        )
    update = difference(checked.parameters, model.tensors, model.manifest)
    return TrainedUpdate(update, checked.num_samples, checked.metrics)


def _checked(result: object, kind: type[Result]) -> Result:
    if not isinstance(result, kind):
        raise CodecError("the trainer gave a wrong result", expected=kind.__name__, got=type(result).__name__)
    return result


def _failed(update: asyncio.Future[TrainedUpdate]) -> bool:
    return update.done() and (update.cancelled() or update.exception() is not None)
