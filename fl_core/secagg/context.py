"""What a session of secure aggregation is bound to, and the two ports through which identities come in."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from fl_core.crypto import labels
from fl_core.errors import PlanError

Entropy = Callable[[int], bytes]
"""Gives that many bytes: `os.urandom` in a site, a seeded generator in a simulation."""

SMALLEST_COHORT = 3
RING_BITS = range(1, 65)


class Signer(Protocol):
    """The key of a site's certificate. It signs; it never shows itself."""

    @property
    def certificate_der(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes: ...


class RosterVerifier(Protocol):
    """Knows who may be at each index of the roster."""

    def verify(self, index: int, certificate_der: bytes, message: bytes, signature: bytes) -> None:
        """Check that `certificate_der` is the one of `index`, is valid, and signed `message`.

        Raises:
            BadSignature: the signature does not verify.
            IdentityError: the certificate is another one, expired, revoked or not of this federation.
        """


@dataclass(frozen=True, slots=True)
class SessionContext:
    """The facts of one attempt on which every party must agree.

    Args:
        binding: 32 bytes, the hash of job, round, attempt, model, plan and roster.
        size: sites in the roster, n.
        threshold: shares that rebuild a secret, t.
        min_survivors: smallest U3 that a site helps to unmask.
        ring_bits: the ring is Z_(2**ring_bits).
        length: coordinates of the masked vector.

    Raises:
        PlanError: the numbers cannot hold together.
    """

    binding: bytes
    size: int
    threshold: int
    min_survivors: int
    ring_bits: int
    length: int

    def __post_init__(self) -> None:
        if len(self.binding) != 32:
            raise PlanError(
                "the binding of the session has the wrong length", expected="32 bytes", got=len(self.binding)
            )
        if self.size < SMALLEST_COHORT:
            raise PlanError("the cohort is too small to hide a site", expected=f">= {SMALLEST_COHORT}", got=self.size)
        if not self.size < 2 * self.threshold <= 2 * self.size:
            raise PlanError(
                "the threshold is out of range",
                expected=f"more than half of {self.size} and at most {self.size}",
                got=self.threshold,
            )
        if not self.threshold <= self.min_survivors <= self.size:
            raise PlanError(
                "min_survivors is out of range", expected=f"{self.threshold} to {self.size}", got=self.min_survivors
            )
        if self.ring_bits not in RING_BITS:
            raise PlanError("ring_bits is out of range", expected="1 to 64", got=self.ring_bits)
        if self.length < 1:
            raise PlanError("the vector is empty", expected="at least one coordinate", got=self.length)

    @property
    def session_id(self) -> bytes:
        """16 bytes that name the session on the wire and in logs."""
        return self.binding[:16]


def hash_indices(context: SessionContext, indices: Iterable[int]) -> bytes:
    """Hash a set of indices under the context, 32 bytes; the order in which they come does not matter."""
    return labels.digest_fields(labels.INDEX_SET, context.binding, *sorted(indices))
