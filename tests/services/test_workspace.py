"""One vector for the uploads of all sessions."""

import numpy as np
import pytest

from services.aggregator.workspace import Workspace


@pytest.mark.parametrize(("ring_bits", "lane"), [(8, np.uint8), (16, np.uint16), (23, np.uint32)])
def test_the_memory_is_taken_once_and_is_in_the_lane_of_the_ring(ring_bits: int, lane: type) -> None:
    workspace = Workspace()
    first = workspace.vector(1000, ring_bits)
    assert (len(first), first.dtype) == (1000, lane)
    assert workspace.vector(1000, ring_bits) is first


def test_a_session_of_another_form_gets_a_vector_that_fits() -> None:
    workspace = Workspace()
    for length, ring_bits in ((1000, 23), (999, 23), (999, 16), (1000, 23)):
        vector = workspace.vector(length, ring_bits)
        assert (len(vector), vector.dtype.itemsize) == (length, 4 if ring_bits == 23 else 2)
