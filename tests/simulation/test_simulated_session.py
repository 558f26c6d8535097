"""Whole sessions: under any drop-out schedule the exact sum or a clean abort, never a wrong sum."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import NotEnough, PlanError, SessionFrozen
from fl_core.simulation import stages
from fl_core.simulation.faults import MOMENTS, DropoutSchedule, Step, Vanish, spread_dropouts
from fl_core.simulation.federation import PHASE_S, SessionResult, simulate_session
from fl_core.simulation.network import Envelope


def simulate(cohort: stages.Cohort, schedule: DropoutSchedule, seen: list[Envelope] | None = None) -> SessionResult:
    return simulate_session(
        cohort.context,
        cohort.vectors,
        cohort.entropy,
        schedule=schedule,
        signers=cohort.signers,
        tap=None if seen is None else seen.append,
    )


def test_two_hundred_sites_with_sixty_dropping_out_in_all_phases_give_the_exact_sum() -> None:
    cohort = stages.make_cohort(200, length=10_000)
    began = time.process_time()
    result = simulate(cohort, spread_dropouts(range(0, 180, 3)))
    assert np.array_equal(result.sum, cohort.sum_of(result.survivors))
    assert set(result.dropouts.values()) == set(Step)
    assert len(result.dropouts) == 54
    assert len(result.survivors) == 170
    assert time.process_time() - began < 60


schedules = st.builds(
    DropoutSchedule,
    vanish=st.dictionaries(st.integers(0, 8), st.sampled_from(MOMENTS), max_size=5),
    delay_s=st.dictionaries(
        st.tuples(st.integers(0, 8), st.sampled_from(Step)), st.sampled_from([1.0, 59.0, 61.0, 1000.0]), max_size=3
    ),
)


@settings(max_examples=120, deadline=None)
@given(schedule=schedules, ring_bits=st.sampled_from([5, 16, 32]))
def test_any_schedule_gives_the_exact_sum_or_a_clean_abort(schedule: DropoutSchedule, ring_bits: int) -> None:
    cohort = stages.make_cohort(9, ring_bits=ring_bits)
    seen: list[Envelope] = []
    result = simulate(cohort, schedule, seen)
    check_one_kind_of_share(seen)
    if result.aggregate is None:
        assert isinstance(result.failure, NotEnough)
        assert len(result.dropouts) > 9 - cohort.context.threshold
        return
    assert result.failure is None
    assert len(result.survivors) >= cohort.context.min_survivors
    assert np.array_equal(result.sum, cohort.sum_of(result.survivors))


def check_one_kind_of_share(seen: list[Envelope]) -> None:
    for envelope in seen:
        if envelope.step is Step.REVEAL:
            seeds = {share.owner for share in envelope.message.self_seed_shares}  # type: ignore[union-attr]
            keys = {share.owner for share in envelope.message.mask_key_shares}  # type: ignore[union-attr]
            assert not seeds & keys


@pytest.mark.parametrize("moment", MOMENTS)
def test_as_many_as_the_threshold_allows_may_vanish_at_any_one_moment(moment: Vanish) -> None:
    cohort = stages.make_cohort(10)
    result = simulate(cohort, DropoutSchedule(dict.fromkeys((1, 5, 9), moment)))
    assert np.array_equal(result.sum, cohort.sum_of(result.survivors))
    uploaded = moment.sends(Step.UPLOAD)
    assert len(result.survivors) == (10 if uploaded else 7)


@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if not moment.sends(Step.REVEAL)])
def test_one_more_aborts_without_a_sum(moment: Vanish) -> None:
    result = simulate(stages.make_cohort(10), DropoutSchedule(dict.fromkeys((1, 5, 8, 9), moment)))
    assert result.aggregate is None
    with pytest.raises(NotEnough, match=">= 7, got 6"):
        _ = result.sum
    with pytest.raises(NotEnough):
        _ = result.survivors


@pytest.mark.parametrize("step", Step)
def test_a_late_message_is_refused_and_changes_nothing(step: Step) -> None:
    cohort = stages.make_cohort(5)
    result = simulate(cohort, DropoutSchedule(delay_s={(2, step): PHASE_S}))
    assert [(index, late) for index, late, _ in result.refused] == [(2, step)]
    assert isinstance(result.refused[0][2], SessionFrozen)
    assert np.array_equal(result.sum, cohort.sum_of(result.survivors))
    assert result.dropouts == {2: step}


def test_a_message_that_is_slow_but_in_time_is_waited_for() -> None:
    result = simulate(stages.make_cohort(5), DropoutSchedule(delay_s={(2, Step.UPLOAD): PHASE_S - 1}))
    assert result.survivors == tuple(range(5))
    assert result.seconds == pytest.approx(PHASE_S - 1 + 5 * 0.05)


def test_without_faults_everybody_survives_in_five_messages() -> None:
    cohort = stages.make_cohort(6)
    seen: list[Envelope] = []
    result = simulate(cohort, DropoutSchedule(), seen)
    assert result.survivors == tuple(range(6))
    assert [envelope.step for envelope in seen] == [step for step in Step for _ in range(6)]
    assert not result.dropouts
    assert not result.refused


def test_a_session_needs_a_vector_and_an_identity_for_each_site() -> None:
    cohort = stages.make_cohort(5)
    with pytest.raises(PlanError, match="4 vectors and 5 identities"):
        simulate(replace(cohort, vectors=cohort.vectors[:4]), DropoutSchedule())
