"""Why a site leaves an attempt, in the words of the protocol."""

from collections.abc import Iterator
from contextlib import contextmanager

from client_sdk.training import TrainingFailed
from fl_core import errors
from fl_core.errors import SessionFrozen, TacitError
from fl_core.rounds.machine import DropoutReason

# The most particular class comes first.
_REASONS: tuple[tuple[type[TacitError], DropoutReason], ...] = (
    (TrainingFailed, DropoutReason.TRAINING_FAILED),
    (errors.CodecError, DropoutReason.INVALID_UPDATE),
    (errors.PolicyRefused, DropoutReason.POLICY_REFUSED),
    (errors.PlanError, DropoutReason.POLICY_REFUSED),
    (errors.BudgetExhausted, DropoutReason.POLICY_REFUSED),
    (errors.IdentityError, DropoutReason.POLICY_REFUSED),
    (errors.ConfigError, DropoutReason.POLICY_REFUSED),
    (errors.BadSignature, DropoutReason.BAD_SIGNATURE),
    (errors.BadKey, DropoutReason.BAD_KEY),
    (errors.BadShares, DropoutReason.BAD_SHARES),
    (errors.UnknownSession, DropoutReason.DISCONNECTED),
    (errors.PeerLost, DropoutReason.DISCONNECTED),
    (errors.Overloaded, DropoutReason.DISCONNECTED),
    (errors.ProtocolError, DropoutReason.PROTOCOL_VIOLATION),
    (errors.StreamError, DropoutReason.PROTOCOL_VIOLATION),
    (errors.CryptoError, DropoutReason.PROTOCOL_VIOLATION),
)


class UploadRefused(TacitError):
    """The aggregator has refused this site's update for good."""

    code = "upload_refused"


class TooLate(SessionFrozen):
    """A phase was over when this site came."""

    code = "too_late"

    def __init__(self, reason: DropoutReason, error: SessionFrozen) -> None:
        super().__init__(error.what, expected=error.expected, got=error.got, fix=error.fix)
        self.reason = reason


@contextmanager
def too_late_means(reason: DropoutReason) -> Iterator[None]:
    """Say which phase a site was too late for when it is told so inside the block.

    Raises:
        TooLate: the service said that a phase is over.
    """
    try:
        yield
    except SessionFrozen as error:
        raise TooLate(reason, error) from error


def reason_of(error: TacitError) -> DropoutReason:
    """The reason that other parties are told."""
    if isinstance(error, TooLate):
        return error.reason
    if isinstance(error, UploadRefused):
        return DropoutReason.UPLOAD_REFUSED
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), DropoutReason.TRAINING_FAILED)
