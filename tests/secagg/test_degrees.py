"""Degrees and thresholds of sparse graphs against a table made by another program, and against drawn graphs."""

import re
import time
from collections.abc import Iterator
from fractions import Fraction
from math import ceil, comb
from pathlib import Path

import numpy as np
import pytest

from fl_core.errors import PlanError
from fl_core.secagg.degrees import (
    Assumptions,
    Profile,
    audit_need,
    audit_needs,
    audit_passes,
    smallest_degree,
    stays_connected,
    thresholds_at,
)
from fl_core.secagg.profiles import GraphKind, check_sparse_graph, choose_graph
from fl_core.secagg.tails import Draw, log_falling_ratio

TABLE = Path(__file__).parent.parent / "vectors" / "secaggplus_table.txt"
PROFILES = {"semihonest": Profile.HONEST_BUT_CURIOUS, "semimal": Profile.EQUIVOCATION_SAFE}
Row = tuple[Assumptions, int, int, int, str]


def rows() -> Iterator[Row]:
    head = re.compile(r"(\w+) gamma=([\d.]+) delta=([\d.]+)")
    body = re.compile(r"\s+n=\s*(\d+) k=\s*(\d+) t=\[(\d+)\.\.(\d+)\] (\w+)")
    for line in TABLE.read_text().splitlines()[1:]:
        if found := head.match(line):
            profile, corrupt, dropped = PROFILES[found[1]], Fraction(found[2]), Fraction(found[3])
        elif found := body.match(line):
            size = int(found[1])
            cohort = Assumptions(size, size, ceil(corrupt * size), ceil(dropped * size), profile)
            yield cohort, int(found[2]), int(found[3]), int(found[4]), found[5]


def test_the_published_conditions_give_all_hundred_rows_of_the_table() -> None:
    began, count = time.process_time(), 0
    for cohort, degree, low, high, kind in rows():
        count += 1
        found = smallest_degree(cohort, audited=False)
        if kind != "sparse":
            assert found is None, cohort
            continue
        assert found == degree, cohort
        thresholds = thresholds_at(cohort, degree)
        assert (thresholds.smallest, thresholds.largest) == (low, high), cohort
    assert count == 100
    assert time.process_time() - began < 5


def test_the_search_skips_no_degree_that_holds() -> None:
    for size, corrupt, dropped, profile in [
        (60, 3, 18, Profile.HONEST_BUT_CURIOUS),
        (200, 20, 60, Profile.HONEST_BUT_CURIOUS),
        (200, 10, 20, Profile.EQUIVOCATION_SAFE),
        (500, 25, 150, Profile.EQUIVOCATION_SAFE),
    ]:
        cohort = Assumptions(size, size - dropped, corrupt, dropped, profile)
        holding = [
            degree
            for degree in range(2, cohort.smallest - 1, 2)
            if thresholds_at(cohort, degree).missing <= 0
            and stays_connected(cohort, degree)
            and audit_needs(cohort, degree) is not None
        ]
        assert smallest_degree(cohort) == holding[0]


def test_tails_are_those_of_exact_fractions() -> None:
    population, marked, draws = 60, 17, 20
    exact = {
        count: Fraction(comb(marked, count) * comb(population - marked, draws - count), comb(population, draws))
        for count in range(18)
    }
    draw = Draw(population, marked, draws)
    for count in range(18):
        tail = sum(chance for hit, chance in exact.items() if hit >= count)
        assert draw.at_least(count) == pytest.approx(float(tail), rel=1e-10)
    limit = 1e-6
    rare = next(count for count in range(19) if sum(p for hit, p in exact.items() if hit >= count) <= limit)
    assert draw.rarely_reached(limit) == rare
    sure = max(count for count in range(19) if sum(p for hit, p in exact.items() if hit < count) <= limit)
    assert draw.nearly_always_reached(limit) == sure
    ratio = Fraction(20 * 19 * 18, 60 * 59 * 58)
    assert np.exp(log_falling_ratio(20, 60, 3)) == pytest.approx(float(ratio), rel=1e-10)
    assert log_falling_ratio(2, 60, 3) == -np.inf


def test_nobody_marked_or_everybody_marked_leaves_no_tail() -> None:
    assert Draw(50, 0, 10).rarely_reached(1e-12) == 1
    assert Draw(50, 50, 10).nearly_always_reached(1e-12) == 10


def test_the_bound_of_the_audit_is_what_drawn_drop_outs_do() -> None:
    """With eta = 2 the bound on refusals is 1/4; 4,000 draws, six standard deviations are 4.2 per cent."""
    cohort = Assumptions(100, 100, 5, 30, Profile.HONEST_BUT_CURIOUS, eta=2)
    degree = next(degree for degree in range(2, 98, 2) if audit_passes(cohort, degree))
    window, need = degree // 2, audit_need(cohort, degree)
    generator = np.random.default_rng(5)
    refused = 0
    for _ in range(4000):
        gone = np.zeros(100, int)
        gone[generator.choice(100, 30, replace=False)] = 1
        sums = np.convolve(np.concatenate([gone, gone[: window - 1]]), np.ones(window, int), "valid")
        bad = np.flatnonzero(sums >= need)
        distances = (bad[None, :] - bad[:, None]) % 100
        refused += bool(((distances >= window) & (distances <= 100 - window)).any())
    assert 0 < refused / 4000 <= 0.25 + 0.042


def test_a_window_that_corrupt_sites_fill_alone_cannot_be_audited() -> None:
    assert not audit_passes(Assumptions(1000, 1000, 300, 10, Profile.HONEST_BUT_CURIOUS), 10)


