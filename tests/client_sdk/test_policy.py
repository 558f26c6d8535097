"""What a site refuses before it takes part."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_services import SCHEDULE, Cluster

from client_sdk import SitePolicy
from client_sdk.policy import PaillierPolicy, check_invitation, check_services
from fl_core.codec.spec import CodecSpec
from fl_core.errors import ConfigError, PlanError, PolicyRefused
from fl_core.rounds.paillier_terms import PaillierTerms
from fl_core.rounds.plan import Aggregation, ClientId, RosterEntry, RoundPlan, ServiceEndpoint, SparseGraph
from fl_core.secagg.degrees import Profile
from fl_core.transport.identity import Role

KEY = json.loads((Path(__file__).parents[1] / "vectors" / "paillier.json").read_text())["iso_18033_6"]
MODULUS = int(KEY["p"], 16) * int(KEY["q"], 16)
SITES = ("alpha", "beta", "gamma")
ANY = SitePolicy(min_cohort=1)


def endpoint(federation: Any, role: Role, name: str) -> ServiceEndpoint:
    return ServiceEndpoint(name, "127.0.0.1:1", federation.credentials(role, name).identity.certificate_sha256)


@pytest.fixture
def plan(federation: Any, tmp_path: Any) -> RoundPlan:
    cluster = Cluster(federation, tmp_path)
    cluster.endpoints = {role: endpoint(federation, role, f"{role}-1") for role in (Role.AGGREGATOR, Role.KEYSERVER)}
    return cluster.plan(*SITES)


@pytest.fixture
def certificates(federation: Any) -> dict[Role, bytes]:
    roles = (Role.COORDINATOR, Role.AGGREGATOR, Role.KEYSERVER)
    return {role: federation.credentials(role, f"{role}-1").certificate_der for role in roles}


def test_a_site_learns_its_place_in_the_roster(federation: Any, plan: RoundPlan) -> None:
    assert check_invitation(plan, ANY, federation.credentials(Role.SITE, "beta").identity) == 1


def test_a_site_that_is_not_in_the_roster_declines(federation: Any, plan: RoundPlan) -> None:
    with pytest.raises(PlanError, match="not in the roster"):
        check_invitation(plan, ANY, federation.credentials(Role.SITE, "delta").identity)


def test_a_roster_with_another_certificate_for_this_site_is_declined(federation: Any, plan: RoundPlan) -> None:
    identity = replace(federation.credentials(Role.SITE, "beta").identity, certificate_sha256=b"y" * 32)
    with pytest.raises(PolicyRefused, match="another certificate for this site"):
        check_invitation(plan, ANY, identity)


def test_a_cohort_of_exactly_the_smallest_size_is_taken(federation: Any, plan: RoundPlan) -> None:
    identity = federation.credentials(Role.SITE, "alpha").identity
    assert check_invitation(plan, SitePolicy(min_cohort=3), identity) == 0
    with pytest.raises(PolicyRefused, match="expected >= 4 sites, got 3"):
        check_invitation(plan, SitePolicy(min_cohort=4), identity)


def test_a_cohort_of_strangers_is_declined(federation: Any, plan: RoundPlan) -> None:
    identity = federation.credentials(Role.SITE, "alpha").identity
    friends = ("alpha", "beta", "delta")
    assert check_invitation(plan, SitePolicy(trusted_sites=friends, min_trusted=1), identity) == 0
    with pytest.raises(PolicyRefused, match=r"expected >= 2 of policy\.trusted_sites, got 1"):
        check_invitation(plan, SitePolicy(trusted_sites=friends, min_trusted=2), identity)


def test_a_threshold_that_cannot_bear_the_planned_corruption_is_declined(federation: Any, plan: RoundPlan) -> None:
    weak = replace(plan, max_corrupt=0.4)
    with pytest.raises(PlanError):
        check_invitation(weak, ANY, federation.credentials(Role.SITE, "alpha").identity)


def test_a_ring_that_can_overflow_is_no_plan(plan: RoundPlan) -> None:
    with pytest.raises(PlanError, match="the ring can overflow"):
        replace(plan, codec=CodecSpec(clip=0.1, bits=12, ring_bits=13), schedule=SCHEDULE)


def test_the_planned_services_are_accepted(plan: RoundPlan, certificates: dict[Role, bytes]) -> None:
    check_services(plan, certificates)


def test_one_certificate_in_two_roles_is_refused(plan: RoundPlan, certificates: dict[Role, bytes]) -> None:
    certificates[Role.COORDINATOR] = certificates[Role.AGGREGATOR]
    with pytest.raises(PolicyRefused, match="coordinator and aggregator have the same certificate"):
        check_services(plan, certificates)


def test_one_id_in_two_roles_is_refused(federation: Any, plan: RoundPlan, certificates: dict[Role, bytes]) -> None:
    certificates[Role.COORDINATOR] = federation.credentials(Role.COORDINATOR, "aggregator-1").certificate_der
    with pytest.raises(PolicyRefused, match="have the same id"):
        check_services(plan, certificates)


def test_one_key_under_two_certificates_is_refused(
    federation: Any, plan: RoundPlan, certificates: dict[Role, bytes]
) -> None:
    certificates[Role.COORDINATOR] = _coordinator_with_key_of(federation, Role.AGGREGATOR, "aggregator-1")
    with pytest.raises(PolicyRefused, match="have the same key"):
        check_services(plan, certificates)


def test_a_service_of_the_wrong_role_is_refused(
    federation: Any, plan: RoundPlan, certificates: dict[Role, bytes]
) -> None:
    certificates[Role.AGGREGATOR] = federation.credentials(Role.KEYSERVER, "spare").certificate_der
    with pytest.raises(PolicyRefused, match="certificate of another role"):
        check_services(plan, certificates)


def test_a_renewed_certificate_that_the_plan_does_not_name_is_refused(
    federation: Any, plan: RoundPlan, certificates: dict[Role, bytes], tmp_path: Any
) -> None:
    from fl_core.transport.tls import Credentials

    files = federation.authority.issue(Role.AGGREGATOR, "aggregator-1", tmp_path / "renewed")
    renewed = Credentials.from_files(files.certificate, files.key, files.ca)
    certificates[Role.AGGREGATOR] = renewed.certificate_der
    with pytest.raises(PolicyRefused, match="another certificate than the plan says"):
        check_services(plan, certificates)


def _coordinator_with_key_of(federation: Any, role: Role, name: str) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    from fl_core.transport.identity import parse_certificate, subject_names

    key = load_pem_private_key(federation.issue(role, name).key.read_bytes(), None)
    names = subject_names(federation.authority.federation, Role.COORDINATOR, "coordinator-9")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type]
    )
    pem = federation.authority.sign(request.public_bytes(Encoding.PEM), role=Role.COORDINATOR)
    return parse_certificate(pem).public_bytes(Encoding.DER)


def sparse(plan: RoundPlan, profile: Profile, max_corrupt: float) -> RoundPlan:
    """A plan for twelve sites of which each has six neighbours."""
    others = (RosterEntry(ClientId(f"site-{number}"), bytes([number]) * 32) for number in range(9))
    roster = tuple(sorted((*plan.roster, *others), key=lambda entry: entry.client_id))
    graph = SparseGraph(6, profile, b"g" * 32)
    numbers: dict[str, Any] = {"threshold": 4, "min_survivors": 11, "max_dropout": 0.1, "max_corrupt": max_corrupt}
    return replace(plan, roster=roster, graph=graph, **numbers)


def test_a_sparse_graph_that_assumes_too_few_corrupt_sites_is_declined(federation: Any, plan: RoundPlan) -> None:
    identity = federation.credentials(Role.SITE, "alpha").identity
    careless = sparse(plan, Profile.EQUIVOCATION_SAFE, 0.0)
    assert check_invitation(careless, SitePolicy(min_cohort=1, min_corrupt=0.0), identity) == 0
    with pytest.raises(PolicyRefused, match="fewer corrupt sites"):
        check_invitation(careless, ANY, identity)


def test_a_sparse_graph_of_a_weaker_profile_is_declined(federation: Any, plan: RoundPlan) -> None:
    identity = federation.credentials(Role.SITE, "alpha").identity
    weak = sparse(plan, Profile.HONEST_BUT_CURIOUS, 0.0)
    lenient = SitePolicy(min_cohort=1, min_profile=Profile.HONEST_BUT_CURIOUS, min_corrupt=0.0)
    assert check_invitation(weak, lenient, identity) == 0
    with pytest.raises(PolicyRefused, match=r"policy\.min_profile"):
        check_invitation(weak, SitePolicy(min_cohort=1, min_corrupt=0.0), identity)


def test_a_sparse_graph_that_does_not_hold_is_declined(federation: Any, plan: RoundPlan) -> None:
    identity = federation.credentials(Role.SITE, "alpha").identity
    with pytest.raises(PlanError, match="raise the degree"):
        check_invitation(sparse(plan, Profile.EQUIVOCATION_SAFE, 0.3), ANY, identity)


@pytest.mark.parametrize(
    "change", [{"min_profile": "none"}, {"min_corrupt": 1.0}, {"min_corrupt": -0.1}, {"min_corrupt": "0.1"}]
)
def test_a_policy_for_sparse_graphs_checks_itself(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        SitePolicy(**change)


def test_a_profile_may_be_written_as_text() -> None:
    assert SitePolicy(min_profile="honest_but_curious").min_profile is Profile.HONEST_BUT_CURIOUS  # type: ignore[arg-type]


def encrypted(plan: RoundPlan, **changes: Any) -> RoundPlan:
    terms = PaillierTerms(int(MODULUS).to_bytes(256, "big"), b"s" * 70)
    return replace(plan, aggregation=Aggregation.PAILLIER, paillier=terms, min_survivors=3, max_dropout=0.0, **changes)


def test_an_encrypted_attempt_is_declined_unless_the_owner_says_otherwise(federation: Any, plan: RoundPlan) -> None:
    identity = federation.credentials(Role.SITE, "alpha").identity
    for policy in (ANY, SitePolicy(require_secure_aggregation=False), SitePolicy(paillier=PaillierPolicy.THRESHOLD)):
        with pytest.raises(PolicyRefused, match=r"policy\.paillier"):
            check_invitation(encrypted(plan), policy, identity)
    assert check_invitation(encrypted(plan), SitePolicy(paillier=PaillierPolicy.KEYSERVER), identity) == 0


@pytest.mark.parametrize(
    "conditions", [{"min_cohort": 4}, {"trusted_sites": ("beta",), "min_trusted": 1}, {"min_cohort_difference": 2}]
)
def test_conditions_on_survivors_cannot_be_kept_in_an_encrypted_attempt(
    federation: Any, plan: RoundPlan, conditions: dict[str, Any]
) -> None:
    policy = SitePolicy(paillier=PaillierPolicy.KEYSERVER, **conditions)
    with pytest.raises(PolicyRefused):
        check_invitation(encrypted(plan), policy, federation.credentials(Role.SITE, "alpha").identity)


def test_an_encrypted_plan_under_a_short_key_or_for_two_survivors_is_declined(federation: Any, plan: RoundPlan) -> None:
    identity, policy = (
        federation.credentials(Role.SITE, "alpha").identity,
        SitePolicy(paillier=PaillierPolicy.KEYSERVER),
    )
    short = replace(encrypted(plan), paillier=PaillierTerms((3 * 5 * (1 << 1000) + 15).to_bytes(126, "big"), b"s"))
    with pytest.raises(PlanError, match="wrong size"):
        check_invitation(short, policy, identity)
    with pytest.raises(PlanError, match="hides none"):
        check_invitation(replace(encrypted(plan), threshold=2, min_survivors=2), policy, identity)


def test_an_unknown_word_for_paillier_is_refused() -> None:
    with pytest.raises(ConfigError, match="paillier"):
        SitePolicy(paillier="perhaps")  # type: ignore[arg-type]


def test_a_site_without_gmpy2_reads_plans_and_says_what_an_encrypted_one_needs() -> None:
    code = (
        "import sys; sys.modules['gmpy2'] = None\n"
        "import client_sdk, client_sdk.attempt, fl_core.wire.convert\n"
        "from fl_core.errors import ConfigError\n"
        "try:\n    import client_sdk.encrypted_upload\n"
        "except ConfigError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'tacit[paillier]'" in done.stdout
