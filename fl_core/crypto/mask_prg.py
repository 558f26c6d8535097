"""The mask generator: the AES-128-CTR keystream of a key, read as little-endian words and added to a vector.

A ring of 2**ring_bits elements lives in the smallest machine word that holds it, its lane. Addition wraps around in
the lane, which is a multiple of the ring, so that one reduction at the end is enough and every mask is exactly uniform.

A mask is never stored: it is made and added in one pass, and any part of it can be made alone. `mask_engine` has the
code that does it.

Source: NIST SP 800-38A, section 6.5. The counter starts at zero: a key makes one mask.
"""

import sys
from collections.abc import Sequence

import numpy as np

from fl_core.crypto.mask_engine import BLOCK_BYTES, MaskEngine, RingVector, best_engine, load_engine
from fl_core.errors import CryptoError, LocalProtocolError

__all__ = [
    "BLOCK_BYTES",
    "MASK_KEY_BYTES",
    "RingVector",
    "add_mask",
    "combine_masks",
    "engine_for",
    "generate_mask",
    "lane_dtype",
    "reduce_ring",
    "subtract_mask",
]

MASK_KEY_BYTES = 16
COMPILED_FROM_BYTES = 4_000_000
"""Bytes of masks at once from which loading compiled code pays."""

_LANES = tuple(np.dtype(name) for name in ("<u1", "<u2", "<u4", "<u8"))


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
    combine_masks(accumulator, [key], [False], start)


def subtract_mask(accumulator: RingVector, key: bytes, start: int = 0) -> None:
    """Subtract the same words that `add_mask` adds, in place; arguments and errors as there."""
    combine_masks(accumulator, [key], [True], start)


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


def combine_masks(
    accumulator: RingVector,
    keys: Sequence[bytes],
    negative: Sequence[bool],
    start: int = 0,
    engine: MaskEngine | None = None,
) -> None:
    """Add many masks to a vector and subtract others, in place, modulo its lane, in one pass over the vector.

    Args:
        accumulator: (d,) contiguous and writable, in a lane.
        keys: 16 bytes each, each used for one mask only.
        negative: for each key, whether its mask is subtracted.
        start: the place of accumulator[0] in the masks, in words.
        engine: what makes the masks; by default the fastest that this processor has.

    Raises:
        CryptoError: a key has the wrong length, there are not as many signs as keys, or `start` is negative.
        LocalProtocolError: the accumulator is no lane, not contiguous or not writable.
    """
    _check(accumulator, keys, negative, start)
    if keys and accumulator.size:
        chosen = engine or engine_for(len(keys) * accumulator.nbytes)
        chosen.combine(accumulator, keys, negative, start)


def engine_for(mask_bytes: int) -> MaskEngine:
    """What makes so many bytes of masks: the fastest engine of this processor, or OpenSSL for little work."""
    # The first use of compiled code in a process costs most of a second and 70 MB: a site with a small model, which
    # never has much to do at once, is spared both for good.
    is_worth_it = mask_bytes >= COMPILED_FROM_BYTES or "fl_core.crypto.kernels_aes" in sys.modules
    return best_engine() if is_worth_it else load_engine("openssl")


def _check(accumulator: RingVector, keys: Sequence[bytes], negative: Sequence[bool], start: int) -> None:
    if any(len(key) != MASK_KEY_BYTES for key in keys):
        raise CryptoError("a mask key has the wrong length", expected=f"{MASK_KEY_BYTES} bytes")
    if len(keys) != len(negative):
        raise CryptoError("masks and signs do not fit", expected=f"{len(keys)} signs", got=len(negative))
    if start < 0:
        raise CryptoError("a mask has no words before its first", expected=">= 0", got=start)
    if accumulator.dtype not in _LANES:
        raise LocalProtocolError(
            "a mask fits no vector of this type", expected="uint8, uint16, uint32 or uint64", got=accumulator.dtype
        )
    if not (accumulator.ndim == 1 and accumulator.flags.c_contiguous and accumulator.flags.writeable):
        raise LocalProtocolError("a mask is added in place", expected="a contiguous, writable vector")
