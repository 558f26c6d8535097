"""Why an attempt is given up: the one place in which errors become reasons."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from fl_core.errors import (
    BadAggregate,
    BudgetExhausted,
    CodecError,
    NotEnough,
    PeerLost,
    TacitError,
    UnknownSession,
)
from fl_core.rounds.machine import AbandonReason

T = TypeVar("T")

log = structlog.get_logger(__name__)


class AttemptFailed(Exception):
    """The attempt cannot go on. Raised and caught inside the coordinator only."""

    def __init__(self, reason: AbandonReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Halt(asyncio.Event):
    """Ends an attempt from outside, when it is set: because the job was cancelled, unless another reason is given."""

    def __init__(self) -> None:
        super().__init__()
        self.failure = AttemptFailed(AbandonReason.CANCELLED, "the job was cancelled")

    def set_because(self, reason: AbandonReason, detail: str) -> None:
        """Set it for another reason, unless it is set already."""
        if not self.is_set():
            self.failure = AttemptFailed(reason, detail)
            self.set()


def reason_of(error: TacitError) -> AbandonReason:
    """The reason that stands for an error of a service, or of the sum that it gave."""
    match error:
        case UnknownSession() | PeerLost():
            return AbandonReason.SERVICE_RESTARTED
        case BadAggregate() | CodecError():
            return AbandonReason.BAD_AGGREGATE
        case BudgetExhausted():
            return AbandonReason.BUDGET_EXHAUSTED
        case NotEnough():
            return AbandonReason.TOO_FEW_UPLOADS
        case _:
            return AbandonReason.SERVICE_LOST


def failure_of(error: BaseException) -> AttemptFailed:
    """What an error means for the attempt, or for the session, in which it was raised."""
    match error:
        case AttemptFailed():
            return error
        case TacitError():
            return AttemptFailed(reason_of(error), str(error))
        case _:
            log.error("attempt_failed", exc_info=error)
            return AttemptFailed(AbandonReason.SERVICE_LOST, "a fault of the coordinator; its log has the details")


async def until_cancelled(cancelled: Halt) -> None:
    """A watcher that ends the work beside it when it is halted.

    Raises:
        AttemptFailed: the event was set.
    """
    await cancelled.wait()
    raise cancelled.failure


async def run_beside(work: Coroutine[Any, Any, T], *watchers: Coroutine[Any, Any, None]) -> T:
    """Run `work`; when a watcher raises, its error ends the work too. Nothing is left running.

    Returns:
        The result of the work, at whose end the watchers are cancelled.
    """
    main = asyncio.create_task(work)
    tasks = [main, *(asyncio.create_task(watcher) for watcher in watchers)]
    pending = set(tasks)
    try:
        while not main.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            # The work goes first: what it has reached does not depend on a watcher any more.
            for task in sorted(done, key=tasks.index):
                task.result()
        return main.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
