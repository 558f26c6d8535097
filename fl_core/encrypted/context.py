"""What one encrypted attempt is bound to, and how its vectors lie in plaintexts."""

from dataclasses import dataclass

from fl_core.crypto import labels
from fl_core.crypto.paillier.keys import KEY_BITS, PublicKey, randomness_base
from fl_core.crypto.paillier.slots import SlotLayout
from fl_core.errors import PlanError

SMALLEST_SUM = 3
"""Sites in a sum, at least: of two, each could subtract itself and see the other."""

BINDING_BYTES = 32


@dataclass(frozen=True, slots=True)
class EncryptedContext:
    """The facts of one attempt on which every party must agree.

    Args:
        binding: 32 bytes, the hash of job, round, attempt, model, plan and roster.
        size: sites in the roster.
        min_survivors: fewest sites in a sum, at least 3.
        length: coordinates of a vector.
        ring_bits: a sum is read modulo 2**ring_bits.
        public_key: under which everybody encrypts.
        layout: how vectors lie in plaintexts.

    Raises:
        PlanError: the numbers cannot hold together.
    """

    binding: bytes
    size: int
    min_survivors: int
    length: int
    ring_bits: int
    public_key: PublicKey
    layout: SlotLayout

    def __post_init__(self) -> None:
        if len(self.binding) != BINDING_BYTES:
            raise PlanError(
                "the binding of the session has the wrong length",
                expected=f"{BINDING_BYTES} bytes",
                got=len(self.binding),
            )
        if not SMALLEST_SUM <= self.min_survivors <= self.size:
            raise PlanError(
                "min_survivors of an encrypted attempt is out of range",
                expected=f"{SMALLEST_SUM} to {self.size}",
                got=self.min_survivors,
            )
        if self.length < 1 or self.layout.cohort < self.size or self.layout.modulus_bits != self.public_key.bits:
            raise PlanError("the slots do not fit the attempt", expected=f"slots for {self.size} sites under the key")

    @property
    def plaintexts(self) -> int:
        """Plaintexts of one vector."""
        return self.layout.plaintexts(self.length)

    @property
    def upload_bytes(self) -> int:
        """Bytes of one upload."""
        return self.plaintexts * self.public_key.ciphertext_bytes

    def seed_context(self, index: int) -> bytes:
        """What the seed of a site's pads is sealed for: it opens in this attempt alone, as this site's."""
        return labels.encode_fields(labels.PAILLIER_SEED, self.binding, index)


def check_key(public_key: PublicKey) -> None:
    """Check a key before anything is encrypted under it: its size, and that the randomness can be derived from it.

    Raises:
        PlanError: the key is too short or of an odd size.
        BadKey: it shares a divisor with its own hash.
    """
    if public_key.bits not in KEY_BITS:
        raise PlanError("the Paillier key has the wrong size", expected=f"one of {KEY_BITS} bits", got=public_key.bits)
    randomness_base(public_key)
