"""A site makes its masks as soon as it knows with whom it shares them, while it still trains."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_federation import HONEST, Steps, running_federation

from fl_core.secagg.client import MaskExpanded, ReadyToMask


async def test_masks_are_made_before_training_has_ended(
    federation: Any, tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, made = threading.Event(), Counter[bytes]()
    expand = ReadyToMask.expand_mask

    def counted(phase: ReadyToMask) -> MaskExpanded:
        expanded = expand(phase)
        made[phase.member.context.session_id] += 1
        return expanded

    monkeypatch.setattr(ReadyToMask, "expand_mask", counted)
    async with running_federation(federation, tmp_path, free_port()) as whole:
        for name in HONEST:
            whole.join(name, Steps(gate=gate))
        job_id = await whole.submit()
        plan = await whole.until_gated()
        try:
            async with asyncio.timeout(20):
                # Everybody is held back in the training of round 2 meanwhile.
                while made[plan.session_id] < len(HONEST):
                    await asyncio.sleep(0.01)
        finally:
            gate.set()
        reports = await whole.watch(job_id)
    assert [len(report.survivors) for report in reports] == [len(HONEST)] * 2
