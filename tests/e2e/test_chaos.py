"""A few rounds of chaos in every run of the tests; `chaos.py` has the long form."""

from pathlib import Path

import pytest
from chaos import FAULTS, run_chaos

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDS = 4
SEED = 7


async def test_a_few_rounds_of_chaos_break_no_invariant(tmp_path: Path) -> None:
    result = await run_chaos(tmp_path, ROUNDS, SEED)
    assert result.rounds == ROUNDS
    assert result.committed >= ROUNDS
    assert set(result.faults) <= set(FAULTS)
    assert result.faults.total() >= ROUNDS
