"""The facts of a session check themselves."""

from dataclasses import replace
from typing import Any

import pytest

from fl_core.errors import PlanError
from fl_core.secagg.context import SessionContext, hash_indices

CONTEXT = SessionContext(bytes(range(32)), size=10, threshold=7, min_survivors=8, ring_bits=32, length=5)


@pytest.mark.parametrize(
    "change",
    [
        {"binding": bytes(31)},
        {"size": 2, "threshold": 2, "min_survivors": 2},
        {"threshold": 5},
        {"threshold": 11, "min_survivors": 11},
        {"min_survivors": 6},
        {"min_survivors": 11},
        {"ring_bits": 0},
        {"ring_bits": 65},
        {"length": 0},
    ],
)
def test_numbers_that_cannot_hold_together_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        replace(CONTEXT, **change)


def test_a_session_is_named_by_its_binding() -> None:
    assert CONTEXT.session_id == bytes(range(16))


def test_the_hash_of_a_set_depends_on_the_session_and_the_set_alone() -> None:
    assert hash_indices(CONTEXT, [3, 1]) == hash_indices(CONTEXT, (1, 3))
    assert hash_indices(CONTEXT, [1, 3]) != hash_indices(CONTEXT, [1, 3, 4])
    assert hash_indices(CONTEXT, [1, 3]) != hash_indices(replace(CONTEXT, binding=bytes(32)), [1, 3])
