"""Privacy at the coordinator: terms for plans, reservations before releases, receipts of sites, reports."""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from fl_core.codec.tensors import TensorManifest
from fl_core.errors import BadAggregate, PlanError
from fl_core.privacy.events import event_from_json
from fl_core.privacy.ledger import check_affordable, spent
from fl_core.privacy.receipts import verify_receipt
from fl_core.rounds.job import JobSpec
from fl_core.rounds.plan import JobId, RoundPlan
from fl_core.rounds.privacy_choice import Draw
from fl_core.rounds.privacy_terms import PrivacyTerms, private_coordinates
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.journal import Clock
from services.coordinator.measures import show_budget
from services.coordinator.privacy_report import privacy_report
from services.coordinator.privacy_store import JOB, PrivacyStore, Release
from services.coordinator.records import AttemptKey, JobRecord
from services.runtime.offload import offload

log = structlog.get_logger(__name__)


class PrivacyDesk:
    """What the coordinator does for differential privacy; nothing for a job without it.

    Args:
        store: the ledgers.
        clock: seconds since the epoch.
    """

    def __init__(self, store: PrivacyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def terms(
        self, spec: JobSpec, job_id: JobId, manifest: TensorManifest, connected: int
    ) -> PrivacyTerms | None:
        """The terms of the next attempt; None for a job without privacy.

        Args:
            spec: the job.
            job_id: its id.
            manifest: of its model.
            connected: sites that the cohort is drawn from.

        Raises:
            BudgetExhausted: one more release would overshoot the budget, so that nobody needs to train for it.
            PlanError: no noise keeps the budget.
        """
        if spec.privacy is None:
            return None
        clip = await self._store.clip(job_id) if spec.privacy.quantile else None
        draw = Draw(connected, spec.cohort.min, spec.cohort.max)
        terms = await offload(spec.privacy.terms, spec.rounds, manifest.size, draw, clip)
        if terms.mechanism.is_in_ring:
            event = terms.event(private_coordinates(terms, manifest.size))
            before = await self._store.events(job_id)
            await offload(check_affordable, terms.budget, before, event, f"job {job_id}")
        return terms

    async def reserve(self, plan: RoundPlan) -> None:
        """Count the release of an attempt, durably, before anything is unmasked. It is never given back.

        Raises:
            BudgetExhausted: it would overshoot the budget.
        """
        terms = plan.privacy
        if terms is None or not terms.mechanism.is_in_ring:
            return
        event = terms.event(private_coordinates(terms, plan.manifest.size))
        release = Release(key_of(plan), plan.session_id, JOB, event, self._clock(), terms.clip)
        await self._store.reserve(release, terms.budget, f"job {plan.job_id}")
        show_budget(plan.job_id, await self.epsilon(plan.job_id, terms.budget.delta), terms.budget.epsilon)
        log.info("privacy_reserved", session_id=plan.session_id.hex(), noise_multiplier=event.noise_multiplier)

    async def check_signed(self, plan: RoundPlan, survivors: Sequence[int]) -> None:
        """Check that every survivor countersigned what its ledger counts.

        Raises:
            BadAggregate: one did not; its upload may not be released.
        """
        if plan.privacy is None:
            return
        signed = await self._store.signers(plan.session_id)
        silent = [plan.roster[index].client_id for index in survivors if plan.roster[index].client_id not in signed]
        if silent:
            raise BadAggregate("a site uploaded without countersigning its ledger", expected="a receipt", got=silent[0])

    async def countersign(self, plan: RoundPlan, index: int, request: pb.CountersignReleaseRequest) -> None:
        """Keep a site's receipt; with local noise its own ledger is what the budget is held against.

        Raises:
            PlanError: the attempt is not private, or the event is not the one of its plan.
            BudgetExhausted: the site's event would overshoot the budget.
            BadSignature: the receipt is not signed by the site.
        """
        if plan.privacy is None:
            raise PlanError("this attempt has no ledger", expected="a private attempt")
        entry, event = plan.roster[index], event_from_json(request.event_json)
        if plan.privacy.mechanism.is_in_ring:
            agreed = plan.privacy.event(private_coordinates(plan.privacy, plan.manifest.size))
            if event != agreed:
                raise PlanError(
                    "a site counts another event than the plan", expected=agreed.to_json(), got=event.to_json()
                )
        elif event.noise_multiplier < plan.privacy.noise_multiplier * (1 - 1e-9):
            raise PlanError(
                "a site added less noise than the plan asks for",
                expected=f"a noise multiplier of {plan.privacy.noise_multiplier}",
                got=event.noise_multiplier,
            )
        await offload(verify_receipt, plan.binding, event, request.certificate_der, request.signature)
        release = Release(
            key_of(plan),
            plan.session_id,
            entry.client_id,
            event,
            self._clock(),
            plan.privacy.clip,
            plan.binding,
            request.certificate_der,
            request.signature,
        )
        await self._store.reserve(release, plan.privacy.budget, f"site {entry.client_id} in job {plan.job_id}")

    async def settle(self, plan: RoundPlan, clip: float) -> None:
        """Keep the clip of the next round, which follows from the sum of this one."""
        await self._store.set_next_clip(key_of(plan), clip)

    async def report(self, job: JobRecord, spec: JobSpec) -> dict[str, object]:
        """The ledger of a job, for `tacit privacy report`.

        Raises:
            PlanError: the job is not private.
        """
        if spec.privacy is None:
            raise PlanError("the job has no ledger", expected="a job with a privacy section", got=job.job_id)
        releases = await self._store.releases(job.job_id)
        now = datetime.fromtimestamp(self._clock(), UTC)
        return await offload(privacy_report, job, spec, releases, now)

    async def epsilon(self, job_id: JobId, delta: float) -> float:
        """What a job has spent by now."""
        return (await offload(spent, await self._store.events(job_id), delta)).epsilon


def key_of(plan: RoundPlan) -> AttemptKey:
    """The attempt of a plan."""
    return AttemptKey(plan.job_id, plan.round_id, plan.attempt)
