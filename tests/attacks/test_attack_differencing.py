"""Attack: the coordinator has almost the same cohort summed twice and subtracts the sums (So et al. 2021).

What stops it: the site remembers, through restarts, each set of survivors that it signed in any job, and signs no other
one that differs from it by fewer sites than its owner allows.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk import SitePolicy
from client_sdk.journal import SiteJournal
from client_sdk.policy import check_survivors
from fl_core.errors import PolicyRefused
from fl_core.rounds.cohort_rules import check_difference
from fl_core.rounds.plan import JobId

SITES = [f"site-{number}" for number in range(8)]
SETS = st.lists(st.sets(st.sampled_from(SITES), min_size=3), min_size=1, max_size=40)


@given(offered=SETS, smallest=st.integers(1, 6))
def test_a_greedy_coordinator_never_gets_two_sums_that_differ_by_few_sites(
    offered: list[set[str]], smallest: int
) -> None:
    signed: list[frozenset[str]] = []
    for survivors in offered:
        try:
            check_difference(survivors, signed, smallest)
        except PolicyRefused:
            continue
        signed.append(frozenset(survivors))
    assert all(one == other or len(one ^ other) >= smallest for one, other in combinations(signed, 2))


def test_without_the_rule_two_sums_give_one_site_away() -> None:
    updates = {name: 10 + number for number, name in enumerate(SITES)}
    first, second = SITES, SITES[1:]
    check_difference(second, [first], smallest=1)
    assert sum(updates[name] for name in first) - sum(updates[name] for name in second) == updates["site-0"]
    with pytest.raises(PolicyRefused, match="a difference of 1"):
        check_difference(second, [first], smallest=2)


def test_the_same_survivors_may_be_summed_again() -> None:
    check_difference(SITES, [SITES, SITES], smallest=8)


def test_the_log_of_signed_survivors_outlives_a_restart(tmp_path: Path, plan_of: Any) -> None:
    plan = plan_of(*SITES)
    policy = SitePolicy(min_cohort_difference=3)
    with SiteJournal(tmp_path) as journal:
        names = check_survivors(plan, 0, range(8), policy, journal.survivors_signed())
        journal.record_survivors(plan.job_id, names)
        size = (tmp_path / "journal.jsonl").stat().st_size
        journal.record_survivors(plan.job_id, names)
        assert (tmp_path / "journal.jsonl").stat().st_size == size
    with SiteJournal(tmp_path) as journal:
        assert journal.survivors_signed() == {frozenset(SITES)}
        with pytest.raises(PolicyRefused, match="almost those of an earlier sum"):
            check_survivors(plan, 0, range(7), policy, journal.survivors_signed())
        check_survivors(plan, 0, range(5), policy, journal.survivors_signed())


def test_the_same_model_under_the_name_of_another_job_gives_no_second_sum(tmp_path: Path, plan_of: Any) -> None:
    """An operator submits a job twice: sites train the same model on the same data, and one of them is left out."""
    plan = plan_of(*SITES)
    again = replace(plan, job_id=JobId("twin"))
    policy = SitePolicy(min_cohort_difference=3)
    with SiteJournal(tmp_path) as journal:
        journal.record_survivors(plan.job_id, check_survivors(plan, 0, range(8), policy, journal.survivors_signed()))
        with pytest.raises(PolicyRefused, match="earlier sum"):
            check_survivors(again, 0, range(7), policy, journal.survivors_signed())
        check_survivors(again, 0, range(8), policy, journal.survivors_signed())
