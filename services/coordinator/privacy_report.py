"""The report of a private job: what was promised to whom, what was spent, and who signed for it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256

from fl_core.errors import TacitError
from fl_core.privacy.ledger import PrivacySpent, spent
from fl_core.privacy.receipts import verify_receipt
from fl_core.rounds.job import JobSpec
from fl_core.rounds.plan import Aggregation
from fl_core.rounds.privacy_choice import Evaluations, NoiseBy, PrivacyChoice
from fl_core.rounds.privacy_terms import Mechanism
from services.coordinator.privacy_store import JOB, Release, by_client, events_of
from services.coordinator.records import JobRecord

TRUST: Mapping[Mechanism, str] = {
    Mechanism.LOCAL: "nobody outside the site: noise is in the gradients before anything leaves it",
    Mechanism.CENTRAL: "the key server to add its noise, and key server and aggregator not to work together",
    Mechanism.DISTRIBUTED: "no server: enough surviving sites add their share of the noise",
}
BOTH_SERVERS = "one of key server and aggregator to add its noise, and both of them not to work together"
PLAIN_ROUNDS = "the coordinator, which adds the noise, and the aggregator: both see what sites send without noise"


def privacy_report(job: JobRecord, spec: JobSpec, releases: Sequence[Release], now: datetime) -> dict[str, object]:
    """Write the report.

    Args:
        job: as it is stored.
        spec: with a privacy section.
        releases: all rows of the job's ledger.
        now: when the report is made.
    """
    privacy = spec.privacy
    assert privacy is not None
    ledgers = by_client(releases)
    sites = {name: _ledger(rows, privacy) for name, rows in ledgers.items() if name != JOB}
    own = ledgers.get(JOB, [])
    return {
        "job_id": job.job_id,
        "name": job.name,
        "status": job.status.value,
        "made_at": now.isoformat(),
        "unit_of_privacy": privacy.mechanism.unit,
        "neighbours": f"the data of one {privacy.mechanism.unit} is replaced by nothing; who takes part is no secret",
        "mechanism": privacy.mechanism.value,
        "noise_by": _noise_by(privacy, spec.aggregation),
        "trusted": trust_of(privacy, spec.aggregation),
        "outside_of_the_guarantee": _outside(privacy),
        "budget": {"epsilon": privacy.epsilon, "delta": privacy.delta},
        "spent": _spent(_job_figures(own, ledgers, privacy)),
        "rounds_committed": job.rounds_committed,
        "releases": [_line(release) for release in own],
        "sites": sites,
        "article_30": _article_30(job, spec, sorted(sites)),
    }


def trust_of(privacy: PrivacyChoice, aggregation: Aggregation) -> str:
    """Whom the guarantee needs to be honest."""
    if aggregation is Aggregation.PLAIN and privacy.mechanism.is_in_ring:
        return PLAIN_ROUNDS
    return BOTH_SERVERS if privacy.noise is NoiseBy.BOTH else TRUST[privacy.mechanism]


def _noise_by(privacy: PrivacyChoice, aggregation: Aggregation) -> str:
    if privacy.mechanism is not Mechanism.CENTRAL:
        return "every site"
    if aggregation is Aggregation.PLAIN:
        return "coordinator"
    return "key server and aggregator, each in full" if privacy.noise is NoiseBy.BOTH else "key server"


def _outside(privacy: PrivacyChoice) -> list[str]:
    told = ["which sites were invited and took part, and when", "that a site left an attempt, and its reason"]
    if privacy.evaluations is Evaluations.OUTSIDE:
        told.append("what sites measure of a model on their test data, with their numbers of samples")
    return told


def _job_figures(
    own: Sequence[Release], ledgers: Mapping[str, Sequence[Release]], privacy: PrivacyChoice
) -> PrivacySpent:
    """Of the job; with local noise the largest of the sites, whose samples are different ones."""
    if privacy.mechanism.is_in_ring:
        return spent(events_of(own), privacy.delta)
    sites = [spent(events_of(rows), privacy.delta) for name, rows in ledgers.items() if name != JOB]
    return max(sites, key=lambda figures: figures.epsilon, default=spent([], privacy.delta))


def _ledger(rows: Sequence[Release], privacy: PrivacyChoice) -> dict[str, object]:
    figures = spent(events_of(rows), privacy.delta)
    return {**_spent(figures), "releases": [_line(row) | _receipt(row) for row in rows]}


def _receipt(row: Release) -> dict[str, object]:
    return {
        "binding": row.binding.hex(),
        "signature": row.signature.hex(),
        "certificate_sha256": sha256(row.certificate_der).hexdigest(),
        "is_signed_by_site": _is_signed(row),
    }


def _is_signed(row: Release) -> bool:
    try:
        verify_receipt(row.binding, row.event, row.certificate_der, row.signature)
    except TacitError:
        return False
    return True


def _line(release: Release) -> dict[str, object]:
    event = release.event
    return {
        "round_id": release.key.round_id,
        "attempt": release.key.attempt,
        "session_id": release.session_id.hex(),
        "reserved_at": datetime.fromtimestamp(release.reserved_at, UTC).isoformat(),
        "clip": release.clip,
        "noise_multiplier": event.noise_multiplier,
        "event": event.to_json(),
    }


def _spent(figures: PrivacySpent) -> dict[str, object]:
    return {
        "epsilon": figures.epsilon,
        "epsilon_to_who_knows_the_cohort": figures.epsilon_to_participants,
        "delta": figures.delta,
        "release_count": figures.releases,
    }


def _article_30(job: JobRecord, spec: JobSpec, sites: Sequence[str]) -> dict[str, object]:
    """What Tacit knows of a record of processing (GDPR, Article 30); the rest is the controller's to fill in."""
    masked = spec.aggregation is not Aggregation.PLAIN
    return {
        "purpose": f"training of a joint model: {job.name}",
        "controller_and_contact": None,
        "categories_of_data_subjects": None,
        "categories_of_personal_data": None,
        "processors_and_recipients": {
            "sites": list(sites),
            "submitted_by": job.submitted_by,
            "services": ["coordinator", "aggregator", "key server"] if masked else ["coordinator", "aggregator"],
            "what_they_receive": "sums of updates with noise; raw data stays at the sites",
        },
        "transfers_to_third_countries": None,
        "time_limits_for_erasure": None,
        "security_measures": [
            "TLS 1.3 with client certificates on every connection",
            "secure aggregation of the updates" if masked else "no masks: the aggregator sees single updates",
            f"differential privacy with the {_unit(spec)} as unit, budget enforced before each release",
            "per-site ledgers, signed by the sites",
        ],
        "submitted_at": datetime.fromtimestamp(job.submitted_at, UTC).isoformat(),
        "ended_at": None if job.ended_at is None else datetime.fromtimestamp(job.ended_at, UTC).isoformat(),
    }


def _unit(spec: JobSpec) -> str:
    return spec.privacy.mechanism.unit if spec.privacy else ""
