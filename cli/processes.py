"""A child process with its own log file: start it, see that it lives, stop it by its id."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli import tether
from fl_core.errors import ConfigError

STOP_GRACE_S = 8.0
LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """A running program of ours, in a session of its own so that Ctrl-C reaches its parent alone.

    On Linux it gets SIGTERM when the thread that started it ends, however it ends: see `cli.tether`.

    Args:
        name: for messages.
        popen: the process.
        log: where its stderr, and its stdout unless that is a pipe, go.
    """

    name: str
    popen: subprocess.Popen[str]
    log: Path

    @classmethod
    def start(
        cls,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> "ChildProcess":
        """Start a program.

        Args:
            name: for messages.
            arguments: the program and its arguments.
            log: file that is appended to.
            environment: variables beyond those of this process.
            piped: read its stdout by `popen.stdout` instead of the log.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            popen = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                tethered(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else stream,
                stderr=stream,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                text=True,
            )
        return cls(name, popen, log)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def check_alive(self) -> None:
        """Check that it still runs.

        Raises:
            ConfigError: it ended; the message has the last line of its log.
        """
        if self.alive:
            return
        raise ConfigError(
            f"the {self.name} ended with code {self.popen.returncode}",
            got=self.last_log_line() or "an empty log",
            fix=f"read {self.log}",
        )

    def last_log_line(self) -> str:
        """The last line of its log that is not blank."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines[-LOG_LINES:]) if line.strip()), "")

    def kill(self) -> None:
        """End it with SIGKILL and collect it."""
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        """Give back the pipe, once it ended."""
        if self.popen.stdout is not None:
            self.popen.stdout.close()


def tethered(arguments: Sequence[str]) -> list[str]:
    """The command that runs a program which ends with this process, where the system can do that."""
    if sys.platform != "linux":
        return list(arguments)
    return [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *arguments]


def stop_all(processes: Sequence[ChildProcess], grace_s: float = STOP_GRACE_S) -> None:
    """Ask all to stop at once, then kill those that still run after `grace_s`. Nothing is left behind."""
    for process in processes:
        if process.alive:
            process.popen.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for process in processes:
        try:
            process.popen.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
        process.close()
