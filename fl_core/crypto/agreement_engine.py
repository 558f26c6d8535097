"""Which code multiplies points of X25519 in numbers: eight at once where the processor can, libsodium elsewhere.

The engine is chosen from the processor's flags, and held against libsodium before it is used.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from nacl.bindings import crypto_scalarmult
from nacl.exceptions import CryptoError as SodiumError

from fl_core.crypto.mask_engine import processor_flags
from fl_core.errors import CryptoError

POINT_BYTES = 32
COMPILED_FROM = 256
"""Agreements in one call from which loading compiled code pays; once it is loaded, it is used for eight or more."""

VARIABLE = "TACIT_AGREEMENT_ENGINE"
_LANES = 8
_ALL_ZERO = bytes(POINT_BYTES)
_FLAGS = ("avx512f", "avx512ifma")


class AgreementEngine(Protocol):
    """Multiplies many points, each by a scalar of its own."""

    @property
    def name(self) -> str:
        """ifma or libsodium."""

    def multiply(self, scalars: Sequence[bytes], points: Sequence[bytes]) -> list[bytes]:
        """X25519 of pairs of a scalar and a point, 32 bytes each; all zero for a point of low order."""


@dataclass(frozen=True, slots=True)
class SodiumEngine:
    """One after the other: runs everywhere."""

    name: str = "libsodium"

    def multiply(self, scalars: Sequence[bytes], points: Sequence[bytes]) -> list[bytes]:
        return [_multiply_one(scalar, point) for scalar, point in zip(scalars, points, strict=True)]


@dataclass(frozen=True, slots=True)
class KernelEngine:
    """Eight at once. The GIL is released."""

    name: str
    kernel: Callable[[Any, Any, Any], None]

    def multiply(self, scalars: Sequence[bytes], points: Sequence[bytes]) -> list[bytes]:
        if not points:
            return []
        rows = -(-len(points) // _LANES) * _LANES
        # The last group of eight is filled up with points that nobody asked for.
        coordinates = np.frombuffer(b"".join(points).ljust(rows * POINT_BYTES, b"\x09"), np.uint64).reshape(rows, 4)
        factors = np.frombuffer(b"".join(scalars).ljust(rows * POINT_BYTES, b"\x09"), np.uint8)
        products = np.empty((rows, 4), np.uint64)
        self.kernel(factors.reshape(rows, POINT_BYTES), coordinates, products)
        joined = products.tobytes()
        return [joined[at : at + POINT_BYTES] for at in range(0, len(points) * POINT_BYTES, POINT_BYTES)]


def supported_engines() -> tuple[str, ...]:
    """Names of the engines that this processor can run, fastest first."""
    flags = processor_flags()
    return ("ifma", "libsodium") if all(flags.get(flag) for flag in _FLAGS) else ("libsodium",)


@cache
def load_engine(name: str) -> AgreementEngine:
    """Load one engine and hold it against libsodium.

    Args:
        name: one of `supported_engines`.

    Raises:
        CryptoError: this processor cannot run it, or its results are not those of libsodium.
    """
    if name == "libsodium":
        return SodiumEngine()
    if name not in supported_engines():
        raise CryptoError("this processor cannot run the agreement engine", expected=supported_engines(), got=name)
    from fl_core.crypto import kernels_x25519

    engine = KernelEngine(name, kernels_x25519.scalar_multiply)
    _check_against_libsodium(engine)
    return engine


def engine_for(count: int) -> AgreementEngine:
    """The engine for so many agreements; `TACIT_AGREEMENT_ENGINE` names another one."""
    wanted = os.environ.get(VARIABLE)
    if wanted:
        return load_engine(wanted)
    is_loaded = "fl_core.crypto.kernels_x25519" in sys.modules
    if count >= COMPILED_FROM or (is_loaded and count >= _LANES):
        return best_engine()
    return SodiumEngine()


@cache
def best_engine() -> AgreementEngine:
    """The fastest engine of this processor."""
    return load_engine(supported_engines()[0])


def _multiply_one(scalar: bytes, point: bytes) -> bytes:
    try:
        return bytes(crypto_scalarmult(scalar, point))
    except SodiumError:
        return _ALL_ZERO


def _check_against_libsodium(engine: AgreementEngine) -> None:
    # A group of eight and a part of one; the first point has a low order, the last is not below the prime.
    points = [bytes(POINT_BYTES), *(bytes([number]) * POINT_BYTES for number in range(1, 11)), b"\xff" * POINT_BYTES]
    scalars = [bytes(range(number, number + POINT_BYTES)) for number in range(len(points))]
    if engine.multiply(scalars, points) != SodiumEngine().multiply(scalars, points):
        raise CryptoError(
            "the agreement engine does not give the results of libsodium",
            expected="equal shared secrets",
            got=engine.name,
            fix=f"set {VARIABLE}=libsodium and report the processor",
        )
