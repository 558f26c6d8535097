"""Every RPC of the three services as a target: the real handlers, in this process, behind a call that never was.

The bytes of the fuzzer choose what is changed in a valid call: fields of its messages, and which of them come, in
which order and how often. The handlers run in one event loop with real sessions, stores and settings.
"""

import asyncio
import atexit
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from fl_core.codec.packing import packed_bytes
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.rounds.job import JobSpec
from fl_core.rounds.plan import Aggregation, ClientId, JobId, RosterEntry, RoundPlan, ServiceEndpoint
from fl_core.rounds.planner import build_plan
from fl_core.secagg.client import advertise
from fl_core.transport.authority import CertificateAuthority
from fl_core.transport.identity import Role, RosterTrust
from fl_core.transport.tls import Credentials, LiveCredentials
from fl_core.wire import convert
from fl_core.wire.chunks import ChunkWriter
from fl_core.wire.v1 import aggregator_pb2, coordinator_pb2, keyserver_pb2, tensors_pb2
from services.aggregator import service as aggregator
from services.aggregator.settings import AggregatorSettings
from services.coordinator import service as coordinator
from services.coordinator.program import make_driver, open_resources
from services.coordinator.settings import CoordinatorSettings
from services.keyserver import service as keyserver
from services.keyserver.journal import UnmaskJournal
from services.keyserver.settings import KeyServerSettings
from services.runtime.interceptors import known_error
from services.runtime.settings import ServiceSettings
from tests.fuzz.choices import Choices, mutate
from tests.fuzz.seeds import messages_by_name

PATIENCE_S = 0.03
"""What a handler may wait for the rest of the world, which never comes."""
LEASE_S = 3600.0
"""Between two calls nobody keeps the lease."""
MOST_RESPONSES = 8
CALLS_PER_SESSION = 200
MANIFEST = TensorManifest((TensorSpec("weight", "float32", (40,)),))
SITES = 5
NAMES = {
    Role.COORDINATOR: "coordinator-1",
    Role.AGGREGATOR: "aggregator-1",
    Role.KEYSERVER: "keyserver-1",
    Role.OPERATOR: "operator-1",
    Role.SITE: "site-0",
}
SERVICES = (coordinator, aggregator, keyserver)


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of a service."""

    service: str
    method: str
    roles: frozenset[Role]

    @property
    def name(self) -> str:
        """For the command line."""
        return f"rpc/{self.method}@{self.service}"


def rpcs() -> Iterator[Rpc]:
    """Every method of every service, as their role tables have them."""
    for module in SERVICES:
        for path, roles in module.ROLES.items():
            yield Rpc(module.__name__.split(".")[1], path.rsplit("/", 1)[1], roles)


class Call:
    """What a handler sees of a call."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate

    def auth_context(self) -> dict[str, list[bytes]]:
        """As gRPC gives it after the handshake."""
        return {"x509_pem_cert": [self._certificate], "ssl_tls_version": [b"TLSv1.3"]}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """What came with the call: nothing."""
        return ()

    def peer(self) -> str:
        """Where the call comes from."""
        return "ipv4:127.0.0.1:1"

    async def send_initial_metadata(self, _metadata: object) -> None:
        """Whoever waits for it is not there."""


