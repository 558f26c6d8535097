"""What a site insists on, and the checks of a plan before the site takes part in it. A server cannot weaken them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fl_core.errors import ConfigError, PolicyRefused, RemoteProtocolError
from fl_core.privacy.budget import DELTA_MAX
from fl_core.rounds.cohort_rules import check_difference, check_smallest, check_trusted
from fl_core.rounds.paillier_terms import Custody
from fl_core.rounds.plan import Aggregation, RoundPlan, ServiceEndpoint, SparseGraph
from fl_core.rounds.planner import check_plan
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.secagg.degrees import Profile
from fl_core.transport.identity import Identity, Role, cached_identity, parse_certificate


class PaillierPolicy(StrEnum):
    """Which encrypted attempts a site takes part in.

    They are weaker than masked ones: no threshold of sites stands between a single update and the aggregator and key
    server together.
    """

    REFUSE = "refuse"
    THRESHOLD = "threshold"
    KEYSERVER = "keyserver"


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """The owner's conditions.

    Args:
        require_secure_aggregation: refuse attempts in which the aggregator sees single updates.
        min_cohort: smallest number of sites in an attempt, and in a sum that this site helps to unmask, >= 1.
        aggregator_id: the only aggregator that may get updates; any of the federation when None.
        keyserver_id: the only key server that may relay shares; any of the federation when None.
        min_profile: what a sparse graph must hold against at least: equivocation_safe or honest_but_curious.
        min_corrupt: a sparse graph must hold against at least this fraction of sites that collude with the servers.
        min_cohort_difference: sites by which the survivors of two sums must differ when they are not the
            same, >= 1; 1 allows everything. A larger number stops a coordinator from subtracting sums, and makes the
            site leave attempts in which a site more or less than before dropped out.
        trusted_sites: client_ids that the owner knows to be different parties.
        min_trusted: how many of these must be in an attempt and in its sum beside this site.
        paillier: encrypted attempts that this site takes part in: none (refuse), those whose private key is shared out
            (threshold), or also those whose key server holds it alone (keyserver). The sites of their sum cannot be
            looked at before it is opened, so an attempt is refused that could leave fewer than `min_cohort`, or whose
            survivors other conditions here are about.
        max_epsilon: largest privacy budget of a job, epsilon; a job without a budget is declined then. None asks for
            no privacy.
        max_delta: largest delta that goes with it.
        max_total_epsilon: largest epsilon of this site over all jobs, without amplification by sampling, at
            `max_delta`; None is no bound.
        mechanisms: the privacy mechanisms that this site takes part in.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    require_secure_aggregation: bool = True
    min_cohort: int = 3
    aggregator_id: str | None = None
    keyserver_id: str | None = None
    min_profile: Profile = Profile.EQUIVOCATION_SAFE
    min_corrupt: float = 0.05
    min_cohort_difference: int = 1
    trusted_sites: tuple[str, ...] = ()
    min_trusted: int = 0
    paillier: PaillierPolicy = PaillierPolicy.REFUSE
    max_epsilon: float | None = None
    max_delta: float = 1e-4
    max_total_epsilon: float | None = None
    mechanisms: tuple[str, ...] = ("local", "central", "distributed")

    def __post_init__(self) -> None:
        if not isinstance(self.require_secure_aggregation, bool):
            raise ConfigError(
                "policy.require_secure_aggregation is no yes or no",
                expected="true or false",
                got=repr(self.require_secure_aggregation),
            )
        for name, low in (("min_cohort", 1), ("min_cohort_difference", 1), ("min_trusted", 0)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < low:
                raise ConfigError(
                    f"policy.{name} is out of range", expected=f"a whole number >= {low}", got=repr(number)
                )
        self._check_trusted()
        if self.min_profile not in tuple(Profile):
            raise ConfigError("policy.min_profile is unknown", expected=" | ".join(Profile), got=repr(self.min_profile))
        if self.paillier not in tuple(PaillierPolicy):
            raise ConfigError(
                "policy.paillier is unknown", expected=" | ".join(PaillierPolicy), got=repr(self.paillier)
            )
        object.__setattr__(self, "paillier", PaillierPolicy(self.paillier))
        # A profile comes as text from site.yaml.
        object.__setattr__(self, "min_profile", Profile(self.min_profile))
        if isinstance(self.min_corrupt, bool) or not isinstance(self.min_corrupt, int | float):
            raise ConfigError("policy.min_corrupt is no number", expected="0 <= x < 1", got=repr(self.min_corrupt))
        if not 0 <= self.min_corrupt < 1:
            raise ConfigError("policy.min_corrupt is out of range", expected="0 <= x < 1", got=repr(self.min_corrupt))
        self._check_privacy()
        for name in ("aggregator_id", "keyserver_id"):
            pin = getattr(self, name)
            if pin is not None and not (isinstance(pin, str) and pin):
                raise ConfigError(f"policy.{name} is no name", expected="text", got=repr(pin))

    def _check_privacy(self) -> None:
        for name, cap in (("max_epsilon", self.max_epsilon), ("max_total_epsilon", self.max_total_epsilon)):
            if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int | float) or not cap > 0):
                raise ConfigError(f"policy.{name} is out of range", expected="a number above 0", got=repr(cap))
        delta = self.max_delta
        if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta <= DELTA_MAX:
            raise ConfigError("policy.max_delta is out of range", expected=f"0 to {DELTA_MAX:g}", got=repr(delta))
        names = self.mechanisms
        if not isinstance(names, list | tuple) or not all(name in tuple(Mechanism) for name in names):
            raise ConfigError(
                "policy.mechanisms is unknown", expected=f"a list of {' | '.join(Mechanism)}", got=repr(names)
            )
        object.__setattr__(self, "mechanisms", tuple(names))

    def _check_trusted(self) -> None:
        names = self.trusted_sites
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise ConfigError("policy.trusted_sites is no list of names", expected="client_ids", got=repr(names))
        object.__setattr__(self, "trusted_sites", tuple(names))
        if self.min_trusted > len(set(names)):
            raise ConfigError(
                "policy.min_trusted is more than there are",
                expected=f"at most {len(set(names))} trusted_sites",
                got=self.min_trusted,
            )


