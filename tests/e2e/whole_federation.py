"""A whole federation in one process: the three real services over mTLS, real sites, and one that misbehaves.

A misbehaving site is the SDK itself, behind stubs that change what it sends. So every refusal is seen where it matters:
by the site that gets it, in the report of the round, and in what the coordinator has stored.
"""

import asyncio
import hashlib
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cli.demo.exactness import plain_sum_sha256
from client_sdk import Array, EvaluationResult, SiteConfig, SiteObserver, Trainer, TrainingContext, TrainResult
from client_sdk.audit import EXCESS_SUFFIX
from client_sdk.connections import Services
from client_sdk.journal import SiteJournal
from client_sdk.participation import Participation
from fl_core.codec.tensors import manifest_of
from fl_core.errors import TacitError
from fl_core.rounds.machine import RoundState
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.report import RoundReport
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.peer import send_stream
from fl_core.transport.tls import Credentials, LiveCredentials
from fl_core.wire.chunks import tensor_writer
from fl_core.wire.convert import manifest_to_proto, report_from_proto
from fl_core.wire.v1 import coordinator_pb2, status_pb2
from fl_core.wire.v1.aggregator_pb2_grpc import AggregatorServiceStub
from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceStub
from fl_core.wire.v1.keyserver_pb2_grpc import KeyServerServiceStub
from services.aggregator import program as aggregator_program
from services.aggregator.service import ROLES as AGGREGATOR_ROLES
from services.aggregator.service import AggregatorService
from services.aggregator.settings import AggregatorSettings
from services.coordinator.program import running_coordinator
from services.coordinator.settings import CoordinatorSettings
from services.keyserver import program as keyserver_program
from services.keyserver.service import ROLES as KEYSERVER_ROLES
from services.keyserver.settings import KeyServerSettings
from services.runtime.server import running_server

RING_BITS = 24
MODEL: dict[str, Array] = {"weight": np.ones((40, 30), np.float32), "bias": np.zeros(30, np.float32)}
HONEST = ("alpha", "beta", "gamma", "delta")
BAD = "aaron"
"""Stands first in every roster, where its shares are the first that are used."""
GATE_PATIENCE_S = 20.0
PHASE = {"min_seconds": 10.0, "max_seconds": 20.0}
STUBS: dict[Role, Any] = {
    Role.COORDINATOR: CoordinatorServiceStub,
    Role.AGGREGATOR: AggregatorServiceStub,
    Role.KEYSERVER: KeyServerServiceStub,
}

Message = Any
Tamper = Callable[[RoundPlan, Message], Awaitable[Iterable[Message]]]
"""What goes out instead of a message that the SDK sends on one of its three streams."""

Committed = dict[tuple[object, ...], tuple[object, ...]]


class Steps:
    """Adds a constant to every tensor. In round 2 it may wait for `gate`, and hand over what `spoil` makes of it."""

    def __init__(
        self,
        step: float = 0.01,
        *,
        gate: threading.Event | None = None,
        spoil: Callable[[dict[str, Array]], dict[str, Array]] = lambda parameters: parameters,
    ) -> None:
        self.step = step
        self.gate = gate
        self.spoil = spoil

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        for tensor in parameters.values():
            tensor += self.step
        if context.round_id != 2:
            return TrainResult(parameters, 10)
        if self.gate is not None and not self.gate.wait(GATE_PATIENCE_S):
            raise AssertionError("nobody opened the gate")
        return TrainResult(self.spoil(parameters), 10)

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:
        raise AssertionError("no job here evaluates")


class Witness(SiteObserver):
    """What one site saw, and what was committed when it was first invited to round 2."""

    def __init__(self, committed: Callable[[], Committed]) -> None:
        self.plans: list[RoundPlan] = []
        self.shared: list[RoundPlan] = []
        self.errors: list[tuple[RoundPlan, TacitError]] = []
        self.before: Committed = {}
        self._committed = committed

    def invited(self, plan: RoundPlan) -> None:
        if plan.round_id == 2 and not self.before:
            self.before = self._committed()
        self.plans.append(plan)

    def keys_shared(self, plan: RoundPlan) -> None:
        self.shared.append(plan)

    def left(self, plan: RoundPlan, error: TacitError) -> None:
        self.errors.append((plan, error))


