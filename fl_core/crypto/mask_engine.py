"""Which code makes masks on this processor: VAES, AES-NI, or OpenSSL where neither is there.

The engine is chosen once, from the processor's flags, and held against OpenSSL before it is used.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_core.errors import CryptoError

RingVector = npt.NDArray[np.unsignedinteger]
"""(d,) unsigned integers in the lane of their ring."""

CIPHER_BLOCK_BYTES = 16
KERNEL_REACH_BITS = 40
"""The kernels work on cipher blocks whose numbers differ below this bit only."""
BLOCK_BYTES = 1 << 18
"""Keystream bytes that OpenSSL makes at a time: they and the part of the vector under them fit the cache."""

_ZEROS = memoryview(bytes(BLOCK_BYTES + CIPHER_BLOCK_BYTES))
_FLAGS = {"vaes": ("aes", "avx512f", "avx512bw", "vaes"), "aesni": ("aes", "sse2", "ssse3")}


class MaskEngine(Protocol):
    """Adds AES-128-CTR keystreams to a vector."""

    @property
    def name(self) -> str:
        """vaes, aesni or openssl."""

    def combine(self, accumulator: RingVector, keys: Sequence[bytes], signs: Sequence[bool], start: int) -> None:
        """Add, or where `signs` is true subtract, the words from `start` on of the mask of each key, in place.

        Args:
            accumulator: (d,) contiguous, in a lane; arithmetic wraps in the lane.
            keys: 16 bytes each.
            signs: one for each key.
            start: the place of accumulator[0] in the masks, in words.
        """


@dataclass(frozen=True, slots=True)
class OpenSslEngine:
    """Keystream by OpenSSL, addition by numpy: runs everywhere."""

    name: str = "openssl"

    def combine(self, accumulator: RingVector, keys: Sequence[bytes], signs: Sequence[bool], start: int) -> None:
        words = BLOCK_BYTES // accumulator.dtype.itemsize
        keystream = bytearray(min(BLOCK_BYTES, accumulator.nbytes) + CIPHER_BLOCK_BYTES)
        for first in range(0, accumulator.size, words):
            part = accumulator[first : first + words]
            for key, sign in zip(keys, signs, strict=True):
                _combine_block(part, key, sign, start + first, keystream)


def _combine_block(part: RingVector, key: bytes, sign: bool, start: int, keystream: bytearray) -> None:
    block, skip = divmod(start * part.dtype.itemsize, CIPHER_BLOCK_BYTES)
    counter = modes.CTR(block.to_bytes(CIPHER_BLOCK_BYTES, "big"))
    size = part.nbytes + skip
    Cipher(algorithms.AES128(key), counter).encryptor().update_into(_ZEROS[:size], keystream)
    mask = np.frombuffer(keystream, part.dtype, part.size, offset=skip)
    (np.subtract if sign else np.add)(part, mask, out=part)


@dataclass(frozen=True, slots=True)
class KernelEngine:
    """Keystream and addition in one pass, by the processor's AES instructions. The GIL is released."""

    name: str
    kernel: Callable[..., None]

    def combine(self, accumulator: RingVector, keys: Sequence[bytes], signs: Sequence[bool], start: int) -> None:
        block, skip = divmod(start * accumulator.dtype.itemsize, CIPHER_BLOCK_BYTES)
        if block >> KERNEL_REACH_BITS != block + accumulator.nbytes // CIPHER_BLOCK_BYTES + 1 >> KERNEL_REACH_BITS:
            # No mask is that long; only a start near a multiple of 16 TiB comes here.
            OpenSslEngine().combine(accumulator, keys, signs, start)
            return
        skip_words = skip // accumulator.dtype.itemsize
        # Bytes and Python's own integers reach compiled code fastest, which counts where there is one mask of a call.
        self.kernel(accumulator, b"".join(keys), bytes(signs), skip_words, _signed(block >> 64), _signed(block))


def _signed(number: int) -> int:
    """The lowest 64 bits of a number, read as a signed integer."""
    low = number & (1 << 64) - 1
    return low - (low >> 63 << 64)


def supported_engines() -> tuple[str, ...]:
    """Names of the engines that this processor can run, fastest first."""
    flags = processor_flags()
    kernels = tuple(name for name, needed in _FLAGS.items() if all(flags.get(flag) for flag in needed))
    return (*kernels, "openssl")


@cache
def load_engine(name: str) -> MaskEngine:
    """Load one engine and hold it against OpenSSL.

    Args:
        name: one of `supported_engines`.

    Raises:
        CryptoError: this processor cannot run it, or its masks are not those of OpenSSL.
    """
    if name not in supported_engines():
        raise CryptoError("this processor cannot run the mask engine", expected=supported_engines(), got=name)
    if name == "openssl":
        return OpenSslEngine()
    from fl_core.crypto import kernels_aes

    kernel = kernels_aes.combine_vaes if name == "vaes" else kernels_aes.combine_aesni
    engine = KernelEngine(name, kernel)
    _check_against_openssl(engine)
    return engine


@cache
def chosen_engine() -> str:
    """Name of the fastest engine of this processor; `TACIT_MASK_ENGINE` names another one."""
    return os.environ.get("TACIT_MASK_ENGINE") or supported_engines()[0]


@cache
def best_engine() -> MaskEngine:
    """The chosen engine, loaded and checked.

    Raises:
        CryptoError: as `load_engine`.
    """
    return load_engine(chosen_engine())


def _check_against_openssl(engine: MaskEngine) -> None:
    keys, signs = [bytes(range(16)), bytes(range(1, 17))], [False, True]
    # Long enough for whole strides of every form in two groups, with a head and a tail that are none.
    ours, theirs = np.zeros(2045, np.uint32), np.zeros(2045, np.uint32)
    engine.combine(ours, keys, signs, 3)
    OpenSslEngine().combine(theirs, keys, signs, 3)
    if not np.array_equal(ours, theirs):
        raise CryptoError(
            "the mask engine does not make the masks of OpenSSL",
            expected="equal keystreams",
            got=engine.name,
            fix="set TACIT_MASK_ENGINE=openssl and report the processor",
        )


def processor_flags() -> dict[str, bool]:
    """What numba's code may use; nothing when it is told to make code for another processor than this one."""
    if sys.byteorder != "little":
        return {}
    from llvmlite import binding
    from numba.core import config

    if any(getattr(config, name) for name in ("DISABLE_JIT", "CPU_NAME", "CPU_FEATURES")):
        return {}
    return dict(binding.get_host_cpu_features())
