"""What a bystander can check again of a session that is over, from the plan and what the services stated about it.

Nobody has to be believed for it: the graph follows from the plan's commitment and the frozen keys, and with the graph
it is known who had to sign, and whose shares had to come, for every mask to be taken off.
"""

from collections.abc import Collection, Sequence

from fl_core.errors import NotEnough, RemoteProtocolError
from fl_core.secagg.beacon import graph_seed
from fl_core.secagg.context import SessionContext
from fl_core.secagg.gap_audit import check_gaps
from fl_core.secagg.graph import Graph, HararyGraph, complete_graph, harary_graph
from fl_core.secagg.messages import Beacon


def graph_of(context: SessionContext, members: Sequence[int], digest: bytes, beacon: Beacon | None) -> Graph:
    """The graph of a session.

    Args:
        context: the session, as the plan has it.
        members: U1, by ascending index.
        digest: of the directory.
        beacon: what the coordinator revealed; None when the graph is complete.

    Raises:
        RemoteProtocolError: there is a beacon and the graph is complete, or the other way round, or the beacon is not
            the one of the plan.
        BadSignature: the coordinator did not sign this directory.
        NotEnough: there are too few members.
    """
    if (beacon is None) != (context.harary is None):
        raise RemoteProtocolError(
            "a beacon belongs to a sparse graph and to no other",
            expected="none" if context.harary is None else "the beacon of the plan",
        )
    if beacon is None or context.harary is None:
        return complete_graph(members)
    return harary_graph(members, context.harary.degree, graph_seed(context, digest, beacon))


def check_survivors(context: SessionContext, graph: Graph, members: Sequence[int], survivors: Sequence[int]) -> None:
    """Check what every honest site checks of U3 before it signs it.

    Raises:
        NotEnough: fewer survivors than the plan demands, or drop-outs that may have cut a sparse graph.
    """
    if len(survivors) < context.min_survivors:
        raise NotEnough("too few survivors", expected=f">= {context.min_survivors}", got=len(survivors))
    if context.harary is not None and isinstance(graph, HararyGraph):
        check_gaps(graph, survivors, context.harary.audit_need(context.size - len(members)))


def check_enough_answered(
    context: SessionContext, graph: Graph, owners: Collection[int], signed: Collection[int], revealed: Collection[int]
) -> None:
    """Check that so many sites signed and revealed that every secret of U2 can have been rebuilt.

    Args:
        context: the session.
        graph: of U1.
        owners: U2: of each a seed or a mask key is needed.
        signed: U4.
        revealed: U5.

    Raises:
        NotEnough: fewer witnesses signed than the threshold, or fewer holders of an owner's shares revealed.
    """
    threshold = context.threshold
    witnesses = len(frozenset(graph.witnesses) & frozenset(signed))
    if witnesses < threshold:
        raise NotEnough("too few witnesses signed the survivors", expected=f">= {threshold}", got=witnesses)
    here = frozenset(revealed)
    for owner in owners:
        holders = len(here.intersection(graph.holders(owner)))
        if holders < threshold:
            raise NotEnough(
                f"too few sites that hold shares of site {owner} revealed them",
                expected=f">= {threshold}",
                got=holders,
            )