def check_invitation(plan: RoundPlan, policy: SitePolicy, identity: Identity) -> int:
    """Check everything about a plan that needs no look at the network.

    Args:
        plan: as the coordinator sent it.
        policy: the owner's conditions.
        identity: this site, as its certificate says.

    Returns:
        The place of this site in the roster.

    Raises:
        PlanError: the plan cannot hold (overflow, threshold, drop-out), or this site is not in its roster.
        PolicyRefused: the plan is weaker than the policy.
    """
    check_plan(plan)
    index = plan.index_of(identity.id)
    if plan.roster[index].certificate_sha256 != identity.certificate_sha256:
        raise PolicyRefused(
            "the roster names another certificate for this site",
            expected=f"fingerprint {identity.certificate_sha256.hex()[:16]}",
            got=f"fingerprint {plan.roster[index].certificate_sha256.hex()[:16]}",
            fix="connect again with the certificate in use",
        )
    _check_conditions(plan, policy)
    check_budget(plan, policy)
    roster = [entry.client_id for entry in plan.roster]
    check_trusted(roster, identity.id, policy.trusted_sites, policy.min_trusted, "the cohort")
    return index


def check_budget(plan: RoundPlan, policy: SitePolicy) -> None:
    """Check a plan's privacy against the owner's cap.

    Raises:
        PolicyRefused: the plan has no budget, or a larger one, or noise that the owner does not take part in.
    """
    terms, cap = plan.privacy, policy.max_epsilon
    if terms is None:
        if cap is None:
            return
        raise PolicyRefused(
            "the job has no privacy budget",
            expected=f"epsilon up to {cap:g} (policy.max_epsilon)",
            got="none",
            fix="ask for a privacy section in the job, or take max_epsilon out of the policy",
        )
    if cap is not None and (terms.budget.epsilon > cap or terms.budget.delta > policy.max_delta):
        raise PolicyRefused(
            "the job's privacy budget is larger than this site allows",
            expected=f"epsilon up to {cap:g} and delta up to {policy.max_delta:g}",
            got=f"epsilon {terms.budget.epsilon:g} and delta {terms.budget.delta:g}",
            fix="ask for a smaller privacy.epsilon in the job, or raise policy.max_epsilon",
        )
    if terms.mechanism.value not in policy.mechanisms:
        raise PolicyRefused(
            "this site takes no part in this privacy mechanism",
            expected=" | ".join(policy.mechanisms),
            got=terms.mechanism.value,
        )


