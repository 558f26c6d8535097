"""The site processes of the demo, from their parent: started, followed, killed where they stand still, stopped."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.demo.events import EventKind, SiteEvent
from cli.processes import ChildProcess, stop_all
from fl_core.errors import PeerLost

CONNECT_TIMEOUT_S = 180.0

Listener = Callable[[str, SiteEvent], None]
"""Told the client_id and each event, from a thread."""


@dataclass(slots=True)
class SiteProcesses:
    """A set of site processes. As a context manager it stops them at the end, each by its process id.

    Args:
        listener: told each event of each site.
    """

    listener: Listener = lambda _client_id, _event: None
    events: dict[str, list[SiteEvent]] = field(init=False, default_factory=dict)
    killed: dict[str, SiteEvent] = field(init=False, default_factory=dict)
    _processes: dict[str, ChildProcess] = field(init=False, default_factory=dict)
    _readers: list[threading.Thread] = field(init=False, default_factory=list)
    _changed: threading.Condition = field(init=False, default_factory=threading.Condition)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, client_id: str, module: str, options: Sequence[str], log: Path) -> None:
        """Start `python -m module options` as a site.

        Args:
            client_id: the site.
            module: a program that prints events, see `cli.demo.events`.
            options: its arguments.
            log: where its stderr goes.
        """
        arguments = [sys.executable, "-m", module, *options]
        # One thread for every library that would take all cores: there are more sites than cores.
        environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        process = ChildProcess.start(f"site {client_id}", arguments, log, environment=environment, piped=True)
        self._processes[client_id] = process
        self.events[client_id] = []
        reader = threading.Thread(target=self._follow, args=(client_id, process), name=f"events of {client_id}")
        reader.start()
        self._readers.append(reader)

    def wait_connected(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Wait until every site has reached the coordinator.

        Raises:
            ConfigError: a site ended instead.
            PeerLost: a site is not there in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while missing := self._not_connected():
                self.check_alive()
                if time.monotonic() > deadline:
                    raise PeerLost(f"{len(missing)} sites did not connect within {timeout_s:.0f} s", got=missing[0])
                self._changed.wait(timeout=0.2)

    def pid(self, client_id: str) -> int:
        """The process id of a site."""
        return self._processes[client_id].popen.pid

    def check_alive(self) -> None:
        """Check that every site that was not killed still runs.

        Raises:
            ConfigError: one ended.
        """
        for client_id, process in self._processes.items():
            if client_id not in self.killed:
                process.check_alive()

    def stop(self) -> None:
        """Stop all that still run and wait for their last events."""
        processes = list(self._processes.values())
        for process in processes:
            if process.alive:
                process.popen.terminate()
        for reader in self._readers:
            reader.join(timeout=8.0)
        stop_all(processes, grace_s=0.5)
        self._processes.clear()

    def _not_connected(self) -> Sequence[str]:
        def connected(client_id: str) -> bool:
            return any(event.kind is EventKind.CONNECTED for event in self.events[client_id])

        return [client_id for client_id in self._processes if not connected(client_id)]

    def _follow(self, client_id: str, process: ChildProcess) -> None:
        """Read events until the site's end. A site that stands still is killed by this very thread, at once."""
        for line in process.popen.stdout or ():
            event = SiteEvent.parse(line)
            if event is None:
                continue
            # Noted first, so that nobody takes the end of this process for an accident.
            self._record(client_id, event)
            if event.kind is EventKind.HALTED:
                process.kill()
        with self._changed:
            self._changed.notify_all()

    def _record(self, client_id: str, event: SiteEvent) -> None:
        with self._changed:
            self.events[client_id].append(event)
            if event.kind is EventKind.HALTED:
                self.killed[client_id] = event
            self._changed.notify_all()
        self.listener(client_id, event)


def halt_options(round_id: int, phase: str) -> list[str]:
    """Arguments that make a site stand still."""
    return ["--halt-round", str(round_id), "--halt-phase", phase]
