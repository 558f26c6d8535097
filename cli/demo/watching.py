"""The observer inside a site process: it reports what happens, and stands still where the site is to be killed."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from cli.demo.events import EventKind, emit
from cli.demo.options import KillPhase
from client_sdk.observer import SiteObserver
from fl_core.errors import TacitError
from fl_core.rounds.plan import RoundPlan


@dataclass(frozen=True, slots=True)
class Halt:
    """Stand still in `round_id` at `phase`, and wait for the parent's SIGKILL."""

    round_id: int
    phase: KillPhase


class ReportingObserver(SiteObserver):
    """Tells the parent each step of the site.

    Args:
        halt: where to stand still; None to carry on to the end.
    """

    def __init__(self, halt: Halt | None = None) -> None:
        self._halt = halt

    def connected(self, coordinator: str) -> None:
        """Ready for invitations."""
        emit(EventKind.CONNECTED, detail=coordinator)

    def invited(self, plan: RoundPlan) -> None:
        """Takes part."""
        emit(EventKind.INVITED, plan.round_id)

    def keys_shared(self, plan: RoundPlan) -> None:
        """Has exchanged keys and shares."""
        emit(EventKind.KEYS_SHARED, plan.round_id)
        self._stand_still(plan, KillPhase.AFTER_KEYS)

    def trained(self, plan: RoundPlan, num_samples: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        """Has an update."""
        self._stand_still(plan, KillPhase.AFTER_TRAINING)

    def upload_chunk_sent(self, plan: RoundPlan, index: int, count: int) -> None:
        """Uploads; the middle is the first chunk that has as many behind it as before it."""
        if index == 0:
            emit(EventKind.UPLOADING, plan.round_id)
        if index == count // 2:
            self._stand_still(plan, KillPhase.MID_UPLOAD, f"chunk {index + 1} of {count}")

    def uploaded(self, plan: RoundPlan) -> None:
        """Its update is with the aggregator."""
        emit(EventKind.UPLOADED, plan.round_id)
        self._stand_still(plan, KillPhase.AFTER_UPLOAD)

    def revealed(self, plan: RoundPlan) -> None:
        """Its part is done."""
        emit(EventKind.REVEALED, plan.round_id)

    def left(self, plan: RoundPlan, error: TacitError) -> None:
        """Left an attempt."""
        emit(EventKind.LEFT, plan.round_id, str(error))

    def _stand_still(self, plan: RoundPlan, phase: KillPhase, detail: str = "") -> None:
        if self._halt == Halt(plan.round_id, phase):
            emit(EventKind.HALTED, plan.round_id, detail or phase.value)
            _wait_for_sigkill()


def _wait_for_sigkill() -> NoReturn:
    """Block the event loop, so that the site does nothing more: what the parent kills is exactly this state."""
    while True:
        signal.pause()
