"""What a site's owner may watch: one method for each thing that happens, all of them empty."""

from collections.abc import Callable, Mapping
from typing import ParamSpec

import structlog

from client_sdk.trainer import EvaluationResult
from fl_core.errors import TacitError
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.messages import RingVector

log = structlog.get_logger(__name__)
Facts = ParamSpec("Facts")


class SiteObserver:
    """Derive from it and fill in what you want to see.

    The methods are called on the event loop of the site, in order, and must return soon. An exception in one of them is
    logged and changes nothing.
    """

    def connected(self, coordinator: str) -> None:
        """The coordinator at this address answered."""

    def invited(self, plan: RoundPlan) -> None:
        """The site was invited, found the plan acceptable and takes part."""

    def keys_shared(self, plan: RoundPlan) -> None:
        """The sealed shares of this site are with the key server, and those of the others are here."""

    def trained(self, plan: RoundPlan, num_samples: int, metrics: Mapping[str, float]) -> None:
        """The trainer gave a result that fits the model, now or in an earlier attempt."""

    def encoded(self, plan: RoundPlan, index: int, vector: RingVector) -> None:
        """The update as it goes into the sum, before it is masked: (plan.length,) in the lane of ring_bits.

        Read-only, and as private as the update itself. `index` is this site's place in the roster.
        """

    def upload_chunk_sent(self, plan: RoundPlan, index: int, count: int) -> None:
        """Chunk `index`, from 0, of `count` is on its way to the aggregator."""

    def uploaded(self, plan: RoundPlan) -> None:
        """The aggregator acknowledged the whole update."""

    def revealed(self, plan: RoundPlan) -> None:
        """The key server has the shares of this site; its part in the attempt is done."""

    def left(self, plan: RoundPlan, error: TacitError) -> None:
        """The site left the attempt because of `error`; the next invitation is welcome."""

    def attempt_ended(self, job_id: str, round_id: int, attempt: int, reason: str | None) -> None:
        """The attempt was abandoned for `reason`; None when its round was committed."""

    def evaluated(self, model_version: int, result: EvaluationResult) -> None:
        """The site's evaluation of a model is with the coordinator."""

    def job_ended(self, job_id: str, status: str) -> None:
        """The job ended: `status` as the coordinator calls it."""


def tell(event: Callable[Facts, None], *facts: Facts.args, **named: Facts.kwargs) -> None:
    """Call a method of an observer. What it raises is logged and goes no further."""
    try:
        event(*facts, **named)
    except Exception:
        log.exception("observer_raised", observer_method=getattr(event, "__name__", repr(event)))
