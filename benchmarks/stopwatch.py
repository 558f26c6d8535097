"""How side-by-side figures are taken: CPU seconds on one core, by turns, the best of several runs of each."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def one_core() -> Iterator[None]:
    """Run the block, and every process that it starts, on one core where the system allows to say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process in `work`: what others do on the machine counts for less than on a wall clock."""
    began = time.process_time()
    work()
    return time.process_time() - began


def best_in_a_row(work: Callable[[], object], count: int) -> float:
    """The least CPU seconds of `count` runs on end, so that short work finds the caches as it left them itself."""
    return min(cpu_seconds(work) for _ in range(count))


def best_by_turns(measurements: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Take every measurement once, then every one again, and so on; the least of each.

    Args:
        measurements: each gives the seconds of one run.
        repeats: rounds.
    """
    rounds = [{name: measure() for name, measure in measurements.items()} for _ in range(repeats)]
    return {name: min(taken[name] for taken in rounds) for name in measurements}
