"""The processes full of sites, from their parent: started, told what to do, heard, and stopped."""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cli.loadtest.gauges import usage_of
from cli.processes import STOP_GRACE_S
from fl_core.errors import ConfigError, InternalError, PeerLost

PROGRAM = "cli.loadtest.site_host"
EVENT_BYTES = 1 << 26
START_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 300.0
SETTLE_TIMEOUT_S = 120.0

Event = dict[str, Any]


@dataclass(slots=True)
class SiteHosts:
    """All of them. As an asynchronous context manager it stops them at the end, each by its process id.

    Args:
        assignments: one file for each process.
    """

    assignments: Sequence[Path]
    _hosts: list["_Host"] = field(init=False, default_factory=list)

    async def __aenter__(self) -> Self:
        try:
            for assignment in self.assignments:
                self._hosts.append(await _Host.start(assignment))
            for host in self._hosts:
                await host.hear("ready", START_TIMEOUT_S)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def cpu_seconds(self) -> float | None:
        """Of all processes together so far; None where the system does not say."""
        usages = [usage_of(host.process.pid) for host in self._hosts]
        known = [usage.cpu_seconds for usage in usages if usage is not None]
        return sum(known) if len(known) == len(usages) else None

    async def connect(self) -> None:
        """Let all sites connect, and wait until each has reached the coordinator.

        Raises:
            PeerLost: they are not there in time.
            ConfigError, InternalError: a site or a process ended instead.
        """
        for host in self._hosts:
            await host.tell(command="connect")
        for host in self._hosts:
            await host.hear("connected", CONNECT_TIMEOUT_S)

    async def settle(self, round_id: int, attempt: int, survivors: Sequence[str]) -> list[Event]:
        """Say that an attempt is over; each process answers with its part of the sum and the bytes of its sites."""
        for host in self._hosts:
            await host.tell(command="settle", round_id=round_id, attempt=attempt, survivors=list(survivors))
        return [await host.hear("settled", SETTLE_TIMEOUT_S) for host in self._hosts]

    async def _stop(self) -> None:
        for host in self._hosts:
            host.ask_to_stop()
        for host in self._hosts:
            await host.stop()
        self._hosts.clear()


@dataclass(slots=True)
class _Host:
    process: asyncio.subprocess.Process
    log: Path

    @classmethod
    async def start(cls, assignment: Path) -> "_Host":
        log = assignment.with_suffix(".log")
        with log.open("a") as stream:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                PROGRAM,
                "--assignment",
                str(assignment),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
                limit=EVENT_BYTES,
            )
        return cls(process, log)

    async def tell(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()

    async def hear(self, wanted: str, timeout_s: float) -> Event:
        """The next event of a kind; others before it are of no interest any more."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                while line := await self.process.stdout.readline():
                    event: Event = json.loads(line)
                    if event["event"] == "failed":
                        raise InternalError(f"site {event['client_id']} ended", got=event["reason"])
                    if event["event"] == wanted:
                        return event
        except TimeoutError as error:
            raise PeerLost(
                f"the sites did not say {wanted!r} within {timeout_s:.0f} s", fix=f"read {self.log}"
            ) from error
        raise ConfigError("a process of sites ended", fix=f"read {self.log}")

    def ask_to_stop(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def stop(self) -> None:
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
