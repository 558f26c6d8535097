"""Every parser of what comes from outside, as a function of bytes that may raise only errors of ours.

A target takes any bytes. Those of messages come in two forms: `NAME` parses the bytes as they are, `NAME/mutated`
takes them as instructions for changing a valid message, which gets past the first checks.
"""

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message

import fl_core.wire
from cli.job_files import read_job
from cli.model_files import load_model
from cli.operator import OperatorConfig
from client_sdk import SiteConfig
from client_sdk.journal import SiteJournal
from client_sdk.spool import UpdateSpool
from client_sdk.trained import Task, TrainedUpdate
from fl_core.codec.packing import unpack
from fl_core.crypto import signing
from fl_core.crypto.shamir import parse_shares
from fl_core.errors import TacitError
from fl_core.rounds.job import job_from_json
from fl_core.secagg.transcript import transcript_from_json, verify_transcript
from fl_core.transport import errors as wire_errors
from fl_core.transport.authority import CertificateAuthority, parse_request, read_issued
from fl_core.transport.identity import TrustStore, identity_of
from fl_core.transport.tls import Credentials
from fl_core.wire.chunks import ChunkReader, ChunkWriter, TensorReader, stream_parts
from fl_core.wire.transcripts import check_plan
from fl_core.wire.v1 import round_pb2, tensors_pb2
from services.aggregator.settings import AggregatorSettings
from services.coordinator.settings import CoordinatorSettings
from services.coordinator.tensor_files import decode_header
from services.keyserver.settings import KeyServerSettings
from tests.fuzz import handlers
from tests.fuzz.choices import Choices, mutate, mutate_json
from tests.fuzz.seeds import MANIFEST, bodies, messages_by_name, signed
from tests.wire.test_transcript_plans import bodies as session_bodies
from tests.wire.test_transcript_plans import transcript

STREAM_BYTES = MANIFEST.nbytes


@dataclass(frozen=True, slots=True)
class Target:
    """One parser.

    Args:
        name: for the command line and for tests.
        parse: takes any bytes; raises nothing but what `run` lets pass.
        seeds: inputs that the parser takes.
    """

    name: str
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...] = ()

    def run(self, data: bytes) -> None:
        """Parse; an error of ours is an answer like any other, everything else is a finding.

        Raises:
            Exception: whatever else the parser raised.
        """
        with suppress(TacitError, DecodeError):
            self.parse(data)


def targets() -> dict[str, Target]:
    """Every target by name."""
    found = [*_conversions(), *_streams(), *_texts(), *_transcripts(), *_files(), *_rpcs()]
    return {target.name: target for target in found}


