"""What the coordinator counts for Prometheus: how attempts end, how long they take, and why sites drop out."""

from collections.abc import Iterable
from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

from fl_core.rounds.machine import RoundRecord, RoundState
from services.coordinator.records import SiteBytes
from services.runtime.metrics import REGISTRY

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

ATTEMPTS_ENDED = Counter(
    "tacit_attempts_ended",
    "Attempts by how they ended: committed, or the reason why they were abandoned.",
    ("outcome",),
    registry=REGISTRY,
)
SITES_DROPPED = Counter(
    "tacit_sites_dropped",
    "Drop-outs by reason and by what the attempt was waiting for.",
    ("reason", "phase"),
    registry=REGISTRY,
)
QUARANTINES_SUSPENDED = Counter(
    "tacit_quarantines_suspended",
    "Sites that were invited in spite of their quarantine, because the cohort would have been too small.",
    registry=REGISTRY,
)
PHASE_SECONDS = Histogram(
    "tacit_phase_seconds",
    "What attempts spent in each state that they left, also those that were abandoned later.",
    ("phase",),
    buckets=_BUCKETS,
    registry=REGISTRY,
)
ROUND_SECONDS = Histogram(
    "tacit_round_seconds",
    "Committed attempts, from recruiting to the new model.",
    buckets=_BUCKETS,
    registry=REGISTRY,
)
SURVIVORS = Gauge("tacit_round_survivors", "Sites in the sum of the last committed round.", registry=REGISTRY)
SITE_BYTES = Counter(
    "tacit_site_bytes",
    "Message bytes between sites and all three services, as the sites send them (up) and get them (down).",
    ("direction",),
    registry=REGISTRY,
)
SITES_CONNECTED = Gauge("tacit_sites_connected", "Sites with an open stream to the coordinator.", registry=REGISTRY)

EPSILON_SPENT = Gauge(
    "tacit_privacy_epsilon_spent",
    "Privacy budget that the releases of a running job have spent.",
    ("job_id",),
    registry=REGISTRY,
)
EPSILON_LIMIT = Gauge("tacit_privacy_epsilon_limit", "Privacy budget of a running job.", ("job_id",), registry=REGISTRY)


def show_budget(job_id: str, spent: float, limit: float) -> None:
    """Show what a job has spent of its privacy budget, both as epsilon at the job's delta."""
    EPSILON_SPENT.labels(job_id).set(spent)
    EPSILON_LIMIT.labels(job_id).set(limit)


def forget_budget(job_id: str) -> None:
    """The job has ended: its ledger keeps what it spent, the metrics do not."""
    for gauge in (EPSILON_SPENT, EPSILON_LIMIT):
        with suppress(KeyError):
            gauge.remove(job_id)


def count_bytes(sites: Iterable[SiteBytes]) -> None:
    """Count what the sites of one attempt sent and got."""
    for site in sites:
        SITE_BYTES.labels("up").inc(site.up)
        SITE_BYTES.labels("down").inc(site.down)


def count_ending(record: RoundRecord) -> None:
    """Count one attempt that has ended: its outcome, its phases and its drop-outs."""
    for phase in record.phases:
        PHASE_SECONDS.labels(phase.state.value).observe(phase.seconds)
    if record.state is RoundState.COMMITTED:
        ROUND_SECONDS.observe(sum(phase.seconds for phase in record.phases))
        SURVIVORS.set(len(record.survivors))
    ATTEMPTS_ENDED.labels(record.abandon_reason.value if record.abandon_reason else record.state.value).inc()
    for dropout in record.dropouts:
        SITES_DROPPED.labels(dropout.reason.value, dropout.phase.value).inc()
