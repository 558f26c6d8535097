"""What the coordinator counts for Prometheus: how attempts end, and why sites drop out."""

from prometheus_client import Counter

from fl_core.rounds.machine import RoundRecord
from services.runtime.metrics import REGISTRY

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


def count_ending(record: RoundRecord) -> None:
    """Count one attempt that has ended, and its drop-outs."""
    ATTEMPTS_ENDED.labels(record.abandon_reason.value if record.abandon_reason else record.state.value).inc()
    for dropout in record.dropouts:
        SITES_DROPPED.labels(dropout.reason.value, dropout.phase.value).inc()
