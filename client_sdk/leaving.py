"""Why a site leaves an attempt, in the words of the protocol."""

from client_sdk.training import TrainingFailed
from fl_core import errors
from fl_core.errors import TacitError
from fl_core.rounds.machine import DropoutReason

# The most particular class comes first.
_REASONS: tuple[tuple[type[TacitError], DropoutReason], ...] = (
    (TrainingFailed, DropoutReason.TRAINING_FAILED),
    (errors.CodecError, DropoutReason.INVALID_UPDATE),
    (errors.PolicyRefused, DropoutReason.POLICY_REFUSED),
    (errors.PlanError, DropoutReason.POLICY_REFUSED),
    (errors.IdentityError, DropoutReason.POLICY_REFUSED),
    (errors.BadSignature, DropoutReason.BAD_SIGNATURE),
    (errors.BadKey, DropoutReason.BAD_KEY),
    (errors.BadShares, DropoutReason.BAD_SHARES),
    (errors.SessionFrozen, DropoutReason.UPLOAD_TIMEOUT),
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


def reason_of(error: TacitError) -> DropoutReason:
    """The reason that other parties are told."""
    if isinstance(error, UploadRefused):
        return DropoutReason.UPLOAD_REFUSED
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), DropoutReason.TRAINING_FAILED)
