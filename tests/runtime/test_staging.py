"""Room for uploads: memory up to the budget, files without a name beyond it; and adding that cannot be cut short."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fl_core.codec.packing import pack
from fl_core.errors import SessionFrozen, StorageError
from services.runtime.sessions import run_to_end
from services.runtime.staging import StagingArea, read_vector

LENGTH = 3_000_001


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("ring_bits", [8, 13, 16, 20, 32])
async def test_a_staged_vector_is_read_back_exactly(tmp_path: Path, budget: int, ring_bits: int) -> None:
    lane = {8: np.uint8, 13: np.uint16, 16: np.uint16, 20: np.uint32, 32: np.uint32}[ring_bits]
    vector = np.random.default_rng(1).integers(0, 1 << ring_bits, LENGTH).astype(lane)
    payload = memoryview(pack(vector, ring_bits))
    area = StagingArea(tmp_path, budget)
    with area.stage(len(payload)) as staged:
        for start in range(0, len(payload), 1 << 18):
            await staged.write(payload[start : start + (1 << 18)])
        np.testing.assert_array_equal(read_vector(staged, LENGTH, ring_bits), vector)
    assert area.free_bytes == budget
    assert list(tmp_path.iterdir()) == []


async def test_the_budget_is_shared_and_given_back(tmp_path: Path) -> None:
    area = StagingArea(tmp_path, 100)
    with area.stage(60), area.stage(60), area.stage(40):
        assert area.free_bytes == 0
    assert area.free_bytes == 100


async def test_an_upload_on_disk_takes_no_memory(tmp_path: Path) -> None:
    process, chunk = psutil.Process(), bytes(1 << 18)
    with StagingArea(tmp_path, 0).stage(200 << 20) as staged:
        await staged.write(chunk)
        before = process.memory_info().rss
        for _ in range(799):
            await staged.write(chunk)
        assert process.memory_info().rss - before < 20 << 20


async def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="staged on disk"), StagingArea(tmp_path / "file", 0).stage(10):
        pass


async def test_what_must_not_be_cut_short_ends_before_the_cancellation_goes_on() -> None:
    release, ended = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(10)
        ended.set()

    async def locked() -> None:
        await asyncio.to_thread(work)

    caller = asyncio.create_task(run_to_end(lambda: asyncio.create_task(locked())))
    for _ in range(3):
        await asyncio.sleep(0.02)
        caller.cancel()
    assert not caller.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_an_error_of_such_work_reaches_the_caller() -> None:
    async def failing() -> Any:
        raise SessionFrozen("over")

    with pytest.raises(SessionFrozen):
        await run_to_end(lambda: asyncio.create_task(failing()))