def check_survivors(
    plan: RoundPlan, index: int, survivors: Sequence[int], policy: SitePolicy, earlier: Iterable[Collection[str]]
) -> frozenset[str]:
    """Check who would be in the sum that this site helps to unmask.

    Args:
        plan: of the attempt.
        index: this site's place in the roster.
        survivors: U3; places in the roster.
        policy: the owner's conditions.
        earlier: client_ids of each U3 that this site has signed, in whatever job.

    Returns:
        The client_ids of the survivors.

    Raises:
        RemoteProtocolError: a survivor is not in the roster.
        PolicyRefused: they are too few, too few of them are known, or they are almost those of an earlier sum.
    """
    if any(not 0 <= survivor < len(plan.roster) for survivor in survivors):
        raise RemoteProtocolError("a survivor is not in the roster", expected=f"below {len(plan.roster)}")
    names = frozenset(plan.roster[survivor].client_id for survivor in survivors)
    check_smallest(names, policy.min_cohort, "the sum")
    own = plan.roster[index].client_id
    check_trusted(names, own, policy.trusted_sites, policy.min_trusted, "the sum")
    check_difference(names, earlier, policy.min_cohort_difference)
    return frozenset(names)


def check_services(plan: RoundPlan, certificates: Mapping[Role, bytes]) -> None:
    """Check that every service is the one that the plan names, and that no two of them are the same party.

    Args:
        plan: the attempt.
        certificates: what the services showed (DER), by the role in which this site meets them; each was checked
            against the pinned CA.

    Raises:
        PolicyRefused: another certificate than the plan says, a wrong role, or one party in two roles.
    """
    for role, endpoint in endpoints(plan).items():
        _check_endpoint(role, endpoint, cached_identity(certificates[role]))
    identities = {role: cached_identity(certificate) for role, certificate in certificates.items()}
    _check_distinct("certificate", {role: identity.certificate_sha256 for role, identity in identities.items()})
    _check_distinct("id", {role: identity.id.encode() for role, identity in identities.items()})
    # A renewed certificate over the same key is the same party too.
    _check_distinct("key", {role: _public_key(certificate) for role, certificate in certificates.items()})


def endpoints(plan: RoundPlan) -> dict[Role, ServiceEndpoint]:
    """The services that a site talks to in this attempt, beside the coordinator."""
    found = {Role.AGGREGATOR: plan.aggregator}
    if plan.keyserver is not None:
        found[Role.KEYSERVER] = plan.keyserver
    return found


