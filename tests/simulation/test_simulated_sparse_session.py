"""Whole sessions on a sparse graph: under any drop-out schedule the exact sum or a clean abort, never a wrong sum."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import NotEnough, PlanError
from fl_core.secagg.degrees import Profile
from fl_core.secagg.profiles import choose_graph, most_dropouts
from fl_core.simulation import stages
from fl_core.simulation.faults import MOMENTS, NO_FAULTS, DropoutSchedule, Step, spread_dropouts
from fl_core.simulation.federation import SessionResult, simulate_session
from fl_core.simulation.network import Envelope

SIZE = 14


def simulate(cohort: stages.Cohort, schedule: DropoutSchedule, seen: list[Envelope] | None = None) -> SessionResult:
    return simulate_session(
        cohort.context,
        cohort.vectors,
        cohort.entropy,
        schedule=schedule,
        signers=cohort.signers,
        beacon=cohort.beacon,
        tap=None if seen is None else seen.append,
    )


def sparse_cohort(size: int, corrupt: float, dropout: float, seed: int = 1, length: int = 50) -> stages.Cohort:
    """A cohort with the graph that the planner would choose."""
    graph = choose_graph(size, corrupt, dropout, Profile.HONEST_BUT_CURIOUS)
    return stages.make_cohort(
        size,
        seed=seed,
        threshold=graph.threshold,
        min_survivors=size - most_dropouts(size, dropout),
        length=length,
        sparse=stages.Sparse(graph.degree, graph.audit_needs),
    )


schedules = st.builds(
    DropoutSchedule,
    vanish=st.dictionaries(st.integers(0, SIZE - 1), st.sampled_from(MOMENTS), max_size=6),
    delay_s=st.dictionaries(
        st.tuples(st.integers(0, SIZE - 1), st.sampled_from(Step)), st.sampled_from([59.0, 61.0]), max_size=2
    ),
)


@settings(max_examples=120, deadline=None)
@given(schedule=schedules, seed=st.integers(1, 8))
def test_any_schedule_gives_the_exact_sum_or_a_clean_abort(schedule: DropoutSchedule, seed: int) -> None:
    cohort = stages.make_cohort(SIZE, seed=seed, threshold=3, min_survivors=9, sparse=stages.Sparse(6, (3,)))
    seen: list[Envelope] = []
    result = simulate(cohort, schedule, seen)
    for envelope in seen:
        if envelope.step is Step.REVEAL:
            seeds = {share.owner for share in envelope.message.self_seed_shares}  # type: ignore[union-attr]
            keys = {share.owner for share in envelope.message.mask_key_shares}  # type: ignore[union-attr]
            assert not seeds & keys
    if result.aggregate is None:
        assert isinstance(result.failure, NotEnough)
        assert result.dropouts
        return
    assert len(result.survivors) >= 9
    assert np.array_equal(result.sum, cohort.sum_of(result.survivors))


def test_nobody_holds_both_kinds_of_share_of_anybody() -> None:
    cohort = stages.make_cohort(SIZE, threshold=3, min_survivors=9, sparse=stages.Sparse(6, (3,)))
    seen: list[Envelope] = []
    simulate(cohort, spread_dropouts([1, 4, 8]), seen)
    kinds: dict[int, set[str]] = {}
    for envelope in seen:
        if envelope.step is Step.REVEAL:
            for kind in ("self_seed_shares", "mask_key_shares"):
                for share in getattr(envelope.message, kind):
                    kinds.setdefault(share.owner, set()).add(kind)
    assert kinds
    assert all(len(revealed) == 1 for revealed in kinds.values())


@pytest.mark.parametrize("seed", [1, 2])
def test_three_hundred_sites_with_thirty_per_cent_dropping_out_in_all_phases_give_the_exact_sum(seed: int) -> None:
    cohort = sparse_cohort(300, 0.02, 0.3, seed)
    gone = random.Random(seed).sample(range(300), 90)
    result = simulate(cohort, spread_dropouts(gone))
    assert np.array_equal(result.sum, cohort.sum_of(result.survivors))
    assert set(result.dropouts.values()) == set(Step)
    assert not result.stopped


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_sites_with_thirty_per_cent_dropping_out_give_the_exact_sum() -> None:
    cohort = sparse_cohort(1000, 0.01, 0.3)
    gone = random.Random(3).sample(range(1000), 300)
    result = simulate(cohort, spread_dropouts(gone))
    assert np.array_equal(result.sum, cohort.sum_of(result.survivors))
    assert not result.stopped


def test_a_session_with_a_sparse_graph_needs_its_beacon() -> None:
    cohort = stages.make_cohort(SIZE, threshold=3, min_survivors=9, sparse=stages.Sparse(6, (3,)))
    with pytest.raises(PlanError, match="beacon"):
        simulate_session(cohort.context, cohort.vectors, cohort.entropy, signers=cohort.signers, schedule=NO_FAULTS)
