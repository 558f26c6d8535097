"""The mask generator: the AES-128-CTR keystream of a key, read as little-endian words and added to a vector.

A ring of 2**ring_bits elements lives in the smallest machine word that holds it, its lane. Addition wraps around in
the lane, which is a multiple of the ring, so that one reduction at the end is enough and every mask is exactly uniform.

A mask is never stored: it is made and added block by block, and any block can be made alone.

Source: NIST SP 800-38A, section 6.5. The counter starts at zero: a key makes one mask.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from fl_core.errors import CryptoError, LocalProtocolError

RingVector = npt.NDArray[np.unsignedinteger]
"""(d,) unsigned integers in the lane of their ring."""

MASK_KEY_BYTES = 16
BLOCK_BYTES = 1 << 18
"""Keystream bytes that are held at a time: they and the part of the vector under them fit the second-level cache."""

_AES_BLOCK_BYTES = 16
_LANES = tuple(np.dtype(name) for name in ("<u1", "<u2", "<u4", "<u8"))
_ZEROS = memoryview(bytes(BLOCK_BYTES + _AES_BLOCK_BYTES))


def lane_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned word that holds `ring_bits` bits: uint8, uint16, uint32 or uint64.

    Raises:
        CryptoError: no word does.
    """
    if not 1 <= ring_bits <= 64:
        raise CryptoError("ring_bits is out of range", expected="1 to 64", got=ring_bits)
    return next(lane for lane in _LANES if lane.itemsize * 8 >= ring_bits)


def add_mask(accumulator: RingVector, key: bytes, start: int = 0) -> None:
    """Add the words `start` to `start + d` of the mask of `key` to a vector, in place, modulo its lane.

    Args:
        accumulator: (d,) contiguous and writable, in a lane.
        key: 16 bytes, used for one mask only.
        start: the place of accumulator[0] in the mask, in words.

    Raises:
        CryptoError: the key has the wrong length or `start` is negative.
        LocalProtocolError: the accumulator is no lane, not contiguous or not writable.
    """
    _combine(accumulator, key, start, np.add)


def subtract_mask(accumulator: RingVector, key: bytes, start: int = 0) -> None:
    """Subtract the same words that `add_mask` adds, in place; arguments and errors as there."""
    _combine(accumulator, key, start, np.subtract)


def reduce_ring(vector: RingVector, ring_bits: int) -> None:
    """Reduce every coordinate modulo 2**ring_bits, in place.

    Raises:
        CryptoError: the vector is not in the lane of this ring.
    """
    lane = lane_dtype(ring_bits)
    if vector.dtype != lane:
        raise CryptoError("a vector is in the wrong lane", expected=lane.name, got=vector.dtype.name)
    if ring_bits < lane.itemsize * 8:
        np.bitwise_and(vector, lane.type((1 << ring_bits) - 1), out=vector)


def generate_mask(key: bytes, length: int, ring_bits: int) -> RingVector:
    """The whole mask of a key as one vector, reduced to the ring. Sessions never need it: they add blocks.

    Returns:
        (length,) in the lane of the ring.
    """
    mask = np.zeros(length, lane_dtype(ring_bits))
    add_mask(mask, key)
    reduce_ring(mask, ring_bits)
    return mask


def _combine(accumulator: RingVector, key: bytes, start: int, operation: Callable[..., object]) -> None:
    _check(accumulator, key, start)
    lane_bytes = accumulator.dtype.itemsize
    skip_bytes, encryptor = start * lane_bytes % _AES_BLOCK_BYTES, _keystream_from(key, start * lane_bytes)
    words = BLOCK_BYTES // lane_bytes
    keystream = bytearray(min(BLOCK_BYTES, accumulator.nbytes) + skip_bytes)
    for first in range(0, accumulator.size, words):
        part = accumulator[first : first + words]
        produced = encryptor.update_into(_ZEROS[: part.nbytes + skip_bytes], keystream)
        mask = np.frombuffer(keystream, accumulator.dtype, part.size, offset=produced - part.nbytes)
        operation(part, mask, out=part)
        # Only the first block can start inside a block of the cipher; the encryptor keeps its place after that.
        skip_bytes = 0


def _keystream_from(key: bytes, offset_bytes: int) -> CipherContext:
    counter = (offset_bytes // _AES_BLOCK_BYTES).to_bytes(_AES_BLOCK_BYTES, "big")
    return Cipher(algorithms.AES128(key), modes.CTR(counter)).encryptor()


def _check(accumulator: RingVector, key: bytes, start: int) -> None:
    if len(key) != MASK_KEY_BYTES:
        raise CryptoError("a mask key has the wrong length", expected=f"{MASK_KEY_BYTES} bytes", got=len(key))
    if start < 0:
        raise CryptoError("a mask has no words before its first", expected=">= 0", got=start)
    if accumulator.dtype not in _LANES:
        raise LocalProtocolError(
            "a mask fits no vector of this type", expected="uint8, uint16, uint32 or uint64", got=accumulator.dtype
        )
    if not (accumulator.ndim == 1 and accumulator.flags.c_contiguous and accumulator.flags.writeable):
        raise LocalProtocolError("a mask is added in place", expected="a contiguous, writable vector")
