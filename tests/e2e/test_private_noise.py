"""Distributed noise over the three real services: what the survivors do not need is gone, and a liar is named."""

from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_federation import BAD, HONEST, MODEL, Steps, WholeFederation, running_federation

from fl_core.rounds.machine import DropoutReason, RoundState
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.planner import private_codec_of
from fl_core.rounds.report import RoundReport
from fl_core.transport.identity import Role
from fl_core.wire.v1 import coordinator_pb2

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

DISTRIBUTED = {"mechanism": "distributed", "epsilon": 20.0, "delta": 1e-5, "clip": 1.0}
SITES = (BAD, *HONEST)


@pytest.fixture
async def whole(federation: Any, tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[WholeFederation]:
    async with running_federation(federation, tmp_path, free_port()) as running:
        yield running


async def _noise_over_target(whole: WholeFederation, plan: RoundPlan, report: RoundReport, job_id: str) -> float:
    """Variance of the noise in the committed sum of a job whose sites change nothing, over the planned one."""
    codec = private_codec_of(plan)
    assert codec is not None
    stub = whole.stub(Role.COORDINATOR, whole.operator)
    request = coordinator_pb2.GetParametersRequest(job_id=job_id, model_version=2)
    data = b"".join([part.chunk.data async for part in stub.GetParameters(request) if part.HasField("chunk")])
    moved = np.frombuffer(data, np.float32) - np.concatenate([MODEL["weight"].ravel(), MODEL["bias"]])
    step = codec.terms.clip / codec.terms.levels / len(report.survivors)
    return float((moved / step).var()) / codec.terms.variance(codec.coordinates)


@pytest.mark.parametrize("colluders", [0, 1])
async def test_a_sum_in_which_everybody_survived_has_the_noise_that_everybody_needs(
    whole: WholeFederation, colluders: int
) -> None:
    for name in SITES:
        whole.join(name, Steps(0.0))
    job_id = await whole.submit(1, privacy=DISTRIBUTED | {"colluders": colluders})
    (report,) = await whole.watch(job_id)
    plan = whole.witnesses[BAD].plans[0]
    assert (len(report.survivors), plan.min_survivors) == (5, 4)
    # 1,230 coordinates: the standard error is 4%. Without the removal it would be 5/4 and 5/3, not 1 and 5/4.
    seen = await _noise_over_target(whole, plan, report, job_id)
    assert seen == pytest.approx(5 / (5 - colluders), rel=0.15)
    assert seen < 0.9 * 5 / (4 - colluders)
    # Bit for bit it is the sum of what the sites sent, less the noise that each of them gave back.
    whole.check_exact(report)


async def test_a_site_that_reveals_another_seed_is_named_and_leaves_more_noise_never_less(
    whole: WholeFederation,
) -> None:
    async def lie(_: RoundPlan, message: Any) -> Iterable[Any]:
        if message.DESCRIPTOR.name == "RevealSharesRequest" and message.WhichOneof("message") == "shares":
            assert len(message.shares.excess_seed) == 32
            message.shares.excess_seed = bytes(32)
        return [message]

    whole.join(BAD, Steps(0.0), lie)
    for name in HONEST:
        whole.join(name, Steps(0.0))
    job_id = await whole.submit(1, privacy=DISTRIBUTED | {"noise_multiplier": 8.0})
    (report,) = await whole.watch(job_id)
    assert report.state is RoundState.COMMITTED
    assert [(drop.client_id, drop.reason) for drop in report.dropouts] == [(BAD, DropoutReason.FALSE_REVEAL)]
    assert len(report.survivors) == 5
    # Four sites keep a fifth of what is needed each, and the liar a quarter.
    seen = await _noise_over_target(whole, whole.witnesses[BAD].plans[0], report, job_id)
    assert seen == pytest.approx(4 / 5 + 1 / 4, rel=0.15)
