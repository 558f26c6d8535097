"""The complete graph, and the lists by which sets travel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import RemoteProtocolError
from fl_core.secagg.graph import complete_graph
from fl_core.secagg.index_sets import check_ascending, check_equal, check_subset

sets = st.sets(st.integers(0, 50), min_size=1, max_size=12)


@given(sets)
def test_everybody_is_a_neighbour_of_everybody_else(members: set[int]) -> None:
    graph = complete_graph(sorted(members))
    for member in members:
        assert graph.neighbours(member) == tuple(sorted(members - {member}))


@pytest.mark.parametrize("members", [[1, 0], [0, 0], [0, 2, 2]])
def test_a_list_out_of_order_or_with_a_repetition_is_no_set(members: list[int]) -> None:
    with pytest.raises(RemoteProtocolError, match="not in order"):
        complete_graph(members)
    with pytest.raises(RemoteProtocolError, match="not in order"):
        check_ascending(members, "the members")


def test_a_list_with_a_stranger_is_no_subset() -> None:
    check_subset([0, 2], (0, 1, 2), "the survivors", "U2")
    with pytest.raises(RemoteProtocolError, match=r"outside U2.*got site 3"):
        check_subset([0, 3], (0, 1, 2), "the survivors", "U2")


@given(sets, sets)
def test_only_the_same_set_is_equal(ours: set[int], theirs: set[int]) -> None:
    check_equal(sorted(ours), sorted(ours), "the owners")
    if ours != theirs:
        with pytest.raises(RemoteProtocolError):
            check_equal(sorted(ours), sorted(theirs), "the owners")
