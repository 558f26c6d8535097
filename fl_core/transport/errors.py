"""The one table between our errors and gRPC statuses: an error keeps its class across the wire.

An error travels as status code, sentence, and the trailing metadata `tacit-error-bin` (JSON: code, what, expected,
got, fix, retry_after_s), from which the receiver builds the same class again.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from fl_core import errors
from fl_core.errors import (
    IdentityError,
    InternalError,
    NotFound,
    Overloaded,
    PeerLost,
    PermissionRefused,
    RemoteProtocolError,
    StreamError,
    TacitError,
)

METADATA_KEY = "tacit-error-bin"

# Metadata has a limit of 8 KiB in all; a text may double when it is quoted and grows by a third in base64.
_MAX_TEXT_BYTES = 500

SHORTEST_RETRY_AFTER_S, LONGEST_RETRY_AFTER_S = 0.01, 60.0
"""Pauses that a service may ask for, in seconds; it is asked again after the nearest of them."""

_STATUS: dict[type[TacitError], grpc.StatusCode] = {
    errors.TacitError: grpc.StatusCode.INTERNAL,
    errors.ProtocolError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RemoteProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StaleMessage: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SessionFrozen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnknownSession: grpc.StatusCode.NOT_FOUND,
    errors.NotEnough: grpc.StatusCode.ABORTED,
    errors.BadAggregate: grpc.StatusCode.DATA_LOSS,
    errors.CryptoError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CodecError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StreamError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PlanError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PolicyRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IdentityError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StorageError: grpc.StatusCode.INTERNAL,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.PeerLost: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotLeading: grpc.StatusCode.UNAVAILABLE,
    errors.BudgetExhausted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

_MEANING: dict[grpc.StatusCode, type[TacitError]] = {
    grpc.StatusCode.UNAVAILABLE: PeerLost,
    grpc.StatusCode.DEADLINE_EXCEEDED: PeerLost,
    grpc.StatusCode.CANCELLED: PeerLost,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: IdentityError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionRefused,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: RemoteProtocolError,
    grpc.StatusCode.FAILED_PRECONDITION: RemoteProtocolError,
    grpc.StatusCode.OUT_OF_RANGE: RemoteProtocolError,
    grpc.StatusCode.UNIMPLEMENTED: RemoteProtocolError,
}

# What gRPC puts over the true status of a stream that ends while it is sent (grpc issue 36066): see `true_status`.
_MASK = "Internal error from Core"
_BROKEN_CONNECTION = (_MASK, "RST_STREAM", "Stream removed", "Socket closed", "Connection reset")
_UNTRUSTED_PEER = ("CERTIFICATE_VERIFY_FAILED", "is not in peer certificate", "Hostname Verification Check failed")


@dataclass(frozen=True, slots=True)
class WireStatus:
    """An error as gRPC carries it."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, bytes], ...]


def to_status(error: TacitError) -> WireStatus:
    """Status, sentence and trailing metadata of an error."""
    texts = {name: getattr(error, name) for name in ("what", "expected", "got", "fix")}
    body = {name: printable(str(text)) for name, text in texts.items() if text is not None}
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        body["retry_after_s"] = f"{error.retry_after_s:.3f}"
    payload = json.dumps({"code": error.code, **body}, ensure_ascii=False).encode()
    return WireStatus(status_code(error), printable(str(error)), ((METADATA_KEY, payload),))


def status_code(error: TacitError) -> grpc.StatusCode:
    """The status of the nearest class in the table."""
    return next(_STATUS[base] for base in type(error).__mro__ if base in _STATUS)


def from_rpc_error(error: grpc.RpcError) -> TacitError:
    """The error that the peer raised, or what gRPC's own status means.

    Args:
        error: what a call raised.

    Returns:
        An error to raise `from` the given one; never raises.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return PeerLost("the call failed", got=type(error).__name__)
    return _from_metadata(error) or _from_code(error.code(), error.details() or "")


def is_masked(error: grpc.aio.AioRpcError) -> bool:
    """Whether the status is one that gRPC made up because a write failed."""
    return error.code() is grpc.StatusCode.INTERNAL and _MASK in (error.details() or "")


@contextmanager
def rpc_errors() -> Iterator[None]:
    """Raise our errors instead of gRPC's inside the block.

    Raises:
        TacitError: the error that the peer raised; PeerLost when it cannot be reached.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _from_metadata(error: grpc.aio.AioRpcError) -> TacitError | None:
    for key, value in error.trailing_metadata() or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            return _parse(value)
    return None


def _parse(payload: bytes) -> TacitError | None:
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not all(isinstance(text, str) for text in body.values()):
        return None
    texts = {name: printable(text) for name, text in body.items() if name in ("what", "expected", "got", "fix")}
    kind = error_classes().get(body.get("code", ""))
    if kind is None or "what" not in texts:
        return None
    error = _rebuild(kind, texts)
    if isinstance(error, Overloaded):
        error.retry_after_s = _pause(body.get("retry_after_s", ""))
    return error


def _pause(text: str) -> float | None:
    """Seconds that a peer names, bounded; None where it names none that can be waited for."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(max(seconds, SHORTEST_RETRY_AFTER_S), LONGEST_RETRY_AFTER_S) if seconds >= 0 else None


def _rebuild(kind: type[TacitError], texts: dict[str, str]) -> TacitError:
    # A subclass may have an __init__ of its own, so the facts are set by the one of the root.
    error = kind.__new__(kind)
    TacitError.__init__(
        error, texts["what"], expected=texts.get("expected"), got=texts.get("got"), fix=texts.get("fix")
    )
    return error


def printable(text: str) -> str:
    """A peer's text as it may stand in logs and terminals: without control characters, and 500 bytes at most."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.encode()[:_MAX_TEXT_BYTES].decode(errors="ignore")


def error_classes() -> dict[str, type[TacitError]]:
    """Every class of error by its code."""
    found: dict[str, type[TacitError]] = {}
    waiting: list[type[TacitError]] = [TacitError]
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found


def _from_code(code: grpc.StatusCode, details: str) -> TacitError:
    if any(text in details for text in _UNTRUSTED_PEER):
        return IdentityError(
            "the service does not hold the certificate that we expect",
            got=printable(details),
            fix="compare address, role and ca file",
        )
    if any(text in details for text in _BROKEN_CONNECTION):
        return PeerLost("the connection broke", got=printable(details))
    if "message larger than max" in details:
        return _too_large(details)
    kind = _MEANING.get(code, InternalError)
    what = {PeerLost: "the service did not answer", InternalError: "the call failed"}.get(kind, "the call was refused")
    return kind(what, got=f"{code.name}: {printable(details)}")


def _too_large(details: str) -> StreamError:
    sizes = re.search(r"\((\d+) vs\. (\d+)\)", details)
    return StreamError(
        "a message is too large",
        expected=f"up to {sizes[2]} bytes" if sizes else None,
        got=f"{sizes[1]} bytes" if sizes else printable(details),
        fix="send it in smaller parts",
    )
