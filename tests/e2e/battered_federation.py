"""A federation of real processes that can be killed, stopped and frozen one by one, behind links that can be spoilt."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from fault_proxy import FaultProxy, running_proxy

from cli.cluster import PLAIN_UPDATES, SERVICES, ClusterOptions, LocalCluster
from cli.demo.exactness import is_exact
from cli.operator import Operator, OperatorConfig, service_status
from cli.processes import ChildProcess, stop_all
from cli.reports import JobSummary, is_committed
from cli.yaml_files import write_yaml
from client_sdk import Array
from fl_core.errors import TacitError
from fl_core.rounds.job import job_from_mapping
from fl_core.rounds.report import RoundReport
from fl_core.transport.identity import Role
from services.runtime.settings import read_yaml

Answer = TypeVar("Answer")

SITE_PROGRAM = Path(__file__).with_name("chaos_site.py")
RING_BITS = 24
MODEL: dict[str, Array] = {"weight": np.zeros((400, 30), np.float32)}
GONE_S = 15.0
SETTLE_S = 30.0
DONE = ("finished", "failed", "ended")

QUICK = {
    "recruiting": {"min_seconds": 0.5, "max_seconds": 300.0},
    "advertising": {"min_seconds": 2.0, "max_seconds": 20.0},
    "sharing": {"min_seconds": 2.0, "max_seconds": 20.0},
    "uploading": {"min_seconds": 3.0, "max_seconds": 30.0},
    "signing": {"min_seconds": 2.0, "max_seconds": 20.0},
    "revealing": {"min_seconds": 2.0, "max_seconds": 20.0},
}
"""Phases that go on without a site that vanished after a few seconds."""

SETTINGS: dict[str, dict[str, object]] = {
    "coordinator": {"service_patience_s": 3.0, "heartbeat_s": 2.0},
    "aggregator": {"report_timeout_seconds": 10.0, "stall_timeout_seconds": 5.0},
    "keyserver": {"delivery_timeout_seconds": 10.0, "message_timeout_seconds": 5.0},
}


@dataclass(frozen=True, slots=True)
class Health:
    """What a process holds."""

    pid: int
    rss: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Health":
        process = psutil.Process(pid)
        with process.oneshot():
            return cls(pid, process.memory_info().rss, process.num_fds(), process.num_threads())


class BatteredFederation:
    """Three services and some sites, each a process. Made by `battered_federation`."""

    def __init__(self, cluster: LocalCluster, proxies: dict[str, FaultProxy]) -> None:
        self.cluster = cluster
        self.proxies = proxies
        self.gates = cluster.workdir / "gates"
        self.gates.mkdir(parents=True, exist_ok=True)
        self.sites: dict[str, ChildProcess] = {}
        self.steps: list[tuple[str, str, int]] = []
        self._configs: dict[str, Path] = {}
        self._readers: list[threading.Thread] = []
        self._checked = 0

    # Sites.

    def add_site(self, client_id: str) -> None:
        """Make a site and start it."""
        config = self.cluster.add_site(client_id, record_plain_updates=True)
        self._configs[client_id] = write_yaml(config, {**read_yaml(config), "keep_training_after_s": 0})
        self.start_site(client_id)

    def start_site(self, client_id: str) -> None:
        """Start a site, for the first time or again."""
        number = sorted(self._configs).index(client_id) + 1
        arguments = [sys.executable, str(SITE_PROGRAM), "--config", str(self._configs[client_id])]
        arguments += ["--gates", str(self.gates), "--step", str(0.01 * number)]
        environment = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        log = self._configs[client_id].with_name("site.log")
        process = ChildProcess.start(client_id, arguments, log, environment=environment, piped=True)
        self.sites[client_id] = process
        reader = threading.Thread(target=self._follow, args=(client_id, process), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _follow(self, client_id: str, process: ChildProcess) -> None:
        for line in process.popen.stdout or ():
            event = json.loads(line)
            self.steps.append((client_id, event["step"], event["round_id"]))

    async def kill_site(self, client_id: str) -> None:
        """End a site with SIGKILL."""
        await asyncio.to_thread(self.sites[client_id].kill)

    async def until_step(self, step: str, round_id: int, sites: int = 1) -> None:
        """Wait until so many sites have reached a step of a round."""
        await self.until(
            lambda: len({name for name, *rest in self.steps if tuple(rest) == (step, round_id)}) >= sites,
            f"{sites} sites at {step} of round {round_id}",
        )

    def trainings(self) -> Counter[tuple[str, int]]:
        """How often each site has trained for each round."""
        return Counter((name, round_id) for name, step, round_id in self.steps if step == "training")

    # Gates.

    def shut(self, step: str, round_id: int) -> None:
        """Let sites wait at a step of a round."""
        (self.gates / f"{step}@{round_id}").touch()

    def open(self, round_id: int) -> None:
        """Let every site go on with a round."""
        for gate in self.gates.glob(f"*@{round_id}"):
            gate.unlink()

    # Services.

    async def kill_service(self, service: str) -> None:
        """End a service with SIGKILL."""
        await asyncio.to_thread(self.cluster.processes[service].kill)

    async def stop_service(self, service: str) -> None:
        """End a service with SIGTERM, and wait for it."""
        process = self.cluster.processes[service].popen
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, GONE_S)
        assert process.returncode == 0, (service, process.returncode, self.cluster.processes[service].last_log_line())

    async def start_service(self, service: str) -> None:
        """Start a service again, and wait until it serves."""
        self.cluster.start_service(service)
        await self.cluster._wait_ready(60.0)

    def signal_service(self, service: str, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP, to a service."""
        os.kill(self.cluster.processes[service].popen.pid, number)

    # The job.

    async def submit(self, rounds: int, **fields: object) -> str:
        """Submit a secure job over all sites, of which one may drop out when there are four."""
        spec = {
            "name": "battered",
            "rounds": rounds,
            "cohort": {"min": 3, "max": len(self._configs)},
            "codec": {"clip": 1.0, "ring_bits": RING_BITS},
            "max_weight": 100,
            "chunk_bytes": 4096,
            "max_attempts": 30,
            "phases": QUICK,
            "evaluate_every": 0,
            **fields,
        }
        async with self._operator() as operator:
            return await operator.submit(job_from_mapping(spec), MODEL)

    async def status(self, job_id: str) -> JobSummary:
        """How far the job is, from the coordinator itself; waits for one that is away."""
        return await self._patiently(lambda operator: operator.job(job_id))

    async def reports(self, job_id: str) -> list[RoundReport]:
        """Every closed report."""

        async def read(operator: Operator) -> list[RoundReport]:
            found: list[RoundReport] = []
            async for event in operator.watch(job_id):
                if isinstance(event, JobSummary):
                    break
                found.append(event)
            return found

        return await self._patiently(read)

    async def _patiently(self, ask: Callable[[Operator], Awaitable[Answer]]) -> Answer:
        async with asyncio.timeout(SETTLE_S * 2):
            while True:
                try:
                    async with asyncio.timeout(15), self._operator() as operator:
                        return await ask(operator)
                except (TacitError, TimeoutError):
                    await asyncio.sleep(0.2)

    async def cancel(self, job_id: str) -> None:
        """Cancel the job."""
        async with self._operator() as operator:
            await operator.cancel(job_id)

    async def until_committed(self, job_id: str, rounds: int, patience_s: float = 120.0) -> list[RoundReport]:
        """Wait until so many rounds are committed; the reports."""
        async with asyncio.timeout(patience_s):
            while (job := await self.status(job_id)).rounds_committed < rounds:
                assert not job.ended, (job.status, job.detail)
                await asyncio.sleep(0.2)
            # A report is closed a moment after its round is committed.
            while sum(map(is_committed, reports := await self.reports(job_id))) < rounds:
                await asyncio.sleep(0.2)
        return reports

    @asynccontextmanager
    async def _operator(self) -> AsyncIterator[Operator]:
        async with Operator.connect(OperatorConfig.from_file(self.cluster.operator_config)) as operator:
            yield operator

    # What must hold.

    def check_chain(self) -> None:
        """Check that the versions of the model form one chain, and that each has its blob."""
        with closing(sqlite3.connect(self.cluster.workdir / "coordinator" / "state" / "coordinator.db")) as database:
            rows = database.execute("SELECT version, parent_version, blob_name FROM models ORDER BY version").fetchall()
        assert [row[:2] for row in rows] == [(n, n - 1 if n > 1 else None) for n in range(1, len(rows) + 1)], rows
        blobs = self.cluster.workdir / "coordinator" / "state" / "blobs"
        assert all((blobs / row[2]).is_file() for row in rows)

    def check_exact(self, reports: list[RoundReport]) -> int:
        """Check that each committed aggregate is the plain sum of what its survivors recorded; how many there are.

        A round is checked once; what the sites recorded for it goes then.
        """
        committed = [report for report in reports if is_committed(report)]
        assert [report.round_id for report in committed] == list(range(1, len(committed) + 1))
        folder = self.cluster.workdir / "sites"
        for report in committed[self._checked :]:
            assert is_exact(report, folder), report
        self._checked = len(committed)
        for path in folder.glob(f"*/{PLAIN_UPDATES}/*.npz"):
            with np.load(path) as record:
                is_over = int(record["round_id"]) <= self._checked
            if is_over:
                path.unlink()
        return len(committed)

    def check_ledger(self) -> int:
        """Check that whatever a private job may have released had been counted before; how many releases there are.

        Counted is what stands in the ledger of the job. Released may be every session that was unmasked.
        """
        with closing(sqlite3.connect(self.cluster.workdir / "coordinator" / "state" / "coordinator.db")) as database:
            counted = {
                row[0] for row in database.execute("SELECT session_id FROM privacy_releases WHERE client_id = ''")
            }
            committed = {
                row[0]
                for row in database.execute(
                    "SELECT s.session_id FROM sessions s JOIN attempts a USING (job_id, round_id, attempt)"
                    " WHERE a.state = 'committed'"
                )
            }
        with closing(sqlite3.connect(self.cluster.workdir / "keyserver" / "state" / "keyserver.db")) as database:
            unmasked = {row[0] for row in database.execute("SELECT session_id FROM keyserver_unmasked_sessions")}
        assert committed <= counted, len(committed - counted)
        assert unmasked <= counted, len(unmasked - counted)
        return len(committed)

    def check_unmasked_once(self) -> None:
        """Check that no site stands twice in a journal for one session."""
        for journal in self.cluster.workdir.glob("sites/*/state/journal.jsonl"):
            lines = [json.loads(line) for line in journal.read_text().split("\n")[:-1]]
            sessions = Counter(line["session_id"] for line in lines if line["kind"] == "unmasked")
            assert not sessions or max(sessions.values()) == 1, journal

    async def check_no_orphans(self, job_id: str) -> None:
        """Check that before long no service holds an open session that is not of the attempt that runs."""

        async def orphans() -> list[Any]:
            config = OperatorConfig.from_file(self.cluster.operator_config)
            current = (await self.status(job_id)).current
            open_now = None if current is None else (current.round_id, current.attempt)
            found = []
            for role in (Role.AGGREGATOR, Role.KEYSERVER):
                for session in (await service_status(config, role, self.cluster.addresses[role.value])).sessions:
                    if session.phase not in DONE and (session.round_id, session.attempt) != open_now:
                        found.append((role.value, session.round_id, session.attempt, session.phase, open_now))
            return found

        left: list[Any] = []
        async with asyncio.timeout(SETTLE_S * 2):
            for _ in range(int(SETTLE_S)):
                try:
                    left = await orphans()
                except TacitError as error:
                    left = [str(error)]
                if not left:
                    return
                await asyncio.sleep(0.5)
        raise AssertionError(f"orphaned sessions: {left}")

    def check_files(self) -> None:
        """Check, once everything is stopped, that nothing but what is meant to stay lies in the state folders."""
        expected = {
            "coordinator": {"coordinator.db", "coordinator.db-wal", "coordinator.db-shm", "blobs", "spool"},
            "keyserver": {"keyserver.db", "keyserver.db-wal", "keyserver.db-shm"},
            "aggregator": {"spool"},
        }
        for service, names in expected.items():
            state = self.cluster.workdir / service / "state"
            found = {path.name for path in state.iterdir()} if state.exists() else set()
            assert found <= names, (service, found - names)
            spooled = list((state / "spool").iterdir()) if (state / "spool").exists() else []
            assert not spooled, (service, spooled)
        # A coordinator that was killed leaves half a blob at most until it starts again; it was stopped in peace.
        partial = list((self.cluster.workdir / "coordinator").rglob("*.partial"))
        assert not partial, partial
        for state in self.cluster.workdir.glob("sites/*/state"):
            assert {path.name for path in state.iterdir()} <= {
                "journal.jsonl",
                "lock",
                "trained.sealed",
                "privacy.jsonl",
            }, state

    def health(self) -> dict[str, Health]:
        """What every process that runs holds."""
        everybody = {**self.cluster.processes, **self.sites}
        return {name: Health.of(process.popen.pid) for name, process in everybody.items() if process.alive}

    async def until(self, condition: Callable[[], bool], what: str, patience_s: float = 60.0) -> None:
        """Wait for something."""
        deadline = asyncio.get_running_loop().time() + patience_s
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
            await asyncio.sleep(0.02)

    def tails(self, lines: int = 12) -> str:
        """The ends of all logs, for a failure."""
        parts = []
        for log in sorted(self.cluster.workdir.rglob("*.log")):
            parts.append(f"--- {log.relative_to(self.cluster.workdir)}\n" + "\n".join(_tail(log, lines)))
        return "\n".join(parts)

    def stop(self) -> None:
        """Stop the sites, then the services."""
        for gate in self.gates.iterdir():
            gate.unlink()
        for process in [*self.sites.values(), *self.cluster.processes.values()]:
            if process.alive:
                os.kill(process.popen.pid, signal.SIGCONT)
        stop_all(list(self.sites.values()))
        self.cluster.stop()
        for reader in self._readers:
            reader.join(5.0)


def _tail(log: Path, lines: int) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-lines:]


@asynccontextmanager
async def battered_federation(
    workdir: Path, sites: int, *, behind_proxies: bool = False, **settings: dict[str, object]
) -> AsyncIterator[BatteredFederation]:
    """The services and `sites` sites, started and stopped; behind proxies when the network is to be spoilt too."""
    merged = {service: {**SETTINGS[service], **settings.get(service, {})} for service in SERVICES}
    cluster = LocalCluster(workdir, ClusterOptions(presence_grace_s=0.5, drain_seconds=10.0, settings=merged))
    cluster.choose_ports()
    async with AsyncExitStack() as stack:
        proxies: dict[str, FaultProxy] = {}
        for service in SERVICES if behind_proxies else ():
            running = running_proxy(cluster.addresses[service], seed=len(proxies))
            proxies[service], cluster.detours[service] = await stack.enter_async_context(running)
        federation = BatteredFederation(cluster, proxies)
        stack.callback(federation.stop)
        cluster.start()
        await cluster._wait_ready(90.0)
        for number in range(1, sites + 1):
            federation.add_site(f"site-{number}")
        yield federation
