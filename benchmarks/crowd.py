"""One session of 5,000 sites on a sparse graph in one process, in which 30 % drop out; its sum is checked. Minutes."""

from benchmarks.figures import Figure
from benchmarks.secaggplus import measure_cohort

SIZE = 5000
SMALL = 150


def measure(*, quick: bool = False) -> list[Figure]:
    """The figures of `secaggplus` for one large cohort."""
    return measure_cohort(SMALL if quick else SIZE)
