"""Packing: many small numbers side by side in one plaintext, with room for the sum over a cohort and a guard bit.

A slot holds `cohort` times the largest number of one site, and one bit more, which stays zero. So a sum of honest
plaintexts never reaches into the next slot, and one that does is seen when it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.crypto.paillier.bignum import integer, join_slots, split_slots
from fl_core.errors import BadAggregate, CryptoError, PlanError

Values = npt.NDArray[np.unsignedinteger]

LARGEST_VALUE_BITS = 32
LARGEST_SUM_BITS = 63


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """How vectors lie in plaintexts.

    Args:
        largest: largest number of one site in a slot, below 2**32.
        cohort: most sites in a sum.
        modulus_bits: bits of the modulus.

    Raises:
        PlanError: a slot does not fit: too large a number, too many sites, too small a modulus.
    """

    largest: int
    cohort: int
    modulus_bits: int

    def __post_init__(self) -> None:
        if not 0 < self.largest < 1 << LARGEST_VALUE_BITS:
            raise PlanError(
                "a slot holds no such number", expected=f"1 to 2**{LARGEST_VALUE_BITS} - 1", got=self.largest
            )
        if self.cohort < 1 or self.sum_bits > LARGEST_SUM_BITS:
            raise PlanError(
                "the sum over the cohort does not fit a slot",
                expected=f">= 1 site, cohort * largest below 2**{LARGEST_SUM_BITS}",
                got=f"{self.cohort} sites, numbers up to {self.largest}",
                fix="lower the codec's bits or the cohort",
            )
        if self.slots < 1:
            raise PlanError(
                "the Paillier modulus is too small for one slot",
                expected=f"> {self.slot_bits} bits",
                got=self.modulus_bits,
                fix="use a longer key",
            )

    @property
    def sum_bits(self) -> int:
        """Bits of the largest sum."""
        return (self.largest * self.cohort).bit_length()

    @property
    def slot_bits(self) -> int:
        """Bits of a slot: the largest sum and the guard."""
        return self.sum_bits + 1

    @property
    def slots(self) -> int:
        """Numbers in one plaintext; whatever they are, the plaintext is below every modulus of that size."""
        return (self.modulus_bits - 1) // self.slot_bits

    def plaintexts(self, length: int) -> int:
        """Plaintexts of a vector of `length` numbers."""
        return -(-length // self.slots)

    def pack(self, vector: Values) -> Iterator[int]:
        """Pack the vector of one site.

        Args:
            vector: (d,) unsigned, each at most `largest`.

        Returns:
            plaintexts(d) numbers, the first with the first coordinates in its lowest bits.

        Raises:
            CryptoError: the vector has another form, or a number is too large.
        """
        if vector.ndim != 1 or vector.dtype.kind != "u":
            raise CryptoError("a vector to pack has the wrong form", expected="(d,) unsigned", got=vector.dtype.name)
        if vector.size and int(vector.max()) > self.largest:
            raise CryptoError("a number does not fit its slot", expected=f"at most {self.largest}", got="a larger one")
        return (
            join_slots(vector[start : start + self.slots].tolist(), self.slot_bits)
            for start in range(0, len(vector), self.slots)
        )

    def unpack(self, plaintexts: Sequence[int], length: int, survivors: int) -> npt.NDArray[np.uint64]:
        """Read the sum over `survivors` sites.

        Args:
            plaintexts: as many as `length` numbers need.
            length: d, numbers to read.
            survivors: sites in the sum, 1 to the cohort.

        Returns:
            (d,) the sums.

        Raises:
            BadAggregate: these are no sums of that many vectors: a guard bit is set, a sum is too large, or something
                stands behind the last number.
        """
        if len(plaintexts) != self.plaintexts(length) or not 1 <= survivors <= self.cohort:
            raise BadAggregate(
                "the decrypted sum has the wrong size",
                expected=f"{self.plaintexts(length)} plaintexts, 1 to {self.cohort} sites",
                got=f"{len(plaintexts)} plaintexts, {survivors} sites",
            )
        out = np.zeros(self.plaintexts(length) * self.slots, np.uint64)
        for place, plaintext in enumerate(plaintexts):
            self._unpack_one(plaintext, out[place * self.slots : (place + 1) * self.slots])
        if np.any(out > np.uint64(survivors * self.largest)) or np.any(out[length:]):
            raise _no_sum("a slot holds more than the survivors can have sent")
        return out[:length]

    def _unpack_one(self, plaintext: int, out: npt.NDArray[np.uint64]) -> None:
        if integer(plaintext).bit_length() > self.slots * self.slot_bits:
            raise _no_sum("bits are set above the last slot")
        parts = split_slots(plaintext, self.slot_bits)
        out[: len(parts)] = parts


def _no_sum(what: str) -> BadAggregate:
    return BadAggregate(
        f"the decrypted plaintext is no sum: {what}",
        expected="the sum of the survivors' vectors",
        fix="the attempt is run again; if it happens twice, look for a site or service that misbehaves",
    )


@dataclass(frozen=True, slots=True)
class SignedVectors:
    """Signed numbers in slots, behind a slot that counts the contributions.

    Each number is moved up by 2**(bits - 1); the count says by how much the sum is moved back.

    Args:
        bits: bits of a signed number, 2 to 32: from -2**(bits - 1) to 2**(bits - 1) - 1.
        cohort: most vectors in a sum.
        modulus_bits: bits of the modulus.

    Raises:
        PlanError: the sum does not fit a slot.
    """

    bits: int
    cohort: int
    modulus_bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= LARGEST_VALUE_BITS:
            raise PlanError("signed numbers have impossible bits", expected=f"2 to {LARGEST_VALUE_BITS}", got=self.bits)
        SlotLayout((1 << self.bits) - 1, self.cohort, self.modulus_bits)

    @property
    def layout(self) -> SlotLayout:
        """The slots."""
        return SlotLayout((1 << self.bits) - 1, self.cohort, self.modulus_bits)

    def encode(self, vector: npt.NDArray[np.signedinteger]) -> list[int]:
        """Pack one vector and the one that counts it.

        Raises:
            CryptoError: a number is out of range.
        """
        half = 1 << (self.bits - 1)
        if vector.size and not (-half <= int(vector.min()) and int(vector.max()) < half):
            raise CryptoError("a signed number is out of range", expected=f"{-half} to {half - 1}")
        moved = (vector.astype(np.int64) + half).astype(np.uint64)
        return list(self.layout.pack(np.concatenate([np.ones(1, np.uint64), moved])))

    def decode(self, plaintexts: Sequence[int], length: int, survivors: int) -> npt.NDArray[np.int64]:
        """Read the sum of `survivors` vectors of `length` numbers.

        Raises:
            BadAggregate: it is no such sum, or it does not count its survivors.
        """
        sums = self.layout.unpack(plaintexts, length + 1, survivors)
        if int(sums[0]) != survivors:
            raise BadAggregate("the sum does not count its survivors", expected=survivors, got=int(sums[0]))
        return sums[1:].astype(np.int64) - survivors * (1 << (self.bits - 1))
