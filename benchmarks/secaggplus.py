"""Whole sessions on sparse graphs in one process, by cohort: seconds, degree, and seconds over n log n."""

import time
from math import log2

import numpy as np

from benchmarks.figures import Figure
from fl_core.secagg.degrees import Profile
from fl_core.secagg.profiles import choose_graph, most_dropouts
from fl_core.simulation import stages
from fl_core.simulation.faults import spread_dropouts
from fl_core.simulation.federation import simulate_session

SIZES = (100, 300, 1000, 3000)
LENGTH = 1_000
CORRUPT = 0.01
DROPOUT = 0.3
MICROSECONDS = 1e6


def measure(*, quick: bool = False) -> list[Figure]:
    """For each cohort a session in which 30 % drop out over all phases; its sum is checked."""
    return [figure for size in (SIZES[:1] if quick else SIZES) for figure in measure_cohort(size)]


def measure_cohort(size: int) -> list[Figure]:
    """One session of so many sites: CPU seconds of all parties together, and the same over n log n."""
    graph = choose_graph(size, CORRUPT, DROPOUT, Profile.HONEST_BUT_CURIOUS)
    cohort = stages.make_cohort(
        size,
        threshold=graph.threshold,
        min_survivors=size - most_dropouts(size, DROPOUT),
        length=LENGTH,
        sparse=stages.Sparse(graph.degree, graph.audit_needs),
    )
    seconds = _session(cohort)
    return [
        Figure(f"sparse_session_{size}_sites_30_percent_drop_out", seconds, "s"),
        Figure(f"degree_of_{size}", graph.degree, "neighbours", size - 1),
        Figure(f"time_over_n_log_n_of_{size}", seconds / (size * log2(size)) * MICROSECONDS, "us"),
    ]


def _session(cohort: stages.Cohort) -> float:
    size = cohort.context.size
    # Who drops out has nothing to do with the places on the ring, which nobody knows beforehand.
    schedule = spread_dropouts(range(most_dropouts(size, DROPOUT)))
    began = time.process_time()
    result = simulate_session(
        cohort.context,
        cohort.vectors,
        cohort.entropy,
        schedule=schedule,
        signers=cohort.signers,
        beacon=cohort.beacon,
    )
    seconds = time.process_time() - began
    np.testing.assert_array_equal(result.sum, cohort.sum_of(result.survivors))
    return seconds