class Bench:
    """The three services with open sessions, in an event loop of their own."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tacit-fuzz-services-"))
        self._loop = asyncio.new_event_loop()
        self._room = AsyncExitStack()
        self._authority = CertificateAuthority.create(self._folder / "ca", "fuzz")
        self._seeds = messages_by_name()
        self._plans: tuple[RoundPlan, ...] = ()
        self._advertisement: Message | None = None
        self._calls = 0
        self._attempt = 1
        self._job_id = JobId("")
        self._services: dict[str, Any] = {}
        self._is_ready, self._is_over = asyncio.Event(), asyncio.Event()
        # One task opens and closes everything, as asyncio's groups of tasks ask for.
        self._life = self._loop.create_task(self._live())
        self._loop.run_until_complete(self._begun())
        self._job_id = self._loop.run_until_complete(self._submit())
        atexit.register(self.close)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed: then it answers nothing any more."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Stop everything and leave nothing behind."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._stop())
            self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, rpc: Rpc, data: bytes) -> None:
        """One call.

        Raises:
            Exception: whatever the handler raised that is no error of ours.
        """
        self._loop.run_until_complete(self._run(rpc, Choices(data)))

    def held(self) -> dict[str, int]:
        """Streams that are held open after the calls, by service; there must be none."""
        return {name: len(service._streams._open) for name, service in self._services.items()}

    async def _run(self, rpc: Rpc, choices: Choices) -> None:
        if self._calls % CALLS_PER_SESSION == 0:
            await self._open_sessions()
        self._calls += 1
        role = choices.pick(sorted(rpc.roles))
        plan = choices.pick(self._plans)
        context = Call(self._credentials(role, NAMES[role]).certificate_path.read_bytes())
        handler = getattr(self._services[rpc.service], rpc.method)
        messages, streams = self._messages(rpc, plan, choices)
        argument = _stream(messages) if streams else messages[0]
        try:
            async with asyncio.timeout(PATIENCE_S):
                await _answer(handler(argument, context))
        except TimeoutError:
            return
        except Exception as error:
            if known_error(error) is None:
                raise

    def _messages(self, rpc: Rpc, plan: RoundPlan, choices: Choices) -> tuple[list[Message], bool]:
        descriptor = _descriptor(rpc)
        kind: type[Message] = descriptor.input_type._concrete_class
        if rpc.service == "coordinator" and choices.below(4):
            plan = replace(plan, job_id=self._job_id)
        valid = self._valid(kind, plan) if descriptor.client_streaming else [self._filled(kind(), plan)]
        if not descriptor.client_streaming:
            if choices.below(6):
                mutate(valid[0], choices)
            return valid, False
        for _ in range(choices.below(4)):
            _disturb(valid, choices)
        return valid, True

    def _valid(self, kind: type[Message], plan: RoundPlan) -> list[Message]:
        """The messages of one whole stream."""
        parts = [field.name for field in kind.DESCRIPTOR.oneofs[0].fields]
        if parts == ["header", "chunk", "trailer"]:
            return self._chunked(kind, plan)
        messages = []
        for part in parts:
            message = kind()
            if kind.DESCRIPTOR.fields_by_name[part].message_type is None:
                setattr(message, part, bytes(64))
                messages.append(message)
                continue
            target = getattr(message, part)
            if part == "advertisement" and self._advertisement is not None:
                target.CopyFrom(self._advertisement)
            else:
                self._filled(target, plan)
            target.SetInParent()
            messages.append(message)
        return messages

    def _chunked(self, kind: type[Message], plan: RoundPlan) -> list[Message]:
        is_model = "spec_json" in kind.DESCRIPTOR.fields_by_name["header"].message_type.fields_by_name
        size = MANIFEST.nbytes if is_model else packed_bytes(plan.length, plan.codec.ring_bits)
        writer = ChunkWriter(bytes(size), chunk_bytes=plan.chunk_bytes)
        first: Any = kind()
        self._filled(first.header, plan)
        first.header.stream.CopyFrom(writer.header)
        chunks = [kind(chunk=chunk) for chunk in writer.chunks()]
        return [first, *chunks, kind(trailer=writer.trailer)]

    def _filled(self, message: Any, plan: RoundPlan) -> Message:
        """A message in which everything that names a session, a job or a site is right."""
        known: dict[str, Any] = {
            "session_id": plan.session_id,
            "job_id": plan.job_id,
            "round_id": plan.round_id,
            "attempt": plan.attempt,
            "model_version": plan.model_version,
            "index": 0,
            "spec_json": JOB,
        }
        for field in message.DESCRIPTOR.fields:
            if field.message_type is None:
                if field.name in known:
                    setattr(message, field.name, known[field.name])
                elif field.name in ("survivors", "eligible", "indices"):
                    getattr(message, field.name).extend(range(SITES))
                continue
            self._fill_part(message, field, plan)
        return message

    def _fill_part(self, message: Any, field: Any, plan: RoundPlan) -> None:
        name = field.message_type.full_name
        if name == "fl_core.wire.v1.RoundPlan":
            getattr(message, field.name).CopyFrom(convert.plan_to_proto(plan))
        elif name == tensors_pb2.TensorManifest.DESCRIPTOR.full_name:
            getattr(message, field.name).CopyFrom(convert.manifest_to_proto(MANIFEST))
        elif (
            name in self._seeds
            and field.containing_oneof is None
            and not isinstance(getattr(message, field.name), list)
        ):
            with suppress(AttributeError, TypeError):
                getattr(message, field.name).CopyFrom(self._seeds[name])

    async def _live(self) -> None:
        async with self._room:
            self._services = await self._start()
            self._is_ready.set()
            await self._is_over.wait()

    async def _begun(self) -> None:
        ready = asyncio.create_task(self._is_ready.wait())
        await asyncio.wait({ready, self._life}, return_when=asyncio.FIRST_COMPLETED)
        if self._life.done():
            ready.cancel()
            self._life.result()

    async def _start(self) -> dict[str, Any]:
        live = {role: LiveCredentials(self._credentials(role, NAMES[role])) for role in NAMES}
        adding = self._settings(AggregatorSettings, Role.AGGREGATOR, coordinator="127.0.0.1:1")
        keys = self._settings(KeyServerSettings, Role.KEYSERVER)
        steering = self._settings(
            CoordinatorSettings, Role.COORDINATOR, aggregator="127.0.0.1:1", keyserver="127.0.0.1:1", lease_s=LEASE_S
        )
        journal = await UnmaskJournal.open(keys.journal_url)
        self._room.push_async_callback(journal.close)
        resources = await self._room.enter_async_context(open_resources(steering))
        sums = aggregator.AggregatorService(adding, live[Role.AGGREGATOR])
        self._room.callback(sums.close)
        exchange = keyserver.KeyServerService(keys, live[Role.KEYSERVER], journal)
        self._room.push_async_callback(exchange.close)
        driver = make_driver(steering, resources)
        leading = resources.leadership.driving(_nothing, lambda _error: None)
        await self._room.enter_async_context(leading)
        return {
            "aggregator": sums,
            "keyserver": exchange,
            "coordinator": coordinator.CoordinatorService(steering, resources, driver),
        }

    async def _submit(self) -> JobId:
        """A job with a model, so that there is something to ask for. Nobody runs it."""
        caller = Call(self._credentials(Role.OPERATOR, NAMES[Role.OPERATOR]).certificate_path.read_bytes())
        messages = self._valid(coordinator_pb2.SubmitJobRequest, self._plan())
        answer = await self._services["coordinator"].SubmitJob(_stream(messages), caller)
        return JobId(answer.job_id)

    async def _stop(self) -> None:
        self._is_over.set()
        await self._life
        await self._loop.shutdown_default_executor()

    async def _open_sessions(self) -> None:
        """Fresh sessions, one secure and one plain, in which everybody may upload."""
        self._attempt += 1
        secure = self._plan()
        plain = replace(secure, aggregation=Aggregation.PLAIN, keyserver=None, job_id=JobId("plain"))
        self._plans = (secure, plain)
        caller = Call(self._credentials(Role.COORDINATOR, NAMES[Role.COORDINATOR]).certificate_path.read_bytes())
        for plan in self._plans:
            wire = convert.plan_to_proto(plan)
            sums: Any = self._services["aggregator"]
            await sums.OpenAggregation(aggregator_pb2.OpenAggregationRequest(plan=wire), caller)
            everybody = aggregator_pb2.AdmitUploadsRequest(session_id=plan.session_id, eligible=range(SITES))
            await sums.AdmitUploads(everybody, caller)
        request = keyserver_pb2.OpenExchangeRequest(plan=convert.plan_to_proto(secure))
        await self._services["keyserver"].OpenExchange(request, caller)
        credentials = self._credentials(Role.SITE, NAMES[Role.SITE])
        trust = RosterTrust(secure.roster, credentials.trust, datetime.now(UTC))
        _, keys = advertise(secure.session_context(), 0, credentials.signer(), trust, os.urandom)
        self._advertisement = convert.advertisement_to_proto(keys)

    def _plan(self) -> RoundPlan:
        names = [f"site-{number}" for number in range(SITES)]
        roster = [
            RosterEntry(ClientId(name), self._credentials(Role.SITE, name).identity.certificate_sha256)
            for name in names
        ]
        return build_plan(
            JobSpec(name="fuzz", rounds=1, chunk_bytes=64),
            job_id=JobId("secure"),
            round_id=1,
            attempt=self._attempt,
            model_version=1,
            model_digest=bytes(32),
            manifest=MANIFEST,
            roster=tuple(roster),
            aggregator=self._endpoint(Role.AGGREGATOR),
            keyserver=self._endpoint(Role.KEYSERVER),
            graph_commitment=bytes(32),
        )

    def _endpoint(self, role: Role) -> ServiceEndpoint:
        identity = self._credentials(role, NAMES[role]).identity
        return ServiceEndpoint(identity.id, "127.0.0.1:1", identity.certificate_sha256)

    def _credentials(self, role: Role, subject_id: str) -> Credentials:
        folder = self._folder / f"{role.value}-{subject_id}"
        if not folder.exists():
            self._authority.issue(role, subject_id, folder)
        return Credentials.from_files(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem")

    def _settings(self, kind: type[Any], role: Role, **fields: object) -> Any:
        folder = self._credentials(role, NAMES[role]).certificate_path.parent
        given: dict[str, object] = {
            "service_id": NAMES[role],
            "listen": "127.0.0.1:0",
            "certificate": folder / "certificate.pem",
            "key": folder / "key.pem",
            "ca": folder / "ca.pem",
            "state_dir": folder / "state",
        }
        settings: ServiceSettings = kind(**{**given, **fields})
        settings.state_dir.mkdir(exist_ok=True)
        return settings


JOB = json.dumps({"name": "fuzz", "rounds": 1, "cohort": {"min": 3, "max": 5}})
_bench: Bench | None = None


def bench() -> Bench:
    """The services of this process, started when they are first needed."""
    global _bench
    if _bench is None or _bench.is_closed:
        # A test run that spreads a module over workers may set it up a second time.
        _bench = Bench()
    return _bench


def parser(rpc: Rpc) -> Callable[[bytes], None]:
    """One RPC as a function of bytes."""
    return lambda data: bench().run(rpc, data)


def _descriptor(rpc: Rpc) -> Any:
    from google.protobuf import descriptor_pool

    (path,) = (
        path
        for module in SERVICES
        for path in module.ROLES
        if path.endswith(f"/{rpc.method}") and module.__name__.split(".")[1] == rpc.service
    )
    return descriptor_pool.Default().FindServiceByName(path.split("/")[1]).FindMethodByName(rpc.method)


def _disturb(messages: list[Message], choices: Choices) -> None:
    if not messages:
        return
    place = choices.below(len(messages))
    match choices.below(5):
        case 0:
            del messages[place]
        case 1:
            messages.insert(place, messages[choices.below(len(messages))])
        case 2:
            messages[place], messages[-1] = messages[-1], messages[place]
        case _:
            changed = type(messages[place])()
            changed.CopyFrom(messages[place])
            mutate(changed, choices)
            messages[place] = changed


async def _nothing() -> None:
    """Drives no rounds, for as long as it is left to."""
    await asyncio.Event().wait()


async def _stream(messages: list[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


async def _answer(made: Awaitable[Any] | AsyncIterator[Any]) -> None:
    """Wait for an answer, or read the first few of a stream and hang up."""
    if not hasattr(made, "__anext__"):
        await made
        return
    stream: Any = made
    try:
        for _ in range(MOST_RESPONSES):
            if await anext(stream, None) is None:
                return
    finally:
        await stream.aclose()
