"""Statements about encrypted uploads as protobuf, and back. Importing this module needs gmpy2."""

from fl_core.encrypted.statement import UploadStatement
from fl_core.wire.checks import check_size, index_from_proto
from fl_core.wire.secagg_messages import MAX_CERTIFICATE_BYTES, MAX_SIGNATURE_BYTES
from fl_core.wire.v1 import round_pb2


def statement_to_proto(statement: UploadStatement) -> round_pb2.UploadStatement:
    """To the wire."""
    return round_pb2.UploadStatement(
        index=statement.index,
        sealed_seed=statement.sealed_seed,
        upload_sha256=statement.upload_sha256,
        certificate_der=statement.certificate_der,
        signature=statement.signature,
    )


def statement_from_proto(message: round_pb2.UploadStatement, size: int) -> UploadStatement:
    """From the wire. Whose it is has to be checked by `fl_core.encrypted.statement.check_statement`.

    Args:
        message: as it came.
        size: sites in the roster.

    Raises:
        RemoteProtocolError: a size or the index is impossible.
    """
    check_size("a certificate", message.certificate_der, 1, MAX_CERTIFICATE_BYTES)
    check_size("a signature", message.signature, 1, MAX_SIGNATURE_BYTES)
    return UploadStatement(
        index_from_proto(message.index, size),
        message.sealed_seed,
        message.upload_sha256,
        message.certificate_der,
        message.signature,
    )
