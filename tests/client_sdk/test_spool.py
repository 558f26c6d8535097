"""The update that a site keeps on its disk: it comes back whole or not at all, and nobody else can read it."""

import os
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from client_sdk import spool as spool_module
from client_sdk.spool import UpdateSpool
from client_sdk.trained import Task, TrainedUpdate
from fl_core.transport.identity import Role

TASK = Task("lungs-1", 3, bytes(range(32)))
KEY = bytes(range(100, 132))
SEVERAL_BLOCKS = 700_000
"""Coordinates: 2.8 MB, so two whole blocks and a part."""


def trained(size: int = SEVERAL_BLOCKS) -> TrainedUpdate:
    values = np.random.default_rng(7).normal(size=size).astype(np.float32)
    return TrainedUpdate(values, 321, MappingProxyType({"loss": 0.25}), 12.5)


@pytest.fixture
def spool(tmp_path: Path) -> UpdateSpool:
    kept = UpdateSpool(tmp_path, KEY)
    kept.save(TASK, trained())
    return kept


def test_an_update_comes_back_as_it_was(spool: UpdateSpool) -> None:
    again = UpdateSpool(spool.folder, KEY).load(TASK)
    assert again is not None
    assert np.array_equal(again.update, trained().update)
    assert (again.num_samples, dict(again.metrics), again.seconds) == (321, {"loss": 0.25}, 12.5)
    assert spool.task() == TASK


@pytest.mark.parametrize(
    "other", [TASK._replace(job_id="b"), TASK._replace(round_id=4), TASK._replace(model_digest=bytes(32))]
)
def test_an_update_answers_to_its_own_task_alone(spool: UpdateSpool, other: Task) -> None:
    assert spool.load(other) is None


def test_another_key_opens_nothing(spool: UpdateSpool) -> None:
    assert UpdateSpool(spool.folder, bytes(32)).load(TASK) is None


def test_nothing_of_the_update_is_in_the_clear_and_the_file_is_ours_alone(spool: UpdateSpool) -> None:
    content = spool.path.read_bytes()
    update = trained().update.tobytes()
    assert not any(update[start : start + 8] in content for start in range(0, 80_000, 4096))
    assert b"321" not in content.split(b"\n", 1)[1][:64]
    assert spool.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", [5, 400, 1 << 20, -1])
def test_a_changed_byte_is_no_update(spool: UpdateSpool, place: int) -> None:
    content = bytearray(spool.path.read_bytes())
    content[place] ^= 1
    spool.path.write_bytes(content)
    assert spool.load(TASK) is None


@pytest.mark.parametrize("cut", [1, 1 << 20, 2_800_000])
def test_a_file_that_was_cut_off_is_no_update(spool: UpdateSpool, cut: int) -> None:
    spool.path.write_bytes(spool.path.read_bytes()[:-cut])
    assert spool.load(TASK) is None


def test_blocks_that_changed_places_are_no_update(spool: UpdateSpool) -> None:
    content = spool.path.read_bytes()
    block = spool_module.BLOCK_BYTES + 16
    end = len(content) - (SEVERAL_BLOCKS * 4 - 2 * spool_module.BLOCK_BYTES) - 16
    swapped = content[: end - 2 * block] + content[end - block : end] + content[end - 2 * block : end - block]
    spool.path.write_bytes(swapped + content[end:])
    assert spool.load(TASK) is None


def test_one_update_is_kept_and_the_same_update_never_looks_the_same(spool: UpdateSpool) -> None:
    before = spool.path.read_bytes()
    spool.save(TASK, trained())
    assert spool.path.read_bytes()[-100:] != before[-100:]
    spool.save(TASK._replace(round_id=4), trained(10))
    assert spool.load(TASK) is None
    assert [path.name for path in spool.folder.iterdir()] == [spool.path.name]


def test_a_forgotten_update_is_gone_and_forgetting_again_changes_nothing(spool: UpdateSpool) -> None:
    spool.forget()
    spool.forget()
    assert spool.task() is None
    assert not list(spool.folder.iterdir())


def test_quick_training_is_not_kept(tmp_path: Path) -> None:
    spool = UpdateSpool(tmp_path, KEY, worth_s=60.0)
    spool.save(TASK, trained(10))
    assert spool.load(TASK) is None


def test_a_full_disk_costs_a_training_and_no_more(spool: UpdateSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    spool.save(TASK._replace(round_id=4), trained(10))
    assert spool.task() == TASK


def test_the_key_is_of_one_site_and_stays_the_same(federation) -> None:  # type: ignore[no-untyped-def]
    ours, theirs = (federation.credentials(Role.SITE, name) for name in ("alpha", "beta"))
    assert ours.storage_key() == federation.credentials(Role.SITE, "alpha").storage_key()
    assert ours.storage_key() != theirs.storage_key()
