"""What a site asks of those who are summed with it: enough, enough that it knows, and no cohort almost twice.

Pure rules; the site's policy says the numbers, and its journal remembers the survivor sets that it signed.
"""

from collections.abc import Collection, Iterable

from fl_core.errors import PolicyRefused


def check_smallest(sites: Collection[str], smallest: int, what: str) -> None:
    """Refuse to be one of too few.

    Raises:
        PolicyRefused: there are fewer than `smallest`.
    """
    if len(sites) < smallest:
        raise PolicyRefused(
            f"{what} is too small for this site",
            expected=f">= {smallest} sites",
            got=len(sites),
            fix="change cohort.min of the job, or policy.min_cohort in site.yaml",
        )


def check_trusted(sites: Collection[str], own: str, trusted: Collection[str], needed: int, what: str) -> None:
    """Refuse a crowd of strangers: all of them may be one attacker, and the sum less its own updates is ours.

    Args:
        sites: client_ids.
        own: our client_id.
        trusted: client_ids that the owner of this site knows to be somebody else each.
        needed: how many of them must be there beside us.
        what: what the sites are.

    Raises:
        PolicyRefused: fewer are.
    """
    known = len(frozenset(sites) & frozenset(trusted) - {own})
    if known < needed:
        raise PolicyRefused(
            f"{what} has too few sites that this site knows",
            expected=f">= {needed} of policy.trusted_sites",
            got=known,
            fix="change policy.trusted_sites or policy.min_trusted in site.yaml",
        )


def check_difference(survivors: Collection[str], earlier: Iterable[Collection[str]], smallest: int) -> None:
    """Refuse survivors who are almost those of an earlier sum: the difference of the sums is one of few sites.

    Args:
        survivors: client_ids of U3.
        earlier: client_ids of each U3 that this site has signed.
        smallest: sites by which two different sets must differ; 1 allows everything.

    Raises:
        PolicyRefused: a set differs from an earlier one by at least one site and by fewer than `smallest`.
    """
    now = frozenset(survivors)
    for before in earlier:
        difference = len(now ^ frozenset(before))
        if 0 < difference < smallest:
            raise PolicyRefused(
                "the survivors are almost those of an earlier sum",
                expected=f"the same sites, or >= {smallest} others",
                got=f"a difference of {difference}",
                fix="wait for another cohort, or lower policy.min_cohort_difference in site.yaml",
            )
