"""A transcript held against its plan: of a sparse graph, everything that makes its masks come off is recomputed."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.rounds.plan import (
    Aggregation,
    ClientId,
    JobId,
    PhaseSchedule,
    RosterEntry,
    RoundPlan,
    ServiceEndpoint,
    SparseGraph,
)
from fl_core.secagg.degrees import Profile
from fl_core.secagg.graph import HararyGraph
from fl_core.secagg.profiles import choose_graph
from fl_core.secagg.transcript import BadTranscript, Part, Transcript, beacon_body, sign_part
from fl_core.simulation import stages
from fl_core.simulation.entropy import seeded_entropy
from fl_core.simulation.identity import simulated_signers
from fl_core.wire.convert import plan_to_proto
from fl_core.wire.transcripts import check_plan

SIZE, CORRUPT, DROPOUT = 100, 0.01, 0.3
GONE = (3, 30, 77)
Bodies = dict[str, dict[str, Any]]


@cache
def signer() -> Any:
    return simulated_signers(1, seeded_entropy(1))[0]


@cache
def session() -> tuple[RoundPlan, stages.Signed, Any]:
    """A real session of a hundred sites on the graph that a plan has; three drop out before they upload."""
    chosen = choose_graph(SIZE, CORRUPT, DROPOUT, Profile.HONEST_BUT_CURIOUS)
    cohort = stages.make_cohort(
        SIZE,
        threshold=chosen.threshold,
        min_survivors=70,
        sparse=stages.Sparse(chosen.degree, chosen.audit_needs),
    )
    assert cohort.beacon is not None
    plan = RoundPlan(
        job_id=JobId("job"),
        round_id=1,
        attempt=1,
        aggregation=Aggregation.SECAGG,
        model_version=1,
        model_digest=bytes(32),
        manifest=TensorManifest((TensorSpec("w", "float32", (4,)),)),
        codec=CodecSpec(clip=1.0, bits=16, ring_bits=32),
        threshold=chosen.threshold,
        min_survivors=70,
        max_dropout=DROPOUT,
        max_corrupt=CORRUPT,
        max_weight=100,
        chunk_bytes=1024,
        schedule=PhaseSchedule(),
        aggregator=ServiceEndpoint("aggregator", "127.0.0.1:1", b"a" * 32),
        keyserver=ServiceEndpoint("keyserver", "127.0.0.1:2", b"k" * 32),
        roster=tuple(RosterEntry(ClientId(f"site-{i:03}"), bytes([i]) * 32) for i in range(SIZE)),
        graph=SparseGraph(chosen.degree, Profile.HONEST_BUT_CURIOUS, cohort.beacon.commitment),
    )
    advertised = stages.advertise(replace(cohort, context=plan.session_context()))
    assert advertised.directory.excerpt is not None
    beacon = advertised.directory.excerpt.beacon
    uploaded = stages.upload(stages.share(advertised), [index for index in range(SIZE) if index not in GONE])
    return plan, stages.sign(uploaded), beacon


def directory() -> Any:
    _, signed, _ = session()
    return signed.sites[0].directory


def bodies() -> Bodies:
    plan, signed, beacon = session()
    survivors = list(signed.sites)
    return {
        "opened": {
            "session": plan.binding.hex(),
            "plan": plan_to_proto(plan).SerializeToString(deterministic=True).hex(),
            "aggregation": "secagg",
            "model_version": 1,
            "threshold": plan.threshold,
            "neighbours": plan.graph.degree if plan.graph else 0,
            "min_survivors": 70,
            "aggregator": (b"a" * 32).hex(),
            "keyserver": (b"k" * 32).hex(),
        },
        "exchanged": {
            "directory": directory().digest.hex(),
            "advertised": list(range(SIZE)),
            "shared": list(range(SIZE)),
            "beacon": beacon_body(beacon),
        },
        "frozen": {"survivors": survivors},
        "unmasked": {"signed": survivors, "revealed": survivors},
        "closed": {"outcome": "committed"},
    }


def transcript(stated: Bodies) -> Transcript:
    parts: list[Part] = [sign_part(kind, body, signer()) for kind, body in stated.items()]
    return Transcript(tuple(parts))


def test_an_honest_session_follows_from_its_plan() -> None:
    plan, _, _ = session()
    assert check_plan(transcript(bodies())).binding == plan.binding


def holders_of_site_0() -> set[int]:
    return set(directory().holders(0))


def without(indices: list[int], gone: set[int]) -> list[int]:
    return [index for index in indices if index not in gone]


def two_holders_left(said: Bodies) -> None:
    said["unmasked"]["revealed"] = without(said["unmasked"]["revealed"], set(sorted(holders_of_site_0())[2:]))


def no_witness(said: Bodies) -> None:
    said["unmasked"]["signed"] = without(said["unmasked"]["signed"], set(directory().graph.witnesses))


def a_ring_that_was_cut(said: Bodies) -> None:
    graph = directory().graph
    assert isinstance(graph, HararyGraph)
    window = graph.degree // 2
    gone = {*graph.order[:window], *graph.order[40 : 40 + window]}
    said["frozen"]["survivors"] = without(list(range(SIZE)), gone)


LIES: dict[str, tuple[Callable[[Bodies], object], str]] = {
    "too few holders of one site": (two_holders_left, "hold shares of site 0"),
    "no witness": (no_witness, "too few witnesses"),
    "a ring that was cut": (a_ring_that_was_cut, "cut the graph"),
    "another beacon": (
        lambda said: said["exchanged"]["beacon"].update(value=bytes(32).hex()),
        "not the one of the plan",
    ),
    "no beacon": (lambda said: said["exchanged"].update(beacon=None), "beacon"),
    "another directory": (lambda said: said["exchanged"].update(directory=bytes(32).hex()), "did not sign"),
    "a smaller U1": (lambda said: said["exchanged"].update(advertised=[0, 1, 2]), "too few members"),
    "a lower threshold": (lambda said: said["opened"].update(threshold=1), "threshold is not that of the plan"),
    "a complete graph": (lambda said: said["opened"].update(neighbours=0), "neighbours is not that of the plan"),
    "another session": (lambda said: said["opened"].update(session=bytes(32).hex()), "session is not that of the plan"),
    "no plan": (lambda said: said["opened"].pop("plan"), "does not follow"),
    "half a plan": (lambda said: said["opened"].update(plan=said["opened"]["plan"][:200]), "does not follow"),
    "a plan of text": (lambda said: said["opened"].update(plan="plan"), "does not follow"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_does_not_follow_from_the_plan_is_found_out(name: str) -> None:
    lie, reason = LIES[name]
    stated = bodies()
    lie(stated)
    with pytest.raises(BadTranscript, match=reason) as refused:
        check_plan(transcript(stated))
    assert refused.value.expected is not None
