"""How the C library of a long-lived process keeps memory: few pools, and large blocks go back to the system at once.

By itself glibc makes a pool for each thread, and after the first large block that was freed keeps those of its size.
So a service would hold, after each crowd of uploads, the memory of the worst one that it ever saw.
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

# From malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def tune_memory() -> bool:
    """Call it once, before threads are started. Returns whether the C library is one that can be told."""
    glibc = _glibc()
    if glibc is None:
        return False
    wanted = ((_M_ARENA_MAX, POOLS), (_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_TRIM_THRESHOLD, SPARE_BYTES))
    return all(glibc.mallopt(parameter, value) == 1 for parameter, value in wanted)


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
