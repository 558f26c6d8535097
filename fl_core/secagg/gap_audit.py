"""The audit of the survivors on a sparse graph: no choice of drop-outs may cut the ring.

Whoever knows the graph can let vanish, or call vanished, the members on which it hangs. The honest survivors stay
connected unless two gaps of k/2 members, without an honest survivor in either, cut the ring in two. Corrupt members may
stand in a gap, but too few to make one up: at least `need` members of a gap are not among the survivors. A site that
sees two disjoint windows of k/2 with so many missing members reveals nothing. The sum is then hidden among all honest
survivors, whoever chose U3, because every site waits for the witnesses to agree on one and the same U3.
"""

from collections.abc import Sequence

import numpy as np

from fl_core.errors import NotEnough
from fl_core.secagg.graph import HararyGraph


def check_gaps(graph: HararyGraph, survivors: Sequence[int], need: int) -> None:
    """Refuse survivors whose absence may have cut the ring.

    Args:
        graph: of U1.
        survivors: U3, a part of U1.
        need: missing members of a window of degree/2 that may make a gap.

    Raises:
        NotEnough: two disjoint windows have so many missing members.
    """
    size, window = len(graph.order), graph.degree // 2
    present = np.isin(np.array(graph.order, np.int64), np.array(survivors, np.int64))
    missing = (~present).astype(np.int64)
    ring = np.concatenate([[0], np.cumsum(np.concatenate([missing, missing]))])
    bad = ring[window : window + size] - ring[:size] >= need
    # A window that starts between `window` and `size - window` places further on shares no member with this one.
    later = np.concatenate([[0], np.cumsum(np.concatenate([bad, bad]))])
    starts = np.flatnonzero(bad)
    if np.any(later[starts + size - window + 1] > later[starts + window]):
        raise NotEnough(
            "the drop-outs may have cut the graph in two",
            expected=f"no two parts of {window} neighbouring sites with {need} missing in each",
            fix="run the round again; if it happens more than once, somebody chooses who drops out",
        )