def _check_conditions(plan: RoundPlan, policy: SitePolicy) -> None:
    if plan.aggregation is Aggregation.PAILLIER:
        _check_paillier(plan, policy)
    elif policy.require_secure_aggregation and plan.aggregation is not Aggregation.SECAGG:
        raise PolicyRefused(
            "this site takes part in secure aggregation only",
            expected=Aggregation.SECAGG.value,
            got=plan.aggregation.value,
            fix="change the job, or policy.require_secure_aggregation in site.yaml",
        )
    check_smallest([entry.client_id for entry in plan.roster], policy.min_cohort, "the cohort")
    if plan.graph is not None:
        _check_graph(plan, plan.graph, policy)
    pins = {Role.AGGREGATOR: policy.aggregator_id, Role.KEYSERVER: policy.keyserver_id}
    for role, endpoint in endpoints(plan).items():
        if pins[role] not in (None, endpoint.service_id):
            raise PolicyRefused(
                f"this site has pinned another {role.value}", expected=pins[role], got=endpoint.service_id
            )


def _check_paillier(plan: RoundPlan, policy: SitePolicy) -> None:
    accepted: dict[PaillierPolicy, tuple[Custody, ...]] = {
        PaillierPolicy.REFUSE: (),
        PaillierPolicy.THRESHOLD: (Custody.THRESHOLD,),
        PaillierPolicy.KEYSERVER: tuple(Custody),
    }
    custody = None if plan.paillier is None else plan.paillier.custody
    if custody not in accepted[policy.paillier]:
        raise PolicyRefused(
            "this site takes no part in such encrypted attempts",
            expected=f"what policy.paillier allows, {policy.paillier.value}",
            got=f"custody {custody}",
            fix="change the job, or policy.paillier in site.yaml",
        )
    if plan.min_survivors < policy.min_cohort:
        raise PolicyRefused(
            "an encrypted sum could be of fewer sites than this site demands",
            expected=f"min_survivors >= {policy.min_cohort}",
            got=plan.min_survivors,
            fix="raise min_survivors of the job, or lower policy.min_cohort in site.yaml",
        )
    if policy.min_trusted or policy.min_cohort_difference > 1:
        raise PolicyRefused(
            "this site has conditions on the survivors, whom it cannot look at in an encrypted attempt",
            expected="a masked attempt",
            fix="change the job, or policy.min_trusted and policy.min_cohort_difference in site.yaml",
        )


def _check_graph(plan: RoundPlan, graph: SparseGraph, policy: SitePolicy) -> None:
    if graph.profile.strength < policy.min_profile.strength:
        raise PolicyRefused(
            "the sparse graph holds against less than this site demands",
            expected=policy.min_profile.value,
            got=graph.profile.value,
            fix="change profile of the job, or policy.min_profile in site.yaml",
        )
    if plan.max_corrupt < policy.min_corrupt:
        raise PolicyRefused(
            "the sparse graph assumes fewer corrupt sites than this site does",
            expected=f"max_corrupt >= {policy.min_corrupt}",
            got=plan.max_corrupt,
            fix="change max_corrupt of the job, or policy.min_corrupt in site.yaml",
        )


def _check_endpoint(role: Role, endpoint: ServiceEndpoint, shown: Identity) -> None:
    if shown.role is not role:
        raise PolicyRefused(
            f"the {role.value} shows a certificate of another role", expected=role.value, got=shown.role.value
        )
    if shown.id != endpoint.service_id:
        raise PolicyRefused(f"the {role.value} is not the one of the plan", expected=endpoint.service_id, got=shown.id)
    if shown.certificate_sha256 != endpoint.certificate_sha256:
        raise PolicyRefused(
            f"the {role.value} shows another certificate than the plan says",
            expected=f"fingerprint {endpoint.certificate_sha256.hex()[:16]}",
            got=f"fingerprint {shown.certificate_sha256.hex()[:16]}",
        )


def _check_distinct(what: str, facts: Mapping[Role, bytes]) -> None:
    roles: dict[bytes, Role] = {}
    for role, fact in facts.items():
        if fact in roles:
            raise PolicyRefused(
                f"{roles[fact].value} and {role.value} have the same {what}",
                expected="services in different hands",
                fix="run each service with an identity of its own",
            )
        roles[fact] = role


@lru_cache(maxsize=64)
def _public_key(certificate: bytes) -> bytes:
    key = parse_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
