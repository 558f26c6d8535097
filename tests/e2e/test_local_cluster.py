"""`tacit up` as a user runs it: ready when it says so, gone when it is told, one clear line when it cannot start."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cli.cluster import ClusterOptions, LocalCluster
from fl_core.errors import ConfigError

pytestmark = pytest.mark.e2e

START_S = 60.0


@contextmanager
def running_up(workdir: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """`tacit up --json`, and what it printed when it was ready."""
    command = [sys.executable, "-m", "cli", "up", "--workdir", str(workdir), "--json", *options]
    # What a script starts in the background ignores SIGINT, and so would we, and those whom we start.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ours)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], START_S)[0], "not ready in time"
        yield process, json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate(timeout=30)


def tacit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_up_is_ready_answers_status_and_leaves_no_process(tmp_path: Path) -> None:
    with running_up(tmp_path, "--sites", "1") as (process, ready):
        answer = tacit("status", "--config", str(ready["operator_config"]), "--json")
        assert answer.returncode == 0, answer.stderr
        roles = {service["role"] for service in json.loads(answer.stdout)["services"]}
        assert roles == {"coordinator", "aggregator", "keyserver"}
        assert (tmp_path / "sites" / "site-01" / "site.yaml").exists()
        pids = list(ready["processes"].values())  # type: ignore[attr-defined]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert process.returncode == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_keys_of_the_cluster_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    with cluster:
        cluster.add_site("site-01")
    keys = list(tmp_path.rglob("*key*.pem"))
    assert len(keys) == 6
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_a_folder_is_used_again_with_its_identities(tmp_path: Path) -> None:
    with LocalCluster(tmp_path) as cluster:
        before = cluster.add_site("site-01").with_name("certificate.pem").read_bytes()
    with LocalCluster(tmp_path) as cluster:
        assert cluster.add_site("site-01").with_name("certificate.pem").read_bytes() == before


def test_a_port_in_use_is_one_line_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tacit("up", "--workdir", str(tmp_path), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {port} cannot be used" in done.stderr
    assert not list(tmp_path.rglob("service.log"))


def test_a_service_that_cannot_start_is_named_with_its_reason(tmp_path: Path) -> None:
    with LocalCluster(tmp_path):
        pass
    (tmp_path / "aggregator" / "key.pem").unlink()
    with pytest.raises(ConfigError, match=r"aggregator ended.*key\.pem"), LocalCluster(tmp_path):
        pass


def test_a_service_that_dies_takes_the_cluster_down(tmp_path: Path) -> None:
    with running_up(tmp_path) as (process, ready):
        pids = ready["processes"]
        os.kill(pids["keyserver"], signal.SIGKILL)  # type: ignore[index]
        process.wait(timeout=30)
        assert process.returncode == 1
        assert process.stderr is not None
        assert "keyserver ended" in process.stderr.read()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids.values()):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline


def test_a_missing_certificate_of_a_site_is_one_line(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, ClusterOptions())
    with cluster:
        config = cluster.add_site("site-01")
    config.with_name("certificate.pem").unlink()
    (tmp_path / "quiet.py").write_text(
        "class Trainer:\n    def train(self, p, c): ...\n    def evaluate(self, p, c): ...\n"
    )
    command = [sys.executable, "-m", "cli", "site", "--config", str(config), "--trainer", "quiet:Trainer"]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 1
    assert "certificate.pem cannot be read" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