class _TamperedCall:
    def __init__(self, call: Any, tamper: Callable[[Message], Awaitable[Iterable[Message]]]) -> None:
        self._call = call
        self._tamper = tamper

    async def write(self, message: Message) -> None:
        for changed in await self._tamper(message):
            await self._call.write(changed)

    def __await__(self) -> Any:
        return self._call.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class _TamperedStub:
    def __init__(self, stub: Any, tamper: Callable[[Message], Awaitable[Iterable[Message]]]) -> None:
        self._stub = stub
        self._tamper = tamper

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        if name not in ("ExchangeKeys", "RevealShares", "UpdateParameters"):
            return method
        return lambda **options: _TamperedCall(method(**options), self._tamper)


class WholeFederation:
    """Services that run, and sites that join. One job at a time.

    Args:
        federation: the CA.
        folder: for everything that is written.
    """

    def __init__(self, federation: Any, folder: Path) -> None:
        self.federation = federation
        self.addresses: dict[Role, str] = {}
        self.witnesses: dict[str, Witness] = {}
        self.stack = AsyncExitStack()
        self._plain = folder / "plain"
        self._folder = folder
        self._sites: list[asyncio.Task[None]] = []
        self._coordinator_state: Path | None = None
        """Of the coordinator in this process, when there is one."""

    async def start(self, port: int, **coordinator_fields: object) -> None:
        """Start the services; the coordinator listens on `port`, with other settings where they are given."""
        coordinator = f"127.0.0.1:{port}"
        aggregator = self.federation.settings(AggregatorSettings, Role.AGGREGATOR, "agg-1", coordinator=coordinator)
        service = AggregatorService(aggregator, LiveCredentials(aggregator.credentials()))
        self.stack.callback(service.close)
        self.addresses[Role.AGGREGATOR] = await self.stack.enter_async_context(
            running_server(
                aggregator,
                role=Role.AGGREGATOR,
                roles_by_method=AGGREGATOR_ROLES,
                add_servicers=partial(aggregator_program.add_servicers, service),
            )
        )
        keys = self.federation.settings(KeyServerSettings, Role.KEYSERVER, "key-1")
        keyserver = await self.stack.enter_async_context(keyserver_program.open_service(keys))
        self.addresses[Role.KEYSERVER] = await self.stack.enter_async_context(
            running_server(
                keys,
                role=Role.KEYSERVER,
                roles_by_method=KEYSERVER_ROLES,
                add_servicers=partial(keyserver_program.add_servicers, keyserver),
            )
        )
        settings = self.federation.settings(
            CoordinatorSettings,
            Role.COORDINATOR,
            "coord-1",
            listen=coordinator,
            aggregator=self.addresses[Role.AGGREGATOR],
            keyserver=self.addresses[Role.KEYSERVER],
            **{"presence_grace_s": 0.2, **coordinator_fields},
        )
        self._coordinator_state = settings.state_dir
        self.addresses[Role.COORDINATOR] = await self.stack.enter_async_context(running_coordinator(settings))

    async def close(self) -> None:
        """Stop the sites, then the services."""
        for task in self._sites:
            task.cancel()
        outcomes = await asyncio.gather(*self._sites, return_exceptions=True)
        await self.stack.aclose()
        raised = [error for error in outcomes if isinstance(error, Exception)]
        assert not raised, f"a site ended by itself: {raised}"

    def stub(self, role: Role, caller: Credentials) -> Any:
        """A stub of one service for a caller."""
        channel = open_channel(self.addresses[role], caller, role)
        self.stack.push_async_callback(channel.close)
        return STUBS[role](channel)

    def config(self, client_id: str) -> SiteConfig:
        """The configuration of a site."""
        files = self.federation.issue(Role.SITE, client_id)
        return SiteConfig(
            coordinator=self.addresses[Role.COORDINATOR].split(","),
            certificate=files.certificate,
            key=files.key,
            ca=files.ca,
            crl=files.crl,
            state_dir=self._folder / f"state-{client_id}",
            record_plain_updates=self._plain,
        )

    def join(
        self,
        client_id: str,
        trainer: Trainer | None = None,
        tamper: Tamper | None = None,
        rewire: Callable[[Participation], None] = lambda _: None,
    ) -> Witness:
        """Let a site take part; `tamper` changes what it sends, `rewire` may change anything before it begins."""
        witness = self.witnesses[client_id] = Witness(self.committed)
        taking_part = self._take_part(client_id, trainer or Steps(), tamper, witness, rewire)
        self._sites.append(asyncio.create_task(taking_part))
        return witness

    async def run_job(self, rounds: int = 2, **fields: Any) -> list[RoundReport]:
        """Run one job over every site that joined; its reports."""
        return await self.watch(await self.submit(rounds, **fields))

    async def submit(self, rounds: int = 2, *, model: dict[str, Array] = MODEL, **fields: object) -> str:
        """Submit one job over every site that joined."""
        size = len(self.witnesses)
        spec = {
            "name": "job",
            "rounds": rounds,
            "aggregation": "secagg",
            "cohort": {"min": size, "max": size},
            "codec": {"clip": 1.0, "ring_bits": RING_BITS},
            "max_weight": 100,
            "chunk_bytes": 1024,
            "phases": dict.fromkeys(
                ("recruiting", "advertising", "sharing", "uploading", "signing", "revealing"), PHASE
            ),
            "evaluate_every": 0,
            **fields,
        }
        manifest = manifest_of(model)
        writer = tensor_writer(model, manifest)
        header = coordinator_pb2.JobHeader(
            spec_json=json.dumps(spec), manifest=manifest_to_proto(manifest), stream=writer.header
        )
        parts = [coordinator_pb2.SubmitJobRequest(header=header)]
        parts += [coordinator_pb2.SubmitJobRequest(chunk=chunk) for chunk in writer.chunks()]
        parts += [coordinator_pb2.SubmitJobRequest(trailer=writer.trailer)]

        async def stream() -> AsyncIterator[Any]:
            for part in parts:
                yield part

        return str((await send_stream(self._operator().SubmitJob, stream(), timeout_s=30)).job_id)

    async def watch(self, job_id: str, patience_s: float = 60.0) -> list[RoundReport]:
        """The reports of a job, once it has completed."""
        reports: list[RoundReport] = []
        status = ""
        async with asyncio.timeout(patience_s):
            async for event in self._operator().WatchJob(coordinator_pb2.WatchJobRequest(job_id=job_id)):
                if event.HasField("report"):
                    reports.append(report_from_proto(event.report))
                else:
                    status = event.status.status
        assert status == "completed", reports
        return reports

    def errors_of(self, client_id: str) -> list[TacitError]:
        """What a site was told when it left an attempt; in round 1 nobody has a reason to."""
        witness = self.witnesses[client_id]
        assert all(plan.round_id == 2 for plan, _ in witness.errors)
        return [error for _, error in witness.errors]

    async def until_gated(self) -> RoundPlan:
        """Wait until every honest site shared its keys for round 2, and is held back by the gate of its trainer."""
        honest = [self.witnesses[name] for name in HONEST]
        async with asyncio.timeout(20):
            while not all(witness.shared and witness.shared[-1].round_id == 2 for witness in honest):
                await asyncio.sleep(0.01)
        return honest[0].shared[-1]

    async def until_answered(self, plan: RoundPlan, count: int) -> None:
        """Wait until so many sites answered in the phase in which the key server is."""
        stub = self.stub(Role.KEYSERVER, self.operator)
        async with asyncio.timeout(20):
            while True:
                status = await stub.GetStatus(status_pb2.GetStatusRequest())
                counts = {session.session_id: session.counts for session in status.sessions}
                if counts[plan.session_id]["answered"] >= count:
                    return
                await asyncio.sleep(0.01)

    @property
    def operator(self) -> Credentials:
        """Who submits jobs."""
        credentials: Credentials = self.federation.credentials(Role.OPERATOR, "olga")
        return credentials

    def committed(self) -> Committed:
        """Everything that is committed: the chain of versions with their blobs, and the sums that they came from."""
        kept: Committed = {}
        if self._coordinator_state is None:
            return kept
        with closing(sqlite3.connect(self._coordinator_state / "coordinator.db")) as database:
            versions = database.execute(
                "SELECT job_id, version, parent_version, model_digest, total_bytes, blob_name FROM models"
            )
            for job_id, version, *facts, blob in versions:
                kept["model", job_id, version] = (*facts, blob, self._blob(blob))
            rounds = database.execute(
                "SELECT job_id, round_id, attempt, model_version, total_weight, aggregate_sha256"
                " FROM attempts WHERE state = 'committed'"
            )
            for job_id, round_id, *facts in rounds:
                kept["round", job_id, round_id] = tuple(facts)
        return kept

    def check_kept(self, before: Committed) -> None:
        """Check that what was committed `before` is as it was, and that the versions since then continue its chain."""
        assert before
        after = self.committed()
        assert before.items() <= after.items()
        versions = {key[2]: facts[0] for key, facts in after.items() if key[0] == "model"}
        assert versions == {version: version - 1 if version > 1 else None for version in range(1, len(versions) + 1)}

    def check_exact(self, report: RoundReport) -> None:
        """Check that the sum of a committed round is the plain sum of what its survivors recorded."""
        assert report.state is RoundState.COMMITTED, report
        vectors = [self._plain_update(report, client_id) for client_id in report.survivors]
        assert plain_sum_sha256(vectors, RING_BITS) == report.aggregate_sha256.hex()

    async def _take_part(
        self,
        client_id: str,
        trainer: Trainer,
        tamper: Tamper | None,
        witness: Witness,
        rewire: Callable[[Participation], None],
    ) -> None:
        config = self.config(client_id)
        credentials = Credentials.from_files(config.certificate, config.key, config.ca, config.crl)
        with SiteJournal(config.state_dir) as journal:
            participation = Participation(config, credentials, trainer, journal, witness)
            if tamper is not None:
                _tamper_with(participation, tamper)
            rewire(participation)
            await participation.run()

    def _operator(self) -> Any:
        return self.stub(Role.COORDINATOR, self.operator)

    def _blob(self, name: str) -> str:
        assert self._coordinator_state is not None
        return hashlib.sha256((self._coordinator_state / "blobs" / name).read_bytes()).hexdigest()

    def _plain_update(self, report: RoundReport, client_id: str) -> Any:
        wanted = (report.round_id, report.attempt, report.invited.index(client_id))
        for path in self._plain.glob("*.npz"):
            with np.load(path) as record:
                if (int(record["round_id"]), int(record["attempt"]), int(record["index"])) == wanted:
                    return record["vector"] - _excess_beside(path)
        raise AssertionError(f"{client_id} is among the survivors and recorded nothing")


def _excess_beside(path: Path) -> Any:
    """The noise that this site gave back, where it did."""
    beside = path.with_suffix(EXCESS_SUFFIX)
    if not beside.exists():
        return 0
    with np.load(beside) as record:
        return record["vector"]


def _tamper_with(participation: Participation, tamper: Tamper) -> None:
    connections: Any = participation._connections
    honest = connections.services

    async def services(plan: RoundPlan) -> Services:
        found = await honest(plan)
        aggregator: Any = _TamperedStub(found.aggregator, partial(tamper, plan))
        keyserver: Any = _TamperedStub(found.keyserver, partial(tamper, plan))
        return Services(aggregator, keyserver)

    connections.services = services


@asynccontextmanager
async def running_federation(
    federation: Any, folder: Path, port: int, **coordinator_fields: object
) -> AsyncIterator[WholeFederation]:
    """The services, and whoever joins inside the block."""
    whole = WholeFederation(federation, folder)
    try:
        await whole.start(port, **coordinator_fields)
        yield whole
    finally:
        await whole.close()
