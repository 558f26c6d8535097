"""A federation with replicas: aggregators and coordinators as processes that can be killed, the rest in this one."""

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import yaml
from whole_federation import RING_BITS, STUBS, WholeFederation

from cli.demo.exactness import plain_sum_sha256
from cli.processes import ChildProcess, stop_all
from fl_core.rounds.report import RoundReport, SessionReport
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.wire.v1 import status_pb2
from services.coordinator.program import running_coordinator
from services.coordinator.settings import CoordinatorSettings
from services.keyserver import program as keyserver_program
from services.keyserver.service import ROLES as KEYSERVER_ROLES
from services.keyserver.settings import KeyServerSettings
from services.runtime.server import running_server

READY_S = 60.0


class Fleet(WholeFederation):
    """Several of every service. Killing a process is `kill`, by the id of the service."""

    def __init__(self, federation: Any, folder: Path, free_port: Callable[[], int]) -> None:
        super().__init__(federation, folder)
        self.processes: dict[str, ChildProcess] = {}
        self.leader = ""
        self._free_port = free_port
        self.stack.callback(self._stop)

    async def start_fleet(self, aggregators: int, keyservers: int, coordinators: Sequence[str] = ()) -> None:
        """Start the services other than the coordinator, which they find at one of these addresses."""
        self.addresses[Role.COORDINATOR] = ",".join(coordinators) or f"127.0.0.1:{self._free_port()}"
        found = [self._start_aggregator(f"agg-{number}") for number in range(1, aggregators + 1)]
        self.addresses[Role.AGGREGATOR] = ",".join(found)
        served = [await self._serve_keys(f"key-{number}") for number in range(1, keyservers + 1)]
        self.addresses[Role.KEYSERVER] = ",".join(served)
        await self.until_ready()

    def stub(self, role: Role, caller: Any) -> Any:
        """A stub of the first replica of a service, of the coordinator that leads where that was looked for."""
        address = self.leader if role is Role.COORDINATOR and self.leader else self.addresses[role].split(",")[0]
        channel = open_channel(address, caller, role)
        self.stack.push_async_callback(channel.close)
        return STUBS[role](channel)

    async def until_led(self, *, not_by: str = "") -> str:
        """Wait until a coordinator says that it drives the rounds, and give its address."""
        async with asyncio.timeout(READY_S):
            while True:
                for address in self.addresses[Role.COORDINATOR].split(","):
                    if address != not_by and (await self.coordinator_status(address)).leading:
                        self.leader = address
                        return address
                await asyncio.sleep(0.1)

    async def coordinator_status(self, address: str) -> Any:
        """What one replica says; nothing when it does not answer."""
        async with open_channel(address, self.operator, Role.COORDINATOR) as channel:
            try:
                return await STUBS[Role.COORDINATOR](channel).GetStatus(status_pb2.GetStatusRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return status_pb2.GetStatusResponse()

    async def serve_coordinator(self, **settings: Any) -> None:
        """One coordinator, in this process."""
        made = self.federation.settings(
            CoordinatorSettings, Role.COORDINATOR, "coord-1", **self.coordinator_settings(**settings)
        )
        self._coordinator_state = made.state_dir
        await self.stack.enter_async_context(running_coordinator(made))

    def coordinator_settings(self, **settings: Any) -> dict[str, Any]:
        """Of a coordinator beside these services."""
        return {
            "listen": self.addresses[Role.COORDINATOR],
            "aggregator": self.addresses[Role.AGGREGATOR],
            "keyserver": self.addresses[Role.KEYSERVER],
            "presence_grace_s": 0.5,
            "service_patience_s": 2.0,
            **settings,
        }

    def start_process(self, role: Role, service_id: str, settings: dict[str, Any]) -> ChildProcess:
        """A service as a process of its own."""
        folder = self._folder / service_id
        files = self.federation.issue(role, service_id)
        content = {
            "service_id": service_id,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "ca": str(files.ca),
            "crl": str(files.crl),
            "state_dir": str(folder / "state"),
            **settings,
        }
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(content))
        arguments = [sys.executable, "-m", f"services.{role.value}", "--config", str(config)]
        process = self.processes[service_id] = ChildProcess.start(service_id, arguments, folder / "log")
        return process

    def signal(self, service_id: str, number: signal.Signals) -> None:
        """Send a signal to a service, by its process id."""
        os.kill(self.processes[service_id].popen.pid, number)

    def id_of(self, address: str) -> str:
        """The id of the coordinator at an address."""
        return f"coord-{self.addresses[Role.COORDINATOR].split(',').index(address) + 1}"

    def log_of(self, service_id: str) -> str:
        """Everything that a process has logged."""
        return self.processes[service_id].log.read_text(errors="replace")

    async def until_logged(self, service_id: str, event: str) -> None:
        """Wait until a process has logged an event."""
        async with asyncio.timeout(READY_S):
            while event not in self.log_of(service_id):
                await asyncio.sleep(0.1)

    def exact_sessions(self, report: RoundReport) -> list[SessionReport]:
        """The committed sessions of a report, each checked against the plain sum of what its survivors recorded."""
        committed = [session for session in report.sessions if session.aggregate_sha256]
        for session in committed:
            vectors = self._recorded(session.session_id)
            assert len(vectors) == session.survivors
            assert plain_sum_sha256(vectors, RING_BITS) == session.aggregate_sha256.hex()
        return committed

    def check_total(self, report: RoundReport) -> None:
        """Check the digest of the total: the sum over all survivors of all committed sessions, in 64 bits."""
        uploads = [vector for session in self.exact_sessions(report) for vector in self._recorded(session.session_id)]
        total = np.sum(np.stack(uploads), axis=0, dtype=np.uint64).astype("<u8")
        assert hashlib.sha256(total.tobytes()).digest() == report.aggregate_sha256
        assert report.total_weight == int(total[0])
        assert len(uploads) == len(report.survivors) == int(total[1])

    def _recorded(self, session_id: bytes) -> list[Any]:
        vectors = []
        for path in sorted(self._plain.glob(f"{session_id.hex()}-*.npz")):
            with np.load(path) as record:
                vectors.append(record["vector"])
        return vectors

    def _start_aggregator(self, service_id: str) -> str:
        address = f"127.0.0.1:{self._free_port()}"
        settings = {"listen": address, "coordinator": self.addresses[Role.COORDINATOR]}
        self.start_process(Role.AGGREGATOR, service_id, settings)
        return address

    async def _serve_keys(self, service_id: str) -> str:
        settings = self.federation.settings(KeyServerSettings, Role.KEYSERVER, service_id)
        service = await self.stack.enter_async_context(keyserver_program.open_service(settings))
        server = running_server(
            settings,
            role=Role.KEYSERVER,
            roles_by_method=KEYSERVER_ROLES,
            add_servicers=partial(keyserver_program.add_servicers, service),
        )
        return await self.stack.enter_async_context(server)

    async def until_ready(self) -> None:
        """Wait until every process answers calls.

        Raises:
            ConfigError: one ended instead.
        """
        async with asyncio.timeout(READY_S):
            for process in self.processes.values():
                while "ready " not in process.log.read_text(errors="replace"):
                    process.check_alive()
                    await asyncio.sleep(0.05)

    def _stop(self) -> None:
        for process in self.processes.values():
            if process.alive:
                # A stopped process takes SIGTERM only once it goes on.
                os.kill(process.popen.pid, signal.SIGCONT)
        stop_all(list(self.processes.values()))


@asynccontextmanager
async def running_fleet(federation: Any, folder: Path, free_port: Callable[[], int]) -> AsyncIterator[Fleet]:
    """The fleet, and whoever joins inside the block."""
    fleet = Fleet(federation, folder, free_port)
    try:
        yield fleet
    finally:
        await fleet.close()
