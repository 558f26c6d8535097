"""Errors keep their class across the wire, and gRPC's own statuses get a meaning."""

from typing import Any

import grpc
import pytest

from fl_core import errors
from fl_core.errors import Fault, IdentityError, InternalError, Overloaded, PeerLost, StreamError, TacitError
from fl_core.transport.errors import error_classes, from_rpc_error, rpc_errors, status_code, to_status

CLASSES = sorted(
    {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TacitError)},
    key=lambda kind: kind.__name__,
)


def rpc_error(code: grpc.StatusCode, details: str = "", metadata: Any = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


def travel(error: TacitError) -> TacitError:
    status = to_status(error)
    return from_rpc_error(rpc_error(status.code, status.details, status.metadata))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_survives_the_wire(kind: type[TacitError]) -> None:
    sent = kind("it went wrong", expected="this", got=7, fix="do that")
    got = travel(sent)
    assert type(got) is kind
    assert str(got) == str(sent)
    assert got.retryable == sent.retryable


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in CLASSES}) == len(CLASSES)
    assert {error_classes()[kind.code] for kind in CLASSES} == set(CLASSES)


def test_a_class_of_another_module_takes_the_status_of_its_base() -> None:
    class UploadLost(StreamError):
        """Defined here."""

        code = "test_upload_lost"
        fault = Fault.PEER

        def __init__(self) -> None:
            super().__init__("the upload is lost")

    assert status_code(UploadLost()) is grpc.StatusCode.INVALID_ARGUMENT
    assert type(travel(UploadLost())) is UploadLost


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Connection refused", PeerLost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", PeerLost),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", PeerLost),
        (grpc.StatusCode.UNKNOWN, "Stream removed", PeerLost),
        (grpc.StatusCode.INTERNAL, "Exception deserializing response!", InternalError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", StreamError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", Overloaded),
        (grpc.StatusCode.UNAVAILABLE, "... CERTIFICATE_VERIFY_FAILED ...", IdentityError),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", errors.RemoteProtocolError),
        (grpc.StatusCode.UNKNOWN, "Unexpected", InternalError),
    ],
)
def test_a_status_of_grpc_gets_its_meaning(code: grpc.StatusCode, details: str, kind: type[TacitError]) -> None:
    assert type(from_rpc_error(rpc_error(code, details))) is kind


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"\xff", b'{"code": 1}', b'{"code": "peer_lost"}', b'{"code": "nope", "what": "x"}']
)
def test_broken_metadata_falls_back_to_the_status(payload: bytes) -> None:
    error = rpc_error(grpc.StatusCode.NOT_FOUND, "gone", (("tacit-error-bin", payload),))
    assert type(from_rpc_error(error)) is errors.NotFound


def test_a_long_error_stays_below_the_limit_of_metadata() -> None:
    worst = '"\\' * 5000
    status = to_status(TacitError(worst, expected=worst, got="𝄞" * 5000, fix=worst))
    assert sum(len(key) + len(value) * 4 / 3 for key, value in status.metadata) + 3 * len(status.details) < 8192


@pytest.mark.parametrize(
    ("asked", "taken"),
    [(3.5, 3.5), (0.0, 0.01), (1e9, 60.0), (float("inf"), 60.0), (float("nan"), None), (-1.0, None), (None, None)],
)
def test_a_pause_that_a_service_asks_for_is_neither_none_nor_for_ever(asked: float | None, taken: float | None) -> None:
    there = travel(errors.Overloaded("many are here", retry_after_s=asked))
    assert isinstance(there, errors.Overloaded)
    assert there.retry_after_s == taken


def test_control_characters_of_a_peer_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in str(travel(TacitError("red \x1b[31m alert")))


def test_the_block_raises_our_error_from_the_one_of_grpc() -> None:
    cause = rpc_error(grpc.StatusCode.UNAVAILABLE, "gone")
    with pytest.raises(PeerLost) as caught, rpc_errors():
        raise cause
    assert caught.value.__cause__ is cause
