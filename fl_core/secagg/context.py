"""What a session of secure aggregation is bound to, and the two ports through which identities come in."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

from fl_core.crypto import labels
from fl_core.errors import PlanError
from fl_core.secagg.degrees import SMALLEST_DEGREE, SMALLEST_SPARSE_THRESHOLD

Entropy = Callable[[int], bytes]
"""Gives that many bytes: `os.urandom` in a site, a seeded generator in a simulation."""

SMALLEST_COHORT = 3
DIGEST_BYTES = 32
RING_BITS = range(1, 65)
MAX_TIERS = 16


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
class HararySpec:
    """A sparse graph, of which everything but its seed is known before the session.

    Args:
        degree: neighbours of each member, k, even.
        commitment: 32 bytes, to the beacon from which the seed is made.
        audit_needs: missing members of a window of k/2 that may make a gap, 1 to k/2 each: when the whole cohort is in
            U1, when one site is not, and so on; the last one counts for every smaller U1.

    Raises:
        PlanError: a number is out of range.
    """

    degree: int
    commitment: bytes
    audit_needs: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.degree < SMALLEST_DEGREE or self.degree % 2:
            raise PlanError(
                "the degree of the graph is out of range", expected=f"even, >= {SMALLEST_DEGREE}", got=self.degree
            )
        if len(self.commitment) != DIGEST_BYTES:
            raise PlanError(
                "the commitment to the graph has the wrong length",
                expected=f"{DIGEST_BYTES} bytes",
                got=len(self.commitment),
            )
        if not self.audit_needs or not 1 <= min(self.audit_needs) <= max(self.audit_needs) <= self.degree // 2:
            raise PlanError(
                "the needs of the audit are out of range",
                expected=f"1 to {self.degree // 2} each",
                got=f"{min(self.audit_needs, default=None)} to {max(self.audit_needs, default=None)}",
            )

    def audit_need(self, absent: int) -> int:
        """The need when so many sites of the cohort are not in U1."""
        return self.audit_needs[min(absent, len(self.audit_needs) - 1)]


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
        harary: the sparse graph; complete when None. Shares are then held by the neighbours alone.
        noise_tiers: numbers of survivors for which a site's noise has a part of its own, from the cohort's size down
            to min_survivors, see `fl_core.secagg.noise_seeds`. Empty where sites add no noise that is taken away.

    Raises:
        PlanError: the numbers cannot hold together.
    """

    binding: bytes
    size: int
    threshold: int
    min_survivors: int
    ring_bits: int
    length: int
    harary: HararySpec | None = None
    noise_tiers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.binding) != 32:
            raise PlanError(
                "the binding of the session has the wrong length", expected="32 bytes", got=len(self.binding)
            )
        if self.size < SMALLEST_COHORT:
            raise PlanError("the cohort is too small to hide a site", expected=f">= {SMALLEST_COHORT}", got=self.size)
        self._check_threshold()
        if not self.threshold <= self.min_survivors <= self.size:
            raise PlanError(
                "min_survivors is out of range", expected=f"{self.threshold} to {self.size}", got=self.min_survivors
            )
        if self.ring_bits not in RING_BITS:
            raise PlanError("ring_bits is out of range", expected="1 to 64", got=self.ring_bits)
        if self.length < 1:
            raise PlanError("the vector is empty", expected="at least one coordinate", got=self.length)
        self._check_tiers()

    def _check_tiers(self) -> None:
        tiers = self.noise_tiers
        if not tiers:
            return
        is_descending = all(above > below for above, below in pairwise(tiers))
        if not is_descending or (tiers[0], tiers[-1]) != (self.size, self.min_survivors) or len(tiers) > MAX_TIERS:
            raise PlanError(
                "the tiers of the noise are out of range",
                expected=f"up to {MAX_TIERS}, descending from {self.size} to {self.min_survivors}",
                got=tiers[: MAX_TIERS + 1],
            )

    def _check_threshold(self) -> None:
        if self.harary is None:
            smallest, largest = self.size // 2 + 1, self.size
        else:
            smallest, largest = SMALLEST_SPARSE_THRESHOLD, self.harary.degree
            if self.harary.degree >= self.min_survivors:
                raise PlanError(
                    "the graph has too many neighbours for the smallest U1",
                    expected=f"a degree below min_survivors, {self.min_survivors}",
                    got=self.harary.degree,
                )
        if not smallest <= self.threshold <= largest:
            raise PlanError("the threshold is out of range", expected=f"{smallest} to {largest}", got=self.threshold)

    @property
    def session_id(self) -> bytes:
        """16 bytes that name the session on the wire and in logs."""
        return self.binding[:16]


def hash_indices(context: SessionContext, indices: Iterable[int]) -> bytes:
    """Hash a set of indices under the context, 32 bytes; the order in which they come does not matter."""
    return _hash_ascending(context.binding, tuple(sorted(indices)))


# A site hashes its sets once; a process that serves or simulates a cohort hashes the same ones for every site.
@lru_cache(maxsize=16)
def _hash_ascending(binding: bytes, indices: tuple[int, ...]) -> bytes:
    return labels.digest_fields(labels.INDEX_SET, binding, *indices)
