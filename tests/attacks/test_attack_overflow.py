"""Attack: a plan in whose ring the sum can wrap around, or an aggregator that adds a vector twice or leaves one out.

What stops it: the plan is refused by arithmetic, and one coordinate counts the vectors in the sum.
"""

from dataclasses import replace

import numpy as np
import pytest

from fl_core.codec.spec import CodecSpec
from fl_core.errors import BadAggregate, PlanError
from fl_core.secagg.masked_sum import Aggregate
from fl_core.simulation import stages

BITS, RING_BITS, LARGEST = 4, 8, 17
"""17 * (2**4 - 1) = 255 is the last sum below 2**8."""


def total(size: int) -> np.ndarray:
    """The unmasked sum of `size` sites that all send the largest value."""
    cohort = stages.make_cohort(size, ring_bits=RING_BITS)
    cohort = replace(cohort, vectors=[np.full(6, (1 << BITS) - 1, np.uint8)] * size)
    return stages.reveal(stages.sign(stages.upload(stages.share(stages.advertise(cohort)))))


def test_the_largest_cohort_that_fits_sums_the_largest_values_exactly() -> None:
    CodecSpec(1.0, BITS, RING_BITS).check_cohort(LARGEST)
    assert total(LARGEST).tolist() == [LARGEST * ((1 << BITS) - 1)] * 6


def test_one_site_more_is_refused_by_the_plan() -> None:
    with pytest.raises(PlanError, match="can overflow"):
        CodecSpec(1.0, BITS, RING_BITS).check_cohort(LARGEST + 1)


def test_without_the_check_one_site_more_wraps_around() -> None:
    assert total(LARGEST + 1).tolist() == [(LARGEST + 1) * ((1 << BITS) - 1) - (1 << RING_BITS)] * 6


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [1, 1], [1, 1, 0], [1, 1, 2]])
def test_a_vector_too_many_or_too_few_is_noticed_by_the_count(counts: list[int]) -> None:
    aggregate = Aggregate(np.array([100, sum(counts)], np.uint32), survivors=(0, 1, 2))
    with pytest.raises(BadAggregate, match="a count of 3"):
        aggregate.check_count(1)
