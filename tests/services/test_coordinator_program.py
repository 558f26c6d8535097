"""The coordinator as a program: it starts from a file, says that it is ready, and ends when it is told."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from coordinator_kit import MODEL, job_spec

from fl_core.codec.tensors import manifest_of
from fl_core.errors import ConfigError, LocalProtocolError, StorageError
from fl_core.rounds.plan import JobId
from fl_core.transport.identity import Role
from services.coordinator.driver import Driver
from services.coordinator.failures import run_beside
from services.coordinator.program import driving, make_driver, open_resources
from services.coordinator.records import JobRecord, ModelRecord
from services.coordinator.resources import Resources
from services.coordinator.round_store import RoundStore
from services.coordinator.settings import CoordinatorSettings

PATIENCE_S = 20.0

ROOT = Path(__file__).resolve().parents[2]


def write_config(federation: Any, folder: Path, **fields: object) -> Path:
    files = federation.issue(Role.COORDINATOR, "coord-1")
    config = {
        "service_id": "coord-1",
        "listen": "127.0.0.1:0",
        "certificate": str(files.certificate),
        "key": str(files.key),
        "ca": str(files.ca),
        "state_dir": "state",
        "aggregator": "127.0.0.1:1",
        "keyserver": "127.0.0.1:2",
        **fields,
    }
    path = folder / "coordinator.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "services.coordinator", "--config", str(config)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_it_migrates_says_that_it_is_ready_and_ends_on_sigterm(federation: Any, tmp_path: Path) -> None:
    with start(write_config(federation, tmp_path, database_url="sqlite:///own.db")) as process:
        assert process.stdout is not None
        ready = next(line for line in process.stdout if line.startswith("ready "))
        assert ready.startswith("ready coordinator coord-1 127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
    tables = sqlite3.connect(tmp_path / "own.db").execute("SELECT name FROM sqlite_master").fetchall()
    assert ("attempts",) in tables


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"aggregatr": "x:1"}, "did you mean 'aggregator'"),
        ({"keyserver": "no-port"}, "host:port"),
        ({"database_url": "mysql://x/y"}, "mysql"),
        ({"certificate": "missing.pem"}, "missing.pem"),
    ],
)
def test_a_wrong_config_is_one_sentence_and_status_2(
    federation: Any, tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    process = start(write_config(federation, tmp_path, **fields))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert said in line


def test_database_and_blobs_are_below_the_state_folder_unless_said_otherwise(federation: Any, tmp_path: Path) -> None:
    settings = CoordinatorSettings.from_file(write_config(federation, tmp_path))
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path / 'state' / 'coordinator.db'}"
    assert settings.blobs == str(tmp_path / "state" / "blobs")
    with pytest.raises(ConfigError):
        CoordinatorSettings.from_file(write_config(federation, tmp_path, heartbeat_s=0))


async def test_a_database_that_fails_stops_the_driver_instead_of_going_on_without_it(
    federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise StorageError("the database failed")

    async def are_there(*_: object) -> None:
        return

    monkeypatch.setattr(RoundStore, "open", fails)
    monkeypatch.setattr(Driver, "_await_services", are_there)
    settings = CoordinatorSettings.from_file(write_config(federation, tmp_path))
    async with open_resources(settings) as resources:
        driver = make_driver(settings, resources)
        with pytest.raises(ExceptionGroup) as caught:
            await drive_one(driver, resources)
    assert caught.value.subgroup(StorageError) is not None


async def drive_one(driver: Driver, resources: Resources) -> None:
    async with driving(driver, resources):
        await submit(driver, resources)
        await asyncio.sleep(PATIENCE_S)


async def submit(driver: Driver, resources: Resources) -> None:
    stored = await resources.models.store("m", manifest_of(MODEL), MODEL)
    job = JobRecord(JobId("job-1"), "digits", json.dumps(job_spec()), "operator/olga", 1.0)
    await resources.jobs.add(job, ModelRecord(JobId("job-1"), 1, stored.model_digest, "m", stored.total_bytes, 1.0))
    driver.submit(JobId("job-1"))


async def test_work_ends_with_the_error_of_a_watcher_and_watchers_with_the_work() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("watcher")

    async def fails() -> None:
        raise LocalProtocolError("wrong")

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert await run_beside(work(), endless()) == 7
    assert ended == ["watcher"]
    with pytest.raises(LocalProtocolError):
        await run_beside(asyncio.Event().wait(), fails())
