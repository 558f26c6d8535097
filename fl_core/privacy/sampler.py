"""Exact integer noise from a cryptographic stream, added to a vector of the ring.

A sample is found by inversion: an endless stream of random bits is a number in [0, 1), and the sample is the first
value whose cumulative probability is above it. The first 63 bits decide, except about once in 2**48 samples: then more
bits are drawn and the distribution is worked out to more places, until they do. So the distribution is the exact one,
not one that is close to it, and no float is involved.

The time of a sample depends on its magnitude, by look-ups and by a short search: whoever can measure single samples on
the same machine learns something about them. Nobody on the network can.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

import numpy as np
import numpy.typing as npt

from fl_core.crypto import labels
from fl_core.crypto.mask_prg import MASK_KEY_BYTES, RingVector, add_mask
from fl_core.errors import CryptoError
from fl_core.privacy import kernels_noise_numpy
from fl_core.privacy.distributions import MagnitudeCdf, magnitude_cdf
from fl_core.privacy.events import Noise

BLOCK = 1 << 16
"""Samples whose words are drawn at a time: they fit the second-level cache."""

COMPILED_FROM = 1 << 17
"""Samples from which loading numba pays."""

Kernel = Callable[..., int]
"""See `kernels_noise_numpy.add_samples`."""

NUMBER_BITS = 63
_WORD_BITS = 64
_MOST_GUIDE_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class NoiseTable:
    """The distribution of one noise as the kernels read it; see `kernels_noise_numpy.add_samples`."""

    noise: Noise
    variance: float
    cdf: npt.NDArray[np.uint64] = field(repr=False)
    guide: npt.NDArray[np.uint32] = field(repr=False)
    shift: int


@dataclass(frozen=True, slots=True)
class NoiseDraw:
    """One draw of noise for a whole vector: its distribution, and the 16 bytes that no other draw has."""

    table: NoiseTable
    key: bytes = field(repr=False)


@lru_cache(maxsize=32)
def noise_table(noise: Noise, variance: float) -> NoiseTable:
    """Make the table of a distribution: 0.1 s for a standard deviation of some thousands.

    Args:
        noise: discrete_gaussian or skellam.
        variance: of a coordinate, see `distributions.magnitude_cdf`.

    Raises:
        CryptoError: there is no sampler for this noise or variance.
    """
    floors = _decided_floors(noise, variance)
    last = (1 << NUMBER_BITS) - 1
    # Behind the first entry that is one but for rounding, every number is a tie, and ties are decided exactly.
    entries = next(k for k, floor in enumerate(floors) if floor >= last) + 1
    cdf = np.array([min(floor, last) for floor in floors[:entries]], np.uint64)
    bits = min(_MOST_GUIDE_BITS, max(4, entries.bit_length()))
    shift = NUMBER_BITS - bits
    starts = np.arange(1 << bits, dtype=np.uint64) << np.uint64(shift)
    guide = np.searchsorted(cdf, starts, side="left").astype(np.uint32)
    for part in (cdf, guide):
        part.flags.writeable = False
    return NoiseTable(noise, variance, cdf, guide, shift)


def add_noise(accumulator: RingVector, table: NoiseTable, key: bytes, first: int = 0) -> None:
    """Add an independent sample to each coordinate, in place, modulo the lane.

    Args:
        accumulator: (d,) contiguous and writable, in a lane.
        table: of the noise.
        key: 16 bytes, fresh: it makes the noise of one vector and nothing else.
        first: the place of accumulator[0] in that vector, where it is a part of it.

    Raises:
        CryptoError: the key has the wrong length.
    """
    add_draws(accumulator, [NoiseDraw(table, key)], first)


def add_draws(accumulator: RingVector, draws: Sequence[NoiseDraw], first: int = 0) -> None:
    """Add an independent sample of each draw to each coordinate; arguments and errors as of `add_noise`."""
    if any(len(draw.key) != MASK_KEY_BYTES for draw in draws):
        raise CryptoError("a noise key has the wrong length", expected=f"{MASK_KEY_BYTES} bytes")
    add_samples = _kernel_for(len(draws) * len(accumulator))
    words = np.empty(min(BLOCK, len(accumulator)), np.uint64)
    ties = np.empty(len(words), np.int64)
    for start in range(0, len(accumulator), BLOCK):
        part = accumulator[start : start + BLOCK]
        for draw in draws:
            _add_block(part, draw, first + start, add_samples, words[: len(part)], ties)


def decide(table: NoiseTable, word: int, more: Iterator[int]) -> int:
    """The sample of a word whose 63 bits do not decide.

    Args:
        table: of the noise.
        word: 64 bits, see `kernels_noise_numpy.add_samples`.
        more: the bits after them, 64 at a time.
    """
    number, bits = word >> 1, NUMBER_BITS
    while True:
        number, bits = number << _WORD_BITS | next(more), bits + _WORD_BITS
        magnitude = _magnitude(magnitude_cdf(table.noise, table.variance, bits), number)
        if magnitude is not None:
            return -magnitude if word & 1 else magnitude


def _magnitude(cdf: MagnitudeCdf, number: int) -> int | None:
    """The first k whose cumulative probability is above every number with these bits; None if that is not certain."""
    low, high = 0, len(cdf.floors)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cdf.floors[middle] > number else (middle + 1, high)
    if low == len(cdf.floors):
        return None
    # The one before must be below for certain; its floor may fall short of it by the error and the rounding.
    is_certain = low == 0 or cdf.floors[low - 1] + 1 + cdf.error <= number
    return low if is_certain else None


def _decided_floors(noise: Noise, variance: float) -> tuple[int, ...]:
    """Floors to 63 bits, from a precision at which it is certain which integer each is."""
    for extra in count(64, 64):
        cdf = magnitude_cdf(noise, variance, NUMBER_BITS + extra)
        margin = (1 << extra) - 2
        if all(floor & ((1 << extra) - 1) < margin for floor in cdf.floors if floor >> extra < (1 << NUMBER_BITS) - 1):
            return tuple(floor >> extra for floor in cdf.floors)
    raise AssertionError("unreachable")


def _more_words(key: bytes, place: int) -> Iterator[int]:
    for number in count():
        digest = labels.digest_fields(labels.NOISE_TIE, key, place, number)
        yield int.from_bytes(digest[:8], "little")


def _add_block(
    part: RingVector,
    draw: NoiseDraw,
    first: int,
    add_samples: Kernel,
    words: npt.NDArray[np.uint64],
    ties: npt.NDArray[np.int64],
) -> None:
    table = draw.table
    words.fill(0)
    add_mask(words, draw.key, first)
    undecided = add_samples(words, table.cdf, table.guide, table.shift, part, ties)
    for place in ties[:undecided]:
        sample = decide(table, int(words[place]), _more_words(draw.key, first + int(place)))
        part[place] += part.dtype.type(sample % (1 << 8 * part.dtype.itemsize))


def _kernel_for(samples: int) -> Kernel:
    if samples < COMPILED_FROM:
        return kernels_noise_numpy.add_samples
    from fl_core.privacy import kernels_noise

    compiled: Kernel = kernels_noise.add_samples
    return compiled
