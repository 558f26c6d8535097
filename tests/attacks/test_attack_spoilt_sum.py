"""Attack: a site of the roster that did not finish the exchange uploads all the same, so that no mask fits the sum.

A vector that is in the sum cannot be taken out. What stops it: the aggregator is told U2 and adds nobody else.
"""

import numpy as np
import pytest

from fl_core.errors import BadAggregate, LocalProtocolError, RemoteProtocolError
from fl_core.secagg.masked_sum import CollectingMaskedInputs
from fl_core.secagg.messages import MaskedInput
from fl_core.simulation import stages

SIZE, STRANGER = 7, 6


def sum_with_a_stranger(cohort: stages.Cohort) -> np.ndarray:
    """Site 6 sent its keys and no shares, and uploads noise; the sum of the others, if they get there."""
    shared = stages.share(stages.advertise(cohort), range(SIZE - 1))
    aggregation = CollectingMaskedInputs(cohort.context)
    aggregation.admit(shared.server.participants)
    with pytest.raises(RemoteProtocolError, match="did not finish the key exchange"):
        aggregation.add(MaskedInput(STRANGER, cohort.vectors[STRANGER]))
    assert aggregation.received == frozenset()
    stage = stages.upload(shared)
    return stages.reveal(stages.sign(stage))


def test_a_stranger_is_not_added_and_the_others_are_summed() -> None:
    cohort = stages.make_cohort(SIZE)
    assert np.array_equal(sum_with_a_stranger(cohort), cohort.sum_of(range(SIZE - 1)))


def test_without_admission_one_site_can_spoil_every_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CollectingMaskedInputs, "admit", lambda *_: None)
    cohort = stages.make_cohort(SIZE)
    aggregation = CollectingMaskedInputs(cohort.context)
    aggregation.admit(range(SIZE - 1))
    for index in range(SIZE):
        aggregation.add(MaskedInput(index, cohort.vectors[index]))
    with pytest.raises(BadAggregate, match="did not finish the key exchange"):
        aggregation.freeze(range(SIZE - 1))


def test_who_may_be_added_is_said_once() -> None:
    aggregation = CollectingMaskedInputs(stages.make_cohort(SIZE).context)
    aggregation.admit(range(5))
    aggregation.admit(range(5))
    with pytest.raises(LocalProtocolError, match="fixed before"):
        aggregation.admit(range(6))
