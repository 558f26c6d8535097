"""The root of all errors: what went wrong, whose fault it is, and whether the same call may be tried again.

Every message says what is wrong, what was expected, what was got and what to do. It never holds a secret.
"""

from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Who must act before the call can succeed."""

    CALLER = "caller"
    PEER = "peer"
    SERVICE = "service"
    NETWORK = "network"


class TacitError(Exception):
    """Base of every error that Tacit raises on purpose.

    Args:
        what: what is wrong, one clause without a full stop.
        expected: what would have been right.
        got: what was there instead; never a secret.
        fix: what the reader should do.
    """

    code: ClassVar[str] = "error"
    fault: ClassVar[Fault] = Fault.SERVICE
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, expected: object = None, got: object = None, fix: str | None = None) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.fix = fix
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        facts = [
            f"{name} {fact}" for name, fact in (("expected", self.expected), ("got", self.got)) if fact is not None
        ]
        sentence = f"{self.what}: {', '.join(facts)}" if facts else self.what
        return f"{sentence}; {self.fix}" if self.fix else sentence


class ProtocolError(TacitError):
    """A step of a protocol that must not be taken."""

    code = "protocol"


class LocalProtocolError(ProtocolError):
    """We used the protocol wrongly: a phase stepped twice, a vector of the wrong length."""

    code = "protocol_misuse"
    fault = Fault.CALLER


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol: a bad signature, an unknown index, a message out of turn."""

    code = "protocol_violation"
    fault = Fault.PEER


class StaleMessage(RemoteProtocolError):
    """A message that belongs to another attempt, round or job."""

    code = "stale_message"


class SessionFrozen(RemoteProtocolError):
    """A message for a phase that is over."""

    code = "session_frozen"


class UnknownSession(RemoteProtocolError):
    """A session that this service does not have, or no longer has."""

    code = "unknown_session"


class BadSignature(RemoteProtocolError):
    """A signature that does not verify."""

    code = "bad_signature"


class BadKey(RemoteProtocolError):
    """A public key that must not be used: low order, duplicated, of the wrong length."""

    code = "bad_key"


class BadShares(RemoteProtocolError):
    """Shares that do not rebuild the secret that was committed to."""

    code = "bad_shares"


class NotEnough(ProtocolError):
    """Fewer parties than the threshold took a step; the attempt cannot go on."""

    code = "not_enough"
    fault = Fault.PEER


class BadAggregate(ProtocolError):
    """The unmasked sum fails its own check, so that nothing may be released."""

    code = "bad_aggregate"


class CryptoError(TacitError):
    """A primitive refused its input."""

    code = "crypto"
    fault = Fault.PEER


class CodecError(TacitError):
    """A vector that cannot be encoded or bytes that cannot be decoded."""

    code = "codec"
    fault = Fault.CALLER


class StreamError(TacitError):
    """A chunked stream that is truncated, oversized, out of order or has the wrong digest."""

    code = "stream"
    fault = Fault.PEER


class PlanError(TacitError):
    """A plan or job that cannot hold: overflow, threshold, cohort, unknown codec."""

    code = "plan"
    fault = Fault.CALLER


class PolicyRefused(TacitError):
    """A site refuses a plan that is weaker than its own policy."""

    code = "policy_refused"
    fault = Fault.PEER


class IdentityError(TacitError):
    """A certificate that is missing, expired, revoked, of another federation or of the wrong role."""

    code = "identity"
    fault = Fault.CALLER


class PermissionRefused(IdentityError):
    """A known caller whose role may not do this."""

    code = "permission"


class ConfigError(TacitError):
    """A configuration that cannot be read or does not make sense."""

    code = "config"
    fault = Fault.CALLER


class StorageError(TacitError):
    """A database or blob store that failed, or holds something else than what was stored."""

    code = "storage"


class NotFound(TacitError):
    """A job, model or report that does not exist."""

    code = "not_found"
    fault = Fault.CALLER


class PeerLost(TacitError):
    """A peer did not answer in time or the connection broke; trying again is right."""

    code = "peer_lost"
    fault = Fault.NETWORK
    retryable = True


class Overloaded(TacitError):
    """The service has no room for this call now; trying again later is right.

    Args:
        what, expected, got, fix: as in `TacitError`.
        retry_after_s: when there will be room, where the service knows; the caller decides without it.
    """

    code = "overloaded"
    retryable = True
    retry_after_s: float | None = None

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        got: object = None,
        fix: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(what, expected=expected, got=got, fix=fix)
        self.retry_after_s = retry_after_s


class NotLeading(TacitError):
    """A coordinator that does not drive the rounds. `expected` is the address of the replica that does, if one does."""

    code = "not_leading"
    retryable = True


class BudgetExhausted(TacitError):
    """The privacy budget of a job or a site is spent."""

    code = "budget_exhausted"
    fault = Fault.CALLER


class InternalError(TacitError):
    """A fault of ours. The details are in the log of the service, never in the message."""

    code = "internal"
