"""The aggregator: what gets into the sum, and what never does."""

import numpy as np
import pytest

from fl_core.errors import BadAggregate, LocalProtocolError, NotEnough, RemoteProtocolError, SessionFrozen
from fl_core.secagg.masked_sum import Aggregate, CollectingMaskedInputs
from fl_core.secagg.messages import MaskedInput, SurvivorSet
from fl_core.simulation import stages

CONTEXT = stages.make_cohort(5, threshold=3, ring_bits=20, length=4).context


def vector(value: int) -> MaskedInput:
    return MaskedInput(value, np.full(4, value, np.uint32))


def filled(*indices: int) -> CollectingMaskedInputs:
    server = CollectingMaskedInputs(CONTEXT)
    for index in indices:
        server.add(vector(index))
    return server


def unmasked(server: CollectingMaskedInputs, eligible: range = range(5)) -> Aggregate:
    return server.freeze(eligible)[0].step(np.zeros(4, np.uint32))


def test_the_sum_is_that_of_what_was_added() -> None:
    aggregate = unmasked(filled(4, 1, 3))
    assert aggregate.sum.tolist() == [8] * 4
    assert aggregate.survivors == (1, 3, 4)


def test_the_sum_and_the_mask_wrap_around_in_the_ring() -> None:
    server = CollectingMaskedInputs(CONTEXT)
    for index in range(3):
        server.add(MaskedInput(index, np.full(4, (1 << 20) - 1, np.uint32)))
    aggregate = server.freeze(range(5))[0].step(np.full(4, (1 << 20) - 2, np.uint32))
    assert aggregate.sum.tolist() == [(1 << 20) - 1] * 4


def test_a_second_vector_of_one_site_is_refused_and_changes_nothing() -> None:
    server = filled(1, 3, 4)
    with pytest.raises(RemoteProtocolError, match="added before"):
        server.add(vector(3))
    assert unmasked(server).sum.tolist() == [8] * 4


def test_a_late_masked_input_is_refused_and_changes_nothing() -> None:
    server = filled(1, 3, 4)
    awaiting, survivor_set = server.freeze(range(5))
    with pytest.raises(SessionFrozen, match="too late"):
        server.add(vector(2))
    assert survivor_set == SurvivorSet((1, 3, 4))
    assert awaiting.step(np.zeros(4, np.uint32)).sum.tolist() == [8] * 4


@pytest.mark.parametrize(
    "masked",
    [
        MaskedInput(5, np.zeros(4, np.uint32)),
        MaskedInput(-1, np.zeros(4, np.uint32)),
        MaskedInput(0, np.zeros(5, np.uint32)),
        MaskedInput(0, np.zeros(4, np.uint64)),
        MaskedInput(0, np.full(4, 1 << 20, np.uint32)),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_and_changes_nothing(masked: MaskedInput) -> None:
    server = filled(1, 3, 4)
    with pytest.raises(RemoteProtocolError):
        server.add(masked)
    assert server.received == {1, 3, 4}
    assert unmasked(server).sum.tolist() == [8] * 4


def test_a_vector_of_a_site_outside_of_u2_spoils_the_sum_loudly() -> None:
    with pytest.raises(BadAggregate, match=r"got \[4\]"):
        filled(1, 2, 3, 4).freeze(range(4))


def test_too_few_vectors_keep_the_phase_open() -> None:
    server = filled(1, 3)
    with pytest.raises(NotEnough, match=">= 3, got 2"):
        server.freeze(range(5))
    server.add(vector(4))
    server.freeze(range(5))
    with pytest.raises(LocalProtocolError, match="stepped twice"):
        server.freeze(range(5))


def test_a_mask_that_does_not_fit_is_refused_and_the_right_one_is_taken_once() -> None:
    awaiting, _ = filled(1, 3, 4).freeze(range(5))
    for bent in (np.zeros(3, np.uint32), np.zeros(4, np.uint8), np.full(4, 1 << 20, np.uint32)):
        with pytest.raises(RemoteProtocolError):
            awaiting.step(bent)
    assert awaiting.step(np.ones(4, np.uint32)).sum.tolist() == [7] * 4
    with pytest.raises(LocalProtocolError, match="stepped twice"):
        awaiting.step(np.ones(4, np.uint32))


def test_the_count_coordinate_must_be_the_number_of_survivors() -> None:
    aggregate = Aggregate(np.array([9, 3], np.uint32), (0, 1, 4))
    aggregate.check_count(1)
    with pytest.raises(BadAggregate, match="a count of 3, got 9"):
        aggregate.check_count(0)