def conversions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Every `*_from_proto` of `fl_core.wire` by its name, wherever it is defined."""
    for module in iter_modules(fl_core.wire.__path__, "fl_core.wire."):
        if module.ispkg:
            continue
        for name, member in vars(import_module(module.name)).items():
            is_own = inspect.isfunction(member) and member.__module__ == module.name
            if is_own and name.endswith("_from_proto") and not name.startswith("_"):
                yield name, member


def _conversions() -> Iterator[Target]:
    seeds = messages_by_name()
    for name, convert in conversions():
        kinds = _arguments(convert)
        message_kind = kinds[0] if inspect.isclass(kinds[0]) and issubclass(kinds[0], Message) else None
        if message_kind is None:
            yield Target(name, _scalar_parser(convert, kinds))
            continue
        rest = [_extra(kind) for kind in kinds[1:]]
        seed = seeds.get(message_kind.DESCRIPTOR.full_name, message_kind())
        yield Target(name, _raw_parser(convert, message_kind, rest), (seed.SerializeToString(deterministic=True),))
        yield Target(f"{name}/mutated", _mutating_parser(convert, seed, rest))


def _arguments(convert: Callable[..., object]) -> list[Any]:
    hints = get_type_hints(convert)
    needed = [
        name
        for name, parameter in inspect.signature(convert).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    return [hints[name] for name in needed]


def _extra(kind: Any) -> object:
    """A fixed value for an argument behind the message, such as the name of a field."""
    return {str: "site-1", int: 5, bytes: b"s" * 16}[kind]


def _raw_parser(convert: Callable[..., object], kind: type[Message], rest: list[object]) -> Callable[[bytes], object]:
    return lambda data: convert(kind.FromString(data), *rest)


def _mutating_parser(convert: Callable[..., object], seed: Message, rest: list[object]) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        message = type(seed)()
        message.CopyFrom(seed)
        mutate(message, Choices(data))
        return convert(message, *rest)

    return parse


def _scalar_parser(convert: Callable[..., object], kinds: list[Any]) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        choices = Choices(data)
        return convert(*[_value(kind, choices) for kind in kinds])

    return parse


def _value(kind: Any, choices: Choices) -> object:
    if kind is str:
        return "a field"
    if kind is int:
        return choices.integer(-(2**31), 2**32 - 1)
    if kind is bytes:
        return choices.blob()
    origin, arguments = get_origin(kind), get_args(kind)
    if inspect.isclass(origin) and issubclass(Mapping, origin) and round_pb2.Scalar in arguments:
        spec = round_pb2.RoundPlan()
        mutate(spec, choices)
        return spec.training
    if inspect.isclass(origin) and issubclass(list, origin) and arguments == (int,):
        return [choices.integer(0, 2**32 - 1) for _ in range(choices.below(40))]
    raise NotImplementedError(f"teach the fuzzer to make a {kind}")


def _rpcs() -> Iterator[Target]:
    for rpc in handlers.rpcs():
        yield Target(rpc.name, handlers.parser(rpc))


def _streams() -> Iterator[Target]:
    yield Target("chunk_stream", _read_chunks)
    yield Target("tensor_stream", _read_tensors)
    yield Target("packed_vector", lambda data: unpack(data[2:], *_two(data)))
    yield Target("shamir_shares", lambda data: parse_shares([data[start : start + 36] for start in range(0, 360, 36)]))


def _two(data: bytes) -> tuple[int, int]:
    choices = Choices(data[:2])
    return choices.below(64), choices.below(40)


def _stream(data: bytes) -> list[Any]:
    """A stream of a small model whose parts were changed, dropped, doubled and exchanged."""
    choices = Choices(data)
    writer = ChunkWriter(choices.take(STREAM_BYTES), chunk_bytes=choices.pick((8, 16, STREAM_BYTES)))
    parts: list[Any] = list(stream_parts(writer))
    for _ in range(choices.below(4)):
        place = choices.below(len(parts))
        match choices.below(4):
            case 0 if len(parts) > 1:
                del parts[place]
            case 1:
                parts.insert(place, parts[choices.below(len(parts))])
            case 2:
                parts[place], parts[0] = parts[0], parts[place]
            case _:
                copy = type(parts[place])()
                copy.CopyFrom(parts[place])
                mutate(copy, choices)
                parts[place] = copy
    return parts


def _read_chunks(data: bytes) -> None:
    header, *parts = _stream(data)
    _feed(ChunkReader(_as(header, tensors_pb2.StreamHeader), max_bytes=4096), parts)


def _read_tensors(data: bytes) -> None:
    header, *parts = _stream(data)
    _feed(TensorReader(MANIFEST, _as(header, tensors_pb2.StreamHeader), max_bytes=4096), parts)


def _feed(reader: ChunkReader | TensorReader, parts: list[Any]) -> None:
    for part in parts:
        if isinstance(part, tensors_pb2.StreamTrailer):
            reader.finish(part)
        else:
            reader.feed(_as(part, tensors_pb2.Chunk))
    reader.end()


def _as(message: Message, kind: type[Any]) -> Any:
    """The bytes of a message read as another kind, which is what a wrong message looks like on the wire."""
    return message if isinstance(message, kind) else kind.FromString(message.SerializeToString())


def _texts() -> Iterator[Target]:
    job = json.dumps({"name": "fuzz", "rounds": 3, "codec": {"clip": 1.0}, "cohort": {"min": 3, "max": 9}})
    yield Target("job_json", lambda data: job_from_json(data.decode(errors="replace")), (job.encode(),))
    error = json.dumps({"code": "stale_message", "what": "late", "expected": "now", "got": "then", "fix": "wait"})
    yield Target("error_metadata", wire_errors._parse, (error.encode(),))
    yield Target("safetensors_header", lambda data: decode_header(BytesIO(data).read), (_safetensors(),))


def _transcripts() -> Iterator[Target]:
    honest = signed(bodies()).to_json()
    yield Target("transcript", lambda data: verify_transcript(transcript_from_json(data), _anybody), (honest,))
    yield Target("transcript/mutated", _verify_signed_nonsense)
    yield Target("transcript/plan", _check_a_plan_that_was_bent)


def _verify_signed_nonsense(data: bytes) -> None:
    """Services may sign what they like, so what stands behind a good signature is fuzzed too."""
    choices = Choices(data)
    stated = bodies()
    for _ in range(1 + choices.below(3)):
        kind = choices.pick(sorted(stated))
        changed = mutate_json(stated[kind], choices)
        stated[kind] = changed if isinstance(changed, dict) else {"session": changed}
    try:
        transcript = signed(stated)
    except ValueError:
        # A number without end, which our own JSON cannot say.
        return
    verify_transcript(transcript_from_json(transcript.to_json()), _anybody)


def _check_a_plan_that_was_bent(data: bytes) -> None:
    """A real session on a sparse graph, of which the plan or any statement was changed before it was signed."""
    choices = Choices(data)
    stated = session_bodies()
    plan = round_pb2.RoundPlan.FromString(bytes.fromhex(stated["opened"]["plan"]))
    if not choices.below(3):
        mutate(plan, choices)
        stated["opened"]["plan"] = plan.SerializeToString().hex()
    kind = choices.pick(sorted(stated))
    changed = mutate_json(stated[kind], choices)
    stated[kind] = changed if isinstance(changed, dict) else {}
    try:
        bent = transcript(stated)
    except ValueError:
        return
    check_plan(bent)


def _anybody(_certificate: bytes, _role: str, _at: int) -> None:
    return


def _safetensors() -> bytes:
    entries = {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def _files() -> Iterator[Target]:
    pem = _pem_files()
    ca, certificate = pem["ca.pem"], pem["certificate.pem"]
    yield Target("certificate", identity_of, (certificate,))
    yield Target("signing_certificate", signing._public_key, (_der_of(certificate),))
    yield Target("signature", lambda data: signing.verify_signature(_der_of(certificate), b"message", data))
    yield Target("trust", lambda data: TrustStore(data), (ca,))
    yield Target("revocations", lambda data: TrustStore(ca, data), (pem["crl.pem"],))
    yield Target("certificate_request", parse_request, (pem["request.pem"],))
    yield Target("private_key", lambda data: _with_files(Credentials.from_files, {**pem, "key.pem": data}, _OWN))
    yield Target("own_certificate", lambda d: _with_files(Credentials.from_files, {**pem, "certificate.pem": d}, _OWN))
    yield Target("ca_folder", lambda data: _with_files(lambda path: read_issued(path.parent), {**pem, "ca.pem": data}))
    job = b"name: fuzz\nrounds: 2\nmodel: init.safetensors\ncodec: {clip: 0.5}\ncohort: {min: 3, max: 4}\n"
    yield Target(
        "job_yaml",
        lambda data: _with_files(read_job, {"job.yaml": data, "init.safetensors": _safetensors()}, ("job.yaml",)),
        (job,),
    )
    yield Target(
        "model_file",
        lambda data: _with_files(load_model, {"m.safetensors": data}, ("m.safetensors",)),
        (_safetensors(),),
    )
    for kind, example in _CONFIGS.items():
        yield Target(f"{kind.__name__}_yaml", _config_parser(kind), (example.encode(),))
    yield Target("kept_update", _read_spool, (_spooled(),))
    yield Target("site_journal", _read_journal, (b'{"kind": "attempt", "job_id": "j", "round_id": 1, "attempt": 2}\n',))


_OWN = ("certificate.pem", "key.pem", "ca.pem", "crl.pem")
_PARTY = "certificate: c.pem\nkey: k.pem\nca: ca.pem\nstate_dir: state\n"
_SERVICE = f"service_id: one\nlisten: 127.0.0.1:0\n{_PARTY}log: {{level: info}}\n"
_CONFIGS: dict[Any, str] = {
    CoordinatorSettings: f"{_SERVICE}aggregator: host:1\nkeyserver: host:2\n",
    AggregatorSettings: f"{_SERVICE}coordinator: host:1\n",
    KeyServerSettings: f"{_SERVICE}max_cohort: 9\n",
    SiteConfig: f"coordinator: host:1\n{_PARTY}policy: {{min_cohort: 3}}\n",
    OperatorConfig: "coordinator: host:1\ncertificate: c.pem\nkey: k.pem\nca: ca.pem\n",
}


def _config_parser(kind: Any) -> Callable[[bytes], object]:
    return lambda data: _with_files(kind.from_file, {"config.yaml": data}, ("config.yaml",))


def _der_of(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


_TASK = Task("job", 1, bytes(32))


def _spooled() -> bytes:
    """A kept update, as a site leaves it on its disk."""
    with tempfile.TemporaryDirectory(prefix="tacit-fuzz-") as folder:
        spool = UpdateSpool(Path(folder), bytes(32), 0.0)
        spool.save(_TASK, TrainedUpdate(np.ones(5, np.float32), 3, {"loss": 0.5}, 1.0))
        return spool.path.read_bytes()


def _read_spool(data: bytes) -> None:
    def read(path: Path) -> None:
        spool = UpdateSpool(path.parent, bytes(32), 0.0)
        spool.path.write_bytes(path.read_bytes())
        spool.task()
        spool.load(_TASK)

    _with_files(read, {"kept": data}, ("kept",))


def _read_journal(data: bytes) -> None:
    def read(path: Path) -> None:
        SiteJournal(path.parent).close()

    _with_files(read, {"journal.jsonl": data}, ("journal.jsonl",))


def _with_files(read: Callable[..., object], files: Mapping[str, bytes], names: Iterable[str] = ("ca.pem",)) -> object:
    with tempfile.TemporaryDirectory(prefix="tacit-fuzz-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.touch(0o600)
            path.write_bytes(content)
        return read(*[Path(folder, name) for name in names])


def _pem_files() -> dict[str, bytes]:
    """The files of one site and of its CA."""
    from fl_core.transport.authority import request_certificate
    from fl_core.transport.identity import Role

    with tempfile.TemporaryDirectory(prefix="tacit-fuzz-") as folder:
        authority = CertificateAuthority.create(Path(folder, "ca"), "fuzz")
        issued = authority.issue(Role.SITE, "site-1", Path(folder, "site"))
        _, request = request_certificate(Path(folder, "other"), "fuzz", Role.SITE, "site-2")
        paths = [issued.certificate, issued.key, authority.ca_path, authority.crl_path, request]
        return {path.name: path.read_bytes() for path in paths}
