"""Parts of a transcript as protobuf, and back."""

from fl_core.secagg.transcript import MAX_BODY_BYTES, ROLES, Part
from fl_core.wire.checks import check_size
from fl_core.wire.secagg_messages import MAX_CERTIFICATE_BYTES, MAX_SIGNATURE_BYTES
from fl_core.wire.v1 import round_pb2


def part_to_proto(value: Part) -> round_pb2.SignedPart:
    """To the wire."""
    return round_pb2.SignedPart(
        kind=value.kind, body=value.body, certificate_der=value.certificate_der, signature=value.signature
    )


def part_from_proto(message: round_pb2.SignedPart) -> Part:
    """From the wire. Whether it is signed, and says what it should, is checked by `fl_core.secagg.transcript`.

    Raises:
        RemoteProtocolError: a size is wrong.
    """
    check_size("the kind of a part", message.kind, 1, max(map(len, ROLES)))
    check_size("the body of a part", message.body, 2, MAX_BODY_BYTES)
    check_size("a certificate", message.certificate_der, 1, MAX_CERTIFICATE_BYTES)
    check_size("a signature", message.signature, 1, MAX_SIGNATURE_BYTES)
    return Part(message.kind, message.body, message.certificate_der, message.signature)
