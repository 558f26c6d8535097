"""The program of one process full of sites. Its parent writes commands to its stdin and reads events from its stdout.

Events, one JSON object per line: `ready`; `connected` once all are; `settled` (complete, sum, bytes); `failed`.
Commands: `connect`; `settle` (round_id, attempt, survivors) after each attempt: whoever vanished comes back, and the
sum of the survivors among these sites is written to a file. The end of stdin ends the process.
"""

import argparse
import asyncio
import json
import logging
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from cli.loadtest.assignment import Assignment
from cli.loadtest.light_site import LightSite
from cli.loadtest.made_up import MadeUpTrainer, made_up_step
from cli.loadtest.shaping import SlowLine
from cli.loadtest.warm_up import warm_up
from client_sdk import SiteConfig
from fl_core.rounds.job import read_codec
from fl_core.rounds.planner import choose_codec
from services.runtime.collector import tune_collector
from services.runtime.memory import keep_memory
from services.runtime.server import loop_factory

COMMAND_BYTES = 1 << 24
THREADS = 2


class SiteHost:
    """The sites of one process.

    Args:
        assignment: what the parent asks for.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._connected: set[str] = set()
        self._vanished: set[str] = set()
        step = made_up_step(assignment.parameters, assignment.seed)
        self._sites = {
            client_id: self._make_site(client_id, MadeUpTrainer(step, 1 + number % assignment.max_weight))
            for number, client_id in enumerate(assignment.sites)
        }

    async def run(self) -> None:
        """Do what the parent says, until it says no more."""
        # More threads than cores would only take the interpreter away from the event loop.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        emit("ready")
        commands = await _stdin()
        try:
            while line := await commands.readline():
                await self._obey(json.loads(line))
        finally:
            tasks = [site.task for site in self._sites.values() if site.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _make_site(self, client_id: str, trainer: MadeUpTrainer) -> LightSite:
        shaping = self._assignment.shaping
        return LightSite(
            config=SiteConfig.from_file(self._assignment.sites[client_id]),
            trainer=trainer,
            vanishes=self._assignment.schedule[client_id],
            line=SlowLine(shaping) if shaping.is_needed else None,
            said=lambda what: self._note(client_id, what),
        )

    async def _obey(self, command: dict[str, object]) -> None:
        match command:
            case {"command": "connect"}:
                for client_id in self._sites:
                    await self._start(client_id)
            case {"command": "settle", "round_id": int(round_id), "attempt": int(attempt), "survivors": list(names)}:
                for client_id in sorted(self._vanished):
                    await self._start(client_id)
                self._vanished.clear()
                await self._settle((round_id, attempt), names)

    async def _start(self, client_id: str) -> None:
        site = self._sites[client_id]
        await site.start()
        assert site.task is not None
        site.task.add_done_callback(lambda task: _report_failure(client_id, task))

    async def _settle(self, attempt: tuple[int, int], survivors: Sequence[str]) -> None:
        recorded = [self._sites[name].recorded.get(attempt) for name in survivors if name in self._sites]
        vectors = [entry.vector for entry in recorded if entry is not None]
        path = self._assignment.folder / f"sum-{attempt[0]}-{attempt[1]}.npy"
        complete = len(vectors) == len(recorded)
        if vectors and complete:
            await asyncio.to_thread(_write_sum, path, vectors)
        for site in self._sites.values():
            site.forget(attempt)
        emit(
            "settled",
            complete=complete,
            sum=str(path) if vectors and complete else None,
            ring_bits=next((entry.ring_bits for entry in recorded if entry is not None), 0),
            bytes={client_id: site.tally.take() for client_id, site in self._sites.items()},
        )

    def _note(self, client_id: str, what: str) -> None:
        if what == "vanished":
            self._vanished.add(client_id)
        elif client_id not in self._connected:
            self._connected.add(client_id)
            if len(self._connected) == len(self._sites):
                emit("connected")


def _write_sum(path: Path, vectors: Sequence[npt.NDArray[np.unsignedinteger]]) -> None:
    total = np.zeros(len(vectors[0]), np.uint64)
    for vector in vectors:
        total += vector
    np.save(path, total)


def _report_failure(client_id: str, task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        emit("failed", client_id=client_id, reason=str(error))


def emit(event: str, **facts: object) -> None:
    """Tell the parent."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=COMMAND_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sites of one assignment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assignment", type=Path, required=True)
    options = parser.parse_args(arguments)
    # The logs of a thousand sites help nobody; what goes wrong stands in the log of this process.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    _raise_file_limit()
    keep_memory()
    assignment = Assignment.read(options.assignment)
    warm_up(assignment.parameters, assignment.cohort, choose_codec(read_codec(assignment.codec), assignment.cohort))
    host = SiteHost(assignment)
    tune_collector()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(host.run())


def _raise_file_limit() -> None:
    """Each site holds a few sockets and files open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
