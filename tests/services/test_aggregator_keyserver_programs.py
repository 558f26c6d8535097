"""The aggregator and the key server as processes: ready when they say so, gone on SIGTERM, one sentence when not."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fl_core.transport.identity import Role


def write_config(federation: Any, folder: Path, role: Role, service_id: str, **fields: Any) -> Path:
    files = federation.issue(role, service_id)
    content = {
        "service_id": service_id,
        "listen": "127.0.0.1:0",
        "certificate": str(files.certificate),
        "key": str(files.key),
        "ca": str(files.ca),
        "state_dir": "state",
        **fields,
    }
    path = folder / f"{service_id}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


async def start(module: str, config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


CASES = [
    ("services.aggregator", Role.AGGREGATOR, {"coordinator": "127.0.0.1:1"}),
    ("services.keyserver", Role.KEYSERVER, {}),
]


@pytest.mark.e2e
@pytest.mark.parametrize(("module", "role", "fields"), CASES)
async def test_a_service_says_ready_and_ends_on_sigterm(
    federation: Any, tmp_path: Path, module: str, role: Role, fields: dict[str, Any]
) -> None:
    process = await start(module, write_config(federation, tmp_path, role, "one", **fields))
    assert process.stdout is not None
    ready = await asyncio.wait_for(process.stdout.readline(), 30)
    assert ready.startswith(f"ready {role.value} one 127.0.0.1:".encode())
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, log.decode()


@pytest.mark.e2e
@pytest.mark.parametrize(("module", "role", "fields"), CASES)
async def test_a_wrong_config_is_one_sentence(
    federation: Any, tmp_path: Path, module: str, role: Role, fields: dict[str, Any]
) -> None:
    config = write_config(federation, tmp_path, role, "one", **fields, max_sesions=3)
    process = await start(module, config)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert errors.decode().splitlines()[-1].startswith("error: ")
    assert "did you mean 'max_sessions'" in errors.decode()
