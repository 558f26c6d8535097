"""Work that would block the event loop goes to a bounded pool of threads."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@cache
def _pool() -> ThreadPoolExecutor:
    # numpy, numba, hashing, cryptography and our gmpy2 release the GIL, so more threads than cores only cost memory.
    return ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1), thread_name_prefix="offload")


async def offload(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread and wait for its result; context variables go along.

    For work over about 5 ms. When the waiting task is cancelled, work that has begun still runs to its end in its
    thread, so it must not touch what the task cleans up.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool(), partial(copy_context().run, partial(work, *args, **kwargs)))
