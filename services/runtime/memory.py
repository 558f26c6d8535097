"""How the C library of a long-lived process keeps memory: few pools, and large blocks go back to the system at once.

By itself glibc makes a pool for each thread, and after the first large block that was freed keeps those of its size.
So a service would hold, after each crowd of uploads, the memory of the worst one that it ever saw.

A process that is there for speed alone, such as one of a load test, does the opposite and gives nothing back.
"""

import ctypes
from functools import cache

POOLS = 2
"""Most calls of malloc come from the event loop and the threads of gRPC, which seldom hold a lock for long."""

LARGE_BYTES = 1 << 20
"""Blocks from here on are mapped one by one, and unmapped when they are freed: models, uploads and their sums.

Chunks of a stream are smaller: to map each of them anew would double what a stream costs the processor.
"""

SPARE_BYTES = 4 << 20
"""Free memory at the end of a pool that is kept."""

KEPT_BLOCK_BYTES = 32 << 20
KEPT_SPARE_BYTES = 1 << 30
GROWTH_BYTES = 16 << 20
"""The same for a process that keeps what it has: a page that it gives back it takes again, cleared, a moment later."""

# From malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def tune_memory() -> bool:
    """Call it once, before threads are started. Returns whether the C library is one that can be told."""
    return _tell((_M_ARENA_MAX, POOLS), (_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_TRIM_THRESHOLD, SPARE_BYTES))


def keep_memory() -> bool:
    """As `tune_memory`, for a process whose memory nobody else needs."""
    return _tell(
        (_M_ARENA_MAX, POOLS),
        (_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_SPARE_BYTES),
        (_M_TOP_PAD, GROWTH_BYTES),
    )


def _tell(*wanted: tuple[int, int]) -> bool:
    glibc = _glibc()
    return glibc is not None and all(glibc.mallopt(parameter, value) == 1 for parameter, value in wanted)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it is glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
    except (OSError, AttributeError, TypeError):
        return None
    library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return library
