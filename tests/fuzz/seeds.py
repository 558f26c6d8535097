"""Valid inputs for the fuzzer to start from: one message of every kind, and a transcript that holds.

The samples are those of the tests beside, so that a field that is new there is fuzzed here.
"""

from google.protobuf.message import Message

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.rounds.paillier_terms import PaillierTerms
from fl_core.wire import plans as convert
from fl_core.wire.v1 import round_pb2
from tests.fuzz.choices import is_map, is_repeated
from tests.secagg.test_transcript import bodies, signed
from tests.wire.test_convert import PAIRS

__all__ = ["MANIFEST", "bodies", "messages_by_name", "signed"]

MANIFEST = TensorManifest((TensorSpec("weight", "float32", (3, 5)), TensorSpec("bias", "float64", (5,))))

ALONE: tuple[Message, ...] = (
    round_pb2.SignedPart(kind="opened", body=b"{}", certificate_der=b"c", signature=b"s"),
    convert.paillier_terms_to_proto(PaillierTerms(b"\x01" * 256, b"s" * 70)),
    round_pb2.UploadStatement(
        index=0, sealed_seed=b"x" * 113, upload_sha256=b"u" * 32, certificate_der=b"c", signature=b"s"
    ),
)
"""Messages of which the tests beside have no sample."""


def messages_by_name() -> dict[str, Message]:
    """Valid messages by the full name of their kind. Kinds that are parts of others are found in those."""
    found: dict[str, Message] = {}
    for value, to_proto, _ in PAIRS:
        _collect(to_proto(value), found)
    for message in ALONE:
        _collect(message, found)
    return found


def _collect(message: Message, found: dict[str, Message]) -> None:
    found.setdefault(message.DESCRIPTOR.full_name, message)
    for field, value in message.ListFields():
        if field.message_type is None or is_map(field):
            continue
        for part in value if is_repeated(field) else [value]:
            _collect(part, found)
