"""Plans that hold, plans that cannot and say which number to change, and what a plan's digest stands for."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.errors import PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.rounds.job import CodecChoice, job_from_mapping
from fl_core.rounds.paillier_terms import PaillierTerms
from fl_core.rounds.plan import (
    Aggregation,
    ClientId,
    JobId,
    PhaseBounds,
    PhaseSchedule,
    RosterEntry,
    RoundPlan,
    ServiceEndpoint,
    SparseGraph,
)
from fl_core.rounds.planner import (
    build_plan,
    bytes_up_per_site,
    check_job,
    check_plan,
    choose_bits,
    choose_codec,
    codec_of,
    upload_bytes,
)
from fl_core.rounds.privacy_terms import Mechanism, PrivacyTerms
from fl_core.secagg.degrees import Profile

AGGREGATOR = ServiceEndpoint("agg", "host:1", b"a" * 32)
KEYSERVER = ServiceEndpoint("keys", "host:2", b"k" * 32)


def plan_of(size: int = 10, manifest_size: int = 100, commitment: bytes | None = None, **job: Any) -> RoundPlan:
    roster = tuple(RosterEntry(ClientId(f"site-{i:05}"), i.to_bytes(32, "big")) for i in reversed(range(size)))
    return build_plan(
        job_from_mapping({"name": "j", "rounds": 1, **job}),
        job_id=JobId("job"),
        round_id=3,
        attempt=2,
        model_version=4,
        model_digest=b"m" * 32,
        manifest=TensorManifest((TensorSpec("w", "float32", (manifest_size,)),)),
        roster=roster,
        aggregator=AGGREGATOR,
        keyserver=KEYSERVER,
        graph_commitment=commitment,
    )


@pytest.mark.parametrize(("size", "threshold"), [(3, 3), (4, 3), (10, 7), (100, 67)])
def test_the_default_threshold_of_a_secure_plan_is_two_thirds(size: int, threshold: int) -> None:
    plan = plan_of(size)
    assert (plan.threshold, plan.min_survivors) == (threshold, threshold)
    assert plan.session_context().threshold == threshold


def test_a_plain_plan_waits_for_all_but_the_dropouts_and_has_no_key_server() -> None:
    plan = plan_of(10, aggregation="plain", max_dropout=0.5)
    assert (plan.threshold, plan.min_survivors, plan.keyserver) == (5, 5, None)


def test_the_roster_is_sorted() -> None:
    ids = [entry.client_id for entry in plan_of().roster]
    assert ids == sorted(ids)


@given(st.integers(1, 16_384), st.integers(15, 32))
def test_the_chosen_bits_fit_and_one_more_would_not(cohort: int, ring_bits: int) -> None:
    bits = choose_bits(cohort, ring_bits)
    CodecSpec(1.0, bits, ring_bits).check_cohort(cohort)
    if bits < 24:
        with pytest.raises(PlanError):
            CodecSpec(1.0, bits + 1, ring_bits).check_cohort(cohort)


@given(st.integers(3, 3000))
def test_the_default_job_holds_for_every_cohort(size: int) -> None:
    job = job_from_mapping({"name": "j", "rounds": 1, "cohort": {"min": size, "max": size}, "max_weight": 100})
    check_job(job)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"threshold": 5}, ["threshold", "raise threshold"]),
        ({"threshold": 8}, ["threshold", "lower threshold"]),
        ({"max_dropout": 0.5}, ["max_dropout"]),
        ({"max_corrupt": 0.7}, ["max_corrupt"]),
        ({"min_survivors": 8}, ["min_survivors", "max_dropout"]),
        ({"codec": {"bits": 21, "ring_bits": 24}}, ["ring_bits", "raise ring_bits"]),
        ({"codec": {"ring_bits": 20, "bits": 17}}, ["ring_bits 20", "raise ring_bits"]),
        ({"codec": "top-1pct-int8"}, ["masks", "random or blocks"]),
        ({"codec": "one-bit"}, ["masks", "few bits with rotation"]),
        ({"cohort": {"min": 11}}, ["cohort", "11 to 100"]),
    ],
)
def test_a_plan_that_cannot_hold_names_the_number_to_change(job: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PlanError) as refused:
        plan_of(10, **job)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(
    "job",
    [
        {"codec": "top-1pct-int8"},
        {"codec": {"bits": 16, "ring_bits": 22}},
        {"threshold": 7},
        {"max_dropout": 0.4},
        {"aggregation": "plain", "min_survivors": 4},
        {"codec": {"ring_bits": 8}, "cohort": {"max": 256}},
    ],
)
def test_a_job_that_cannot_hold_for_one_of_its_cohorts_is_refused_when_it_comes(job: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        check_job(job_from_mapping({"name": "j", "rounds": 1, **job}))


def test_a_ring_that_is_too_small_for_the_cohort_is_refused() -> None:
    with pytest.raises(PlanError, match=r"raise codec\.ring_bits"):
        choose_codec(CodecChoice(ring_bits=8), 300)


@pytest.mark.parametrize(
    "change",
    [
        {"keyserver": AGGREGATOR},
        {"keyserver": ServiceEndpoint("keys", "host:2", AGGREGATOR.certificate_sha256)},
        {"keyserver": ServiceEndpoint(AGGREGATOR.service_id, "host:2", b"x" * 32)},
        {"aggregator": ServiceEndpoint("agg", "host:1", (5).to_bytes(32, "big"))},
        {"threshold": 5, "min_survivors": 5},
        {"min_survivors": 10},
    ],
)
def test_a_plan_made_elsewhere_is_checked_all_the_same(change: dict[str, Any]) -> None:
    plan = plan_of()
    check_plan(plan)
    with pytest.raises(PlanError):
        check_plan(replace(plan, **change))


def test_bytes_up_are_the_vector_and_little_more() -> None:
    plan = plan_of(10, 1_000_000)
    assert upload_bytes(plan) == 3 * 1_000_002
    assert upload_bytes(plan) < bytes_up_per_site(plan) <= 1.1 * 3_000_000 + 20_000
    assert bytes_up_per_site(plan_of(10, 1_000_000, aggregation="plain")) < bytes_up_per_site(plan)


def test_the_codec_of_a_plan_has_its_length() -> None:
    assert codec_of(plan_of()).length == plan_of().length == 102


OTHER: dict[str, Any] = {
    "job_id": JobId("other"),
    "round_id": 4,
    "attempt": 3,
    "aggregation": Aggregation.PLAIN,
    "model_version": 5,
    "model_digest": b"n" * 32,
    "manifest": TensorManifest((TensorSpec("v", "float32", (100,)),)),
    "codec": CodecSpec(2.0, 20, 24),
    "threshold": 6,
    "min_survivors": 8,
    "max_dropout": 0.2,
    "max_corrupt": 0.2,
    "max_weight": 9_999,
    "chunk_bytes": 1 << 17,
    "schedule": PhaseSchedule(signing=PhaseBounds(0.0, 1.0)),
    "aggregator": ServiceEndpoint("agg", "host:9", b"a" * 32),
    "keyserver": ServiceEndpoint("keys", "host:9", b"k" * 32),
    "roster": tuple(RosterEntry(ClientId(f"site-{i:05}"), bytes([i + 1] * 32)) for i in range(10)),
    "training": {"lr": 0.1},
    "graph": SparseGraph(4, Profile.EQUIVOCATION_SAFE, b"g" * 32),
    "paillier": PaillierTerms(b"\x01" * 256, b"s" * 70),
}


# What has to change with it.
ALONG: dict[str, dict[str, Any]] = {
    "aggregation": {"keyserver": None},
    "paillier": {"aggregation": Aggregation.PAILLIER},
}


@pytest.mark.parametrize("name", [field.name for field in fields(RoundPlan) if field.init and field.name != "privacy"])
def test_every_field_of_a_plan_changes_the_session(name: str) -> None:
    plan = plan_of()
    change = {name: OTHER[name]} | ALONG.get(name, {})
    assert replace(plan, **change).session_id != plan.session_id


TERMS = PrivacyTerms(Mechanism.CENTRAL, PrivacyBudget(2.0, 1e-6), 0.5, 1.25, 256, sampling_rate=0.5)
OTHER_TERMS: dict[str, Any] = {
    "mechanism": Mechanism.DISTRIBUTED,
    "budget": PrivacyBudget(2.0, 1e-7),
    "clip": 0.25,
    "noise_multiplier": 1.0,
    "levels": 512,
    "both_servers": True,
    "colluders": 1,
    "sampling_rate": 0.4,
    "exposed": 0.1,
    "expected_sites": 5,
    "quantile": 0.5,
    "steps": 2,
}


@pytest.mark.parametrize("name", [field.name for field in fields(PrivacyTerms)])
def test_every_field_of_the_privacy_terms_changes_the_session(name: str) -> None:
    plan = plan_of()
    base = {"mechanism": Mechanism.DISTRIBUTED} if name == "colluders" else {}
    base |= {"sampling_rate": 1.0} if name in ("colluders", "mechanism") else {}
    private = replace(plan, max_weight=1, privacy=replace(TERMS, **base))
    changed = replace(plan, max_weight=1, privacy=replace(TERMS, **(base | {name: OTHER_TERMS[name]})))
    assert len({plan.session_id, private.session_id, changed.session_id}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"job_id": JobId("")},
        {"job_id": JobId("\ud800")},
        {"round_id": 0},
        {"round_id": 1 << 63},
        {"attempt": 1 << 32},
        {"model_version": -1},
        {"model_digest": b"short"},
        {"threshold": 0},
        {"min_survivors": 11},
        {"max_dropout": float("nan")},
        {"chunk_bytes": 0},
        {"max_weight": 0},
        {"roster": ()},
        {"roster": tuple(reversed(plan_of().roster))},
        {"roster": (plan_of().roster[0],) * 10},
        {"training": {"x": float("nan")}},
        {"training": {"x" * 300: 1}},
        {"training": {str(place): 1 for place in range(300)}},
        {"keyserver": None},
    ],
)
def test_a_plan_with_an_impossible_value_cannot_be_built(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        replace(plan_of(), **change)


def test_entries_and_endpoints_check_themselves() -> None:
    with pytest.raises(PlanError, match="32 bytes"):
        RosterEntry(ClientId("a"), b"x")
    with pytest.raises(PlanError, match="client_id"):
        RosterEntry(ClientId(""), b"x" * 32)
    with pytest.raises(PlanError, match="address"):
        ServiceEndpoint("a", "", b"x" * 32)


LARGE: dict[str, Any] = {"cohort": {"min": 3, "max": 1000}, "max_corrupt": 0.05, "max_weight": 1000}


def sparse_plan(**job: Any) -> RoundPlan:
    return plan_of(1000, commitment=b"g" * 32, **{**LARGE, **job})


def test_a_large_cohort_gets_a_sparse_graph_and_every_survivor_that_the_drop_outs_leave() -> None:
    plan = sparse_plan()
    assert plan.graph is not None
    assert plan.graph.profile is Profile.EQUIVOCATION_SAFE
    assert plan.graph.commitment == b"g" * 32
    assert plan.min_survivors == 700
    assert plan.threshold < plan.graph.degree < 500
    context = plan.session_context()
    assert context.harary is not None
    assert (context.harary.degree, context.harary.commitment) == (plan.graph.degree, b"g" * 32)
    assert bytes_up_per_site(plan) < bytes_up_per_site(plan_of(1000, **LARGE))


def test_a_weaker_profile_needs_fewer_neighbours_and_must_be_asked_for() -> None:
    weak, strong = sparse_plan(profile="honest_but_curious").graph, sparse_plan().graph
    assert weak is not None
    assert strong is not None
    assert weak.degree < strong.degree / 2


@pytest.mark.parametrize(
    "job", [{"threshold": 667}, {"max_corrupt": 0.3}, {"aggregation": "plain"}, {"cohort": {"min": 3, "max": 99}}]
)
def test_a_graph_stays_complete_where_a_sparse_one_is_not_meant_or_saves_too_little(job: dict[str, Any]) -> None:
    size = 99 if "cohort" in job else 1000
    assert plan_of(size, commitment=b"g" * 32, **{**LARGE, **job}).graph is None
    assert plan_of(1000, **LARGE).graph is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"graph": SparseGraph(100, Profile.EQUIVOCATION_SAFE, b"g" * 32)}, "raise the degree"),
        ({"threshold": 100}, "threshold"),
        ({"threshold": 300}, "threshold"),
        ({"min_survivors": 699}, "min_survivors"),
        ({"min_survivors": 701}, "min_survivors"),
        ({"max_corrupt": 0.1}, "raise the degree"),
        ({"max_dropout": 0.35}, "raise the degree"),
    ],
)
def test_a_sparse_plan_that_is_weaker_than_it_says_is_refused(change: dict[str, Any], word: str) -> None:
    plan = sparse_plan()
    check_plan(plan)
    with pytest.raises(PlanError, match=word):
        check_plan(replace(plan, **change))


def test_a_plain_plan_has_no_graph_and_the_numbers_of_a_graph_check_themselves() -> None:
    with pytest.raises(PlanError, match="masked attempt"):
        replace(plan_of(10, aggregation="plain"), graph=SparseGraph(4, Profile.EQUIVOCATION_SAFE, b"g" * 32))
    for degree, commitment in [(3, b"g" * 32), (0, b"g" * 32), (1 << 20, b"g" * 32), (4, b"g" * 31)]:
        with pytest.raises(PlanError):
            SparseGraph(degree, Profile.EQUIVOCATION_SAFE, commitment)


def test_every_number_of_a_graph_changes_the_session() -> None:
    plan = sparse_plan()
    assert plan.graph is not None
    for change in ({"degree": 4}, {"profile": Profile.HONEST_BUT_CURIOUS}, {"commitment": b"h" * 32}):
        assert replace(plan, graph=replace(plan.graph, **change)).session_id != plan.session_id