@pytest.mark.parametrize("size", [3, 10, 99])
def test_a_small_cohort_has_a_complete_graph(size: int) -> None:
    parameters = choose_graph(size, 0.05, 0.3)
    assert (parameters.kind, parameters.degree, parameters.audit_needs) == (GraphKind.COMPLETE, size - 1, ())


def test_a_sparse_graph_that_does_not_halve_the_work_is_not_used() -> None:
    assert choose_graph(1000, 0.3, 0.3).kind is GraphKind.COMPLETE
    assert choose_graph(100, 0.05, 0.3).kind is GraphKind.COMPLETE
    assert choose_graph(100, 0.05, 0.3, Profile.HONEST_BUT_CURIOUS).kind is GraphKind.HARARY


@pytest.mark.parametrize("size", [300, 1000, 5000, 10_000])
@pytest.mark.parametrize("profile", Profile)
def test_a_chosen_graph_holds_and_its_degree_grows_slowly(size: int, profile: Profile) -> None:
    parameters = choose_graph(size, 0.05, 0.2, profile)
    assert parameters.kind is GraphKind.HARARY
    needs = check_sparse_graph(size, parameters.degree, parameters.threshold, 0.05, 0.2, profile)
    assert needs == parameters.audit_needs
    assert len(needs) == size // 5 + 1
    assert min(needs) >= 1
    assert parameters.degree < 14 * np.log2(size) * (1 if profile is Profile.HONEST_BUT_CURIOUS else 4)


def test_corrupt_sites_weigh_more_in_the_smallest_u1() -> None:
    """The server may close U1 when a third is missing; the corrupt sites are all in it."""
    whole = Assumptions(1000, 1000, 50, 300, Profile.EQUIVOCATION_SAFE)
    early = Assumptions(1000, 700, 50, 300, Profile.EQUIVOCATION_SAFE)
    degree = smallest_degree(whole) or 0
    assert thresholds_at(early, degree).smallest > thresholds_at(whole, degree).smallest
    chosen = choose_graph(1000, 0.05, 0.3).degree
    assert chosen == smallest_degree(early)
    assert chosen > degree > 0


def test_who_is_missing_when_u1_is_frozen_cannot_drop_out_of_it_any_more() -> None:
    """So the audited graph of honest but curious servers is the one of a whole U1, and only its needs follow U1."""
    chosen = choose_graph(1000, 0.05, 0.3, Profile.HONEST_BUT_CURIOUS)
    whole = Assumptions(1000, 1000, 50, 300, Profile.HONEST_BUT_CURIOUS)
    assert chosen.degree == smallest_degree(whole) == 114
    assert chosen.audit_needs[0] > chosen.audit_needs[-1]


@pytest.mark.parametrize("absent", [0, 7, 60, 150, 300])
def test_the_audit_holds_for_the_u1_that_there_is(absent: int) -> None:
    """In the ring of a U1 with corrupt sites all in it, a gap has as many missing members as the audit asks for."""
    chosen = choose_graph(1000, 0.05, 0.3, Profile.HONEST_BUT_CURIOUS)
    here = Assumptions(1000 - absent, 1000 - absent, 50, 300 - absent, Profile.HONEST_BUT_CURIOUS)
    assert chosen.audit_needs[absent] <= audit_need(here, chosen.degree)
    assert chosen.audit_needs[absent] >= audit_need(here, chosen.degree) - 1
    assert audit_passes(here, chosen.degree)
    assert stays_connected(here, chosen.degree)
    thresholds = thresholds_at(here, chosen.degree)
    assert thresholds.smallest <= chosen.threshold <= thresholds.largest


def test_a_proposed_graph_that_is_weaker_is_refused_and_the_number_is_named() -> None:
    chosen = choose_graph(1000, 0.05, 0.3)
    check_sparse_graph(1000, chosen.degree, chosen.threshold, 0.05, 0.3, Profile.EQUIVOCATION_SAFE)
    for degree, threshold, text in [
        (chosen.degree - 2, chosen.threshold, f"raise the degree to {chosen.degree}"),
        (chosen.degree, chosen.thresholds.smallest - 1, "change threshold"),
        (chosen.degree, chosen.thresholds.largest + 1, "change threshold"),
        (chosen.degree - 1, chosen.threshold, "even"),
        (0, 0, "even, 2 to 698"),
        (700, chosen.threshold, "even, 2 to 698"),
    ]:
        with pytest.raises(PlanError, match=text):
            check_sparse_graph(1000, degree, threshold, 0.05, 0.3, Profile.EQUIVOCATION_SAFE)


def test_what_cannot_hold_is_refused() -> None:
    with pytest.raises(PlanError, match="lower max_corrupt or max_dropout"):
        choose_graph(1000, 0.6, 0.5)
    with pytest.raises(PlanError, match="lower max_dropout or max_corrupt"):
        choose_graph(1000, 0.4, 0.5)


def test_an_honest_but_curious_graph_is_weaker_and_known_to_be() -> None:
    weak = choose_graph(1000, 0.05, 0.3, Profile.HONEST_BUT_CURIOUS)
    assert Profile.HONEST_BUT_CURIOUS.strength < Profile.EQUIVOCATION_SAFE.strength
    with pytest.raises(PlanError, match="raise the degree"):
        check_sparse_graph(1000, weak.degree, weak.threshold, 0.05, 0.3, Profile.EQUIVOCATION_SAFE)
