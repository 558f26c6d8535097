"""Tools of the malicious parties."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.rounds.plan import Aggregation, ClientId, JobId, PhaseSchedule, RosterEntry, RoundPlan, ServiceEndpoint
from fl_core.secagg.messages import KeyDirectory


@pytest.fixture
def forge() -> Callable[..., KeyDirectory]:
    """Changes fields of one advertisement in a directory."""

    def change(directory: KeyDirectory, index: int, **changes: bytes) -> KeyDirectory:
        return KeyDirectory(
            tuple(
                replace(one, **changes) if one.index == index else one  # type: ignore[arg-type]
                for one in directory.advertisements
            )
        )

    return change


@pytest.fixture
def plan_of() -> Callable[..., RoundPlan]:
    """Makes a secure plan for a cohort of these names."""

    def make(*names: str) -> RoundPlan:
        needed = 2 * len(names) // 3 + 1
        return RoundPlan(
            job_id=JobId("job"),
            round_id=1,
            attempt=1,
            aggregation=Aggregation.SECAGG,
            model_version=1,
            model_digest=bytes(32),
            manifest=TensorManifest((TensorSpec("w", "float32", (4,)),)),
            codec=CodecSpec(clip=1.0, bits=16, ring_bits=32),
            threshold=needed,
            min_survivors=needed,
            max_dropout=0.2,
            max_corrupt=0.2,
            max_weight=100,
            chunk_bytes=1024,
            schedule=PhaseSchedule(),
            aggregator=ServiceEndpoint("aggregator", "127.0.0.1:1", b"a" * 32),
            keyserver=ServiceEndpoint("keyserver", "127.0.0.1:2", b"k" * 32),
            roster=tuple(
                RosterEntry(ClientId(name), bytes([place + 1]) * 32) for place, name in enumerate(sorted(names))
            ),
        )

    return make
