"""Attack: the coordinator surrounds its victim with sites of its own; the sum less their updates is the victim's.

No protocol can tell one party with many certificates from many. What bounds it: the site counts the sites that its
owner knows, in the cohort before it takes part and again among the survivors before it signs.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk import SitePolicy
from client_sdk.policy import check_survivors
from fl_core.errors import ConfigError, PolicyRefused
from fl_core.rounds.cohort_rules import check_trusted

FRIENDS = ("beta", "gamma", "delta")


@given(honest=st.sets(st.sampled_from(FRIENDS)), sybils=st.integers(0, 60), needed=st.integers(0, 3), own=st.booleans())
def test_a_site_takes_part_exactly_when_enough_sites_that_it_knows_do(
    honest: set[str], sybils: int, needed: int, own: bool
) -> None:
    cohort = ["alpha", *honest, *(f"sybil-{number}" for number in range(sybils))]
    trusted = (*FRIENDS, "alpha") if own else FRIENDS
    if len(honest) >= needed:
        check_trusted(cohort, "alpha", trusted, needed, "the cohort")
        return
    with pytest.raises(PolicyRefused, match=f"expected >= {needed} .* got {len(honest)}"):
        check_trusted(cohort, "alpha", trusted, needed, "the cohort")


def test_a_cohort_of_friends_whose_uploads_are_dropped_is_noticed_before_anything_is_signed(plan_of: Any) -> None:
    plan = plan_of("alpha", "beta", "gamma", "sybil-1", "sybil-2", "sybil-3")
    policy = SitePolicy(trusted_sites=FRIENDS, min_trusted=2)
    assert check_survivors(plan, 0, (0, 1, 2, 3), policy, []) == {"alpha", "beta", "gamma", "sybil-1"}
    with pytest.raises(PolicyRefused, match="the sum has too few sites that this site knows"):
        check_survivors(plan, 0, (0, 2, 3, 4, 5), policy, [])


def test_more_trusted_sites_than_there_are_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="at most 1 trusted_sites"):
        SitePolicy(trusted_sites=("beta", "beta"), min_trusted=2)
    with pytest.raises(ConfigError, match="no list of names"):
        SitePolicy(trusted_sites="beta")  # type: ignore[arg-type]
