"""Adding one mask to a vector: AES-CTR against the fastest that numpy has for the same work."""

import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from benchmarks.figures import Figure
from fl_core.crypto.mask_prg import add_mask, combine_masks

RING_DTYPE = np.uint32
REPEATS = 5
MANY = 50


def measure(*, quick: bool = False) -> list[Figure]:
    """Gigabytes of mask per second: one mask, many masks in one pass, and numpy's generator and plain addition."""
    length = 1 << 18 if quick else 10_000_000
    vector = np.zeros(length, RING_DTYPE)
    # The first use compiles; that is no part of a session's steady state.
    add_mask(vector, os.urandom(16))
    one = _gigabytes_per_second(vector.nbytes, lambda: add_mask(vector, os.urandom(16)))
    drawn = _gigabytes_per_second(vector.nbytes, lambda: _add_numpy_mask(vector))
    other = np.ones(length, RING_DTYPE)
    plain = _gigabytes_per_second(vector.nbytes, lambda: np.add(vector, other, out=vector))
    short = np.zeros(length // 10, RING_DTYPE)
    keys = [os.urandom(16) for _ in range(MANY)]
    many = _gigabytes_per_second(short.nbytes * MANY, lambda: combine_masks(short, keys, [False] * MANY))
    return [
        Figure("add_mask", one, "GB/s", baseline=drawn),
        Figure("add_mask_against_plain_addition", one, "GB/s", baseline=plain),
        Figure("combine_50_masks", many, "GB/s", baseline=drawn),
    ]


def _add_numpy_mask(vector: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> None:
    mask = np.random.default_rng(1).integers(0, 1 << 32, len(vector), dtype=RING_DTYPE)
    np.add(vector, mask, out=vector)


def _gigabytes_per_second(count: int, work: Callable[[], object]) -> float:
    return count / median(_seconds(work) for _ in range(REPEATS)) / 1e9


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
