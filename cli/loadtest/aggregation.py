"""How the sites of a load test are summed, by a name for the command line."""

from enum import StrEnum

from fl_core.rounds.plan import Aggregation

PROFILE = "honest_but_curious"
MAX_CORRUPT = 0.05


class LoadAggregation(StrEnum):
    """How the updates of a cohort become their sum."""

    SECAGG = "secagg"
    """Masked, against sites and servers that do anything; the graph is sparse only where that halves the work."""
    SECAGG_PLUS = "secagg+"
    """Masked, on the sparse graph of Bell et al. 2020 against honest-but-curious servers and 5% of the sites."""
    PAILLIER = "paillier"
    """Encrypted, under a key of the cluster's own key server."""
    PLAIN = "plain"

    @property
    def of_job(self) -> Aggregation:
        """As a job says it."""
        return Aggregation.SECAGG if self is LoadAggregation.SECAGG_PLUS else Aggregation(self.value)

    @property
    def job_settings(self) -> dict[str, object]:
        """Keys of the job."""
        settings: dict[str, object] = {"aggregation": self.of_job.value}
        if self is LoadAggregation.SECAGG_PLUS:
            settings |= {"profile": PROFILE, "max_corrupt": MAX_CORRUPT}
        return settings

    @property
    def site_policy(self) -> dict[str, object]:
        """What the sites insist on, so that they take part."""
        policy: dict[str, object] = {"require_secure_aggregation": self is not LoadAggregation.PLAIN, "min_cohort": 3}
        if self is LoadAggregation.SECAGG_PLUS:
            policy["min_profile"] = PROFILE
        if self is LoadAggregation.PAILLIER:
            policy["paillier"] = "keyserver"
        return policy
