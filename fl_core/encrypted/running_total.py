"""The aggregator: one running product of ciphertexts whatever the cohort, blinded before anybody may open it."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fl_core.crypto.mask_prg import RingVector, lane_dtype
from fl_core.crypto.paillier.bignum import Entropy, integer, random_below
from fl_core.crypto.paillier.ciphertexts import (
    add_ciphertexts,
    read_checked_ciphertexts,
    read_ciphertexts,
    write_ciphertexts,
)
from fl_core.crypto.paillier.encryption import Encryptor
from fl_core.crypto.paillier.pads import subtract_pads
from fl_core.encrypted.context import EncryptedContext
from fl_core.errors import BadAggregate, LocalProtocolError, NotEnough, RemoteProtocolError

Bytes = bytes | memoryview | npt.NDArray[np.uint8]


class EncryptedTotal:
    """The sum of the uploads of one attempt.

    Args:
        context: of the attempt.
    """

    def __init__(self, context: EncryptedContext) -> None:
        self.context = context
        self._total = [integer(1)] * context.plaintexts
        self._added: set[int] = set()

    def parts(self, blocks: Iterable[Bytes]) -> Iterator[tuple[int, bytes]]:
        """An upload in parts of whole ciphertexts, each with the place of its first one.

        Args:
            blocks: the bytes of the upload, cut anywhere.

        Raises:
            RemoteProtocolError: after the last part, there were too many ciphertexts or too few.
        """
        width, place, held = self.context.public_key.ciphertext_bytes, 0, b""
        for block in blocks:
            held += bytes(block)
            whole = len(held) - len(held) % width
            yield place, held[:whole]
            place, held = place + whole // width, held[whole:]
        if held or place != self.context.plaintexts:
            raise RemoteProtocolError(
                "an upload has the wrong number of ciphertexts",
                expected=self.context.plaintexts,
                got=f"{place} and {len(held)} bytes",
            )

    def check_part(self, place: int, data: bytes) -> None:  # noqa: ARG002 - called as `add_part` is
        """Check each ciphertext of a part. Takes a while: any number of parts may be checked at a time, in threads.

        Raises:
            CryptoError: a number is no ciphertext.
        """
        read_ciphertexts(self.context.public_key, data)

    def begin(self, index: int) -> None:
        """Count a site in, all parts of whose upload were checked and are added next.

        Raises:
            RemoteProtocolError: the site is in the sum already.
        """
        if index in self._added:
            raise RemoteProtocolError("a site uploads once", got=f"a second upload of index {index}")
        self._added.add(index)

    def add_part(self, place: int, data: bytes) -> None:
        """Add a part that was checked. Takes a while: different parts may be added at a time, in threads."""
        ciphertexts = read_checked_ciphertexts(self.context.public_key, data)
        part = slice(place, place + len(ciphertexts))
        self._total[part] = add_ciphertexts(self.context.public_key, self._total[part], ciphertexts)

    def take(self, index: int, data: Bytes) -> None:
        """Check a whole upload, then add it, part by part on this thread.

        Raises:
            CryptoError, RemoteProtocolError: it is malformed, or the site is in the sum already; nothing was added.
        """
        parts = list(self.parts([data]))
        for part in parts:
            self.check_part(*part)
        self.begin(index)
        for part in parts:
            self.add_part(*part)

    def freeze(self, eligible: Iterable[int]) -> tuple[int, ...]:
        """The survivors, ascending.

        Raises:
            NotEnough: fewer than `min_survivors` uploaded.
            BadAggregate: a site is in the sum that may not be there.
        """
        strangers = self._added - set(eligible)
        if strangers:
            raise BadAggregate("a site is in the sum that may not be there", got=f"index {min(strangers)}")
        if len(self._added) < self.context.min_survivors:
            raise NotEnough("too few sites uploaded", expected=self.context.min_survivors, got=len(self._added))
        return tuple(sorted(self._added))

    def blind(self, entropy: Entropy) -> "BlindedTotal":
        """Hide the sum from whoever opens it."""
        return BlindedTotal(self.context, self._total, len(self._added), entropy)


class BlindedTotal:
    """The sum under one-time pads of the aggregator, which are taken away again from what was decrypted.

    Args:
        context: of the attempt.
        total: the ciphertexts of the sum.
        survivors: sites in it.
        entropy: source of uniform bytes.
    """

    def __init__(self, context: EncryptedContext, total: Sequence[int], survivors: int, entropy: Entropy) -> None:
        self.context = context
        self._total = total
        self._survivors = survivors
        self._entropy = entropy
        self._encryptor = Encryptor(context.public_key, context.plaintexts)
        self._pads: list[int | None] = [None] * context.plaintexts
        self._opened: list[int | None] = [None] * context.plaintexts

    def ciphertexts(self, part: range) -> bytes:
        """Blinded ciphertexts of some places. Takes a while: run it in a thread.

        The pads are encrypted with fresh randomness, so that what comes out tells nothing of the uploads.

        Args:
            part: places, ascending by one; each place once.

        Raises:
            LocalProtocolError: the part was blinded before.
        """
        if any(self._pads[place] is not None for place in part):
            raise LocalProtocolError("a part of the sum is blinded once", got=f"place {part.start} again")
        key = self.context.public_key
        drawn = [random_below(key.n, self._entropy) for _ in part]
        self._pads[part.start : part.stop] = drawn
        encrypted = self._encryptor.encrypt(drawn, self._entropy)
        return write_ciphertexts(key, add_ciphertexts(key, self._total[part.start : part.stop], encrypted))

    def take(self, part: range, plaintexts: Sequence[int]) -> None:
        """Take what was decrypted for a part, and take its pads away.

        Raises:
            BadAggregate: it is not one plaintext for each ciphertext.
        """
        drawn = [pad for pad in self._pads[part.start : part.stop] if pad is not None]
        if not len(drawn) == len(plaintexts) == len(part):
            raise BadAggregate("a part of the sum was not decrypted", expected=len(part), got=len(plaintexts))
        self._opened[part.start : part.stop] = subtract_pads(plaintexts, drawn, self.context.public_key.n)

    def open(self) -> RingVector:
        """The sum in the clear, (length,) in the lane of the ring.

        Raises:
            BadAggregate: a part is missing, or this is no sum of that many uploads.
        """
        opened = [plaintext for plaintext in self._opened if plaintext is not None]
        if len(opened) != self.context.plaintexts:
            raise BadAggregate("a part of the sum was not decrypted", expected=self.context.plaintexts, got=len(opened))
        sums = self.context.layout.unpack(opened, self.context.length, self._survivors)
        ring = np.uint64((1 << self.context.ring_bits) - 1)
        vector: RingVector = (sums & ring).astype(lane_dtype(self.context.ring_bits))
        return vector
