"""The garbage collector of a long-lived process: it leaves alone what the start left behind, and looks less often."""

import gc

ALLOCATIONS = 20_000
"""Between two looks at the youngest objects. Rounds make many values that are gone soon and hold no cycle."""


def tune_collector() -> None:
    """Call it once, when everything is loaded. Modules live as long as the process and need no second look."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, 20, 20)
