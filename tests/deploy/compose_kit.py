"""Runs what docker-compose.yml says as plain processes: same commands, environment and files, paths in a folder."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
PATIENCE_S = 240.0


def read_compose() -> dict[str, Any]:
    """The file, with its anchors and merges resolved."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


def services_of_our_image() -> dict[str, dict[str, Any]]:
    """The services that run `tacit`."""
    return {name: part for name, part in read_compose()["services"].items() if "build" in part}


@dataclass
class Machine:
    """A folder that stands for the machine: volumes, configs and addresses.

    Args:
        folder: empty.
        texts: what stands in commands and files, and what stands for it here, such as `coordinator:7001`.
    """

    folder: Path
    texts: Mapping[str, str]
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, service: str, replica: str = "") -> list[str]:
        """The command line of a service as it is started here."""
        return self._localised(service, replica, services_of_our_image()[service]["command"])

    def health_command(self, service: str) -> list[str]:
        """The command line of the health check of a service."""
        kind, *words = services_of_our_image()[service]["healthcheck"]["test"]
        assert kind == "CMD"
        command = self._localised(service, "", words)
        return command[len(_TACIT) :] if words[0] != "tacit" else [*_TACIT, *command[len(_TACIT) + 1 :]]

    def environment(self, service: str, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment of a service."""
        own = services_of_our_image()[service].get("environment", {})
        given = {name: self._local(str(value), {}) for name, value in own.items()}
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **given, **extra}

    def run(self, command: Sequence[str], environment: Mapping[str, str], what: str) -> None:
        """Run a command to its end, which must be a good one."""
        done = subprocess.run(
            command, env=dict(environment), cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"{what} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], ready: str) -> None:
        """Start a command and wait for a text in what it prints."""
        log = self.folder / f"{name}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                list(command), env=dict(environment), cwd=self.folder, stdout=stream, stderr=stream, text=True
            )
        self.running.append(process)
        deadline = time.monotonic() + PATIENCE_S
        while ready not in log.read_text():
            assert process.poll() is None, f"{name} ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{name} is not ready:\n{log.read_text()}"
            time.sleep(0.1)

    def stop(self) -> list[int]:
        """Stop everything that was started, last first; gives the exit codes in that order."""
        for process in reversed(self.running):
            process.terminate()
        codes = []
        for process in reversed(self.running):
            try:
                codes.append(process.wait(30))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        self.running.clear()
        return codes

    def _localised(self, service: str, replica: str, words: Sequence[str]) -> list[str]:
        paths = self._paths(service, replica)
        return [*_TACIT, *[self._local(word, paths) for word in words]]

    def _paths(self, service: str, replica: str) -> dict[str, str]:
        """Folders of this machine by the paths in the container."""
        paths = {}
        for volume in services_of_our_image()[service]["volumes"]:
            source, colon, target = volume.partition(":")
            target = target.partition(":")[0]
            if not colon:
                path = self.folder / "own" / f"{service}{replica}" / source.strip("/").replace("/", "-")
                path.mkdir(parents=True, exist_ok=True)
                paths[source] = str(path)
            elif source.startswith("."):
                paths[target] = str(self.folder / "etc" / service)
            else:
                path = self.folder / "volumes" / source
                path.mkdir(parents=True, exist_ok=True)
                paths[target] = str(path)
        for volume in services_of_our_image()[service]["volumes"]:
            source, colon, target = volume.partition(":")
            if colon and source.startswith("."):
                self._copy_configs(ROOT / source, Path(paths[target.partition(":")[0]]), paths)
        return self._init_paths(paths) if service == "init" else paths

    def _init_paths(self, paths: dict[str, str]) -> dict[str, str]:
        """`--out /pki` is a folder of mounts; here it is a folder of links."""
        pki = self.folder / "pki"
        pki.mkdir(exist_ok=True)
        for target, path in paths.items():
            if target.startswith("/pki/"):
                link = pki / Path(target).name
                if not link.exists():
                    link.symlink_to(path)
        return {**paths, "/pki": str(pki)}

    def _copy_configs(self, source: Path, target: Path, paths: Mapping[str, str]) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            (target / path.name).write_text(self._local(path.read_text(), paths))

    def _local(self, text: str, paths: Mapping[str, str]) -> str:
        known = {**self.texts, **paths}
        longest_first = sorted(known, key=len, reverse=True)
        pattern = re.compile("|".join(re.escape(word) + r"(?![\w-])" for word in longest_first))
        return pattern.sub(lambda match: known[match[0]], text)


_TACIT = [sys.executable, "-m", "cli"]


@contextmanager
def machine(folder: Path, texts: Mapping[str, str]) -> Iterator[Machine]:
    """A machine whose processes are stopped at the end of the block."""
    made = Machine(folder, texts)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder / "volumes", ignore_errors=True)
