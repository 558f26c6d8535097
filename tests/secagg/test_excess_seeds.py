"""Seeds of noise that is not needed: each survivor reveals its own, and liars are named and cost nothing else."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import BadKey, BadShares, RemoteProtocolError
from fl_core.secagg.noise_seeds import part_keys, seed_of_part
from fl_core.simulation import stages

SIZE, THRESHOLD, SMALLEST = 10, 6, 7
TIERS = (10, 9, 7)
NEEDED = {10: 1, 9: 2, 8: 3, 7: 3}
"""Parts that stay, by the number of survivors."""


def cohort_of(tiers: tuple[int, ...] = TIERS) -> stages.Cohort:
    return stages.make_cohort(SIZE, threshold=THRESHOLD, min_survivors=SMALLEST, noise_tiers=tiers)


def signed(survivors: Sequence[int], tiers: tuple[int, ...] = TIERS) -> tuple[stages.Signed, dict[int, bytes]]:
    """Everybody has signed; the first noise seed of each site, which only the site itself should know."""
    advertised = stages.advertise(cohort_of(tiers))
    seeds = {index: site.secrets.noise_seed for index, site in advertised.sites.items()}
    return stages.sign(stages.upload(stages.share(advertised), survivors)), seeds


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_site_reveals_what_is_not_needed_and_liars_are_named(data: st.DataObject) -> None:
    survivors = sorted(data.draw(st.sets(st.integers(0, SIZE - 1), min_size=SMALLEST)))
    gone = data.draw(st.sets(st.sampled_from(survivors), max_size=len(survivors) - THRESHOLD))
    here = [index for index in survivors if index not in gone]
    needed = NEEDED[len(survivors)]
    liars = data.draw(st.sets(st.sampled_from(here))) if needed < len(TIERS) else set()
    stage, seeds = signed(survivors)
    context = stage.cohort.context
    for index in here:
        sent = stage.sites[index].step(stage.proof)[1]
        assert bool(sent.excess_seed) == (needed < len(TIERS))
        lie = data.draw(st.sampled_from([os.urandom(32), seeds[index], seed_of_part(context, index, seeds[index], 3)]))
        stage.server.receive(replace(sent, excess_seed=lie) if index in liars else sent)
    rebuilt = stage.server.close()
    honest = [index for index in here if index not in liars] if needed < len(TIERS) else []
    assert rebuilt.excess_keys() == [part_keys(context, index, seeds[index])[needed:] for index in honest]
    assert stage.server.blame.holders == liars
    # Whoever lies about its noise has told the truth about its shares, and the sum is there.
    total = stage.aggregation.step(rebuilt.combined_mask()).sum
    np.testing.assert_array_equal(total, stage.cohort.sum_of(survivors))


@pytest.mark.parametrize(("survivors", "bent"), [(range(10), b""), (range(10), bytes(31)), (range(7), bytes(32))])
def test_a_seed_that_is_not_due_and_none_that_is_are_refused(survivors: range, bent: bytes) -> None:
    stage, _ = signed(survivors)
    sent = stage.sites[0].step(stage.proof)[1]
    with pytest.raises(BadShares, match="noise seed of site 0"):
        stage.server.receive(replace(sent, excess_seed=bent))
    assert not stage.server.received
    stage.server.receive(sent)
    assert stage.server.received == {0}


def test_a_second_seed_is_refused() -> None:
    stage, _ = signed(range(10))
    sent = stage.sites[0].step(stage.proof)[1]
    stage.server.receive(sent)
    with pytest.raises(RemoteProtocolError, match="different shares before"):
        stage.server.receive(replace(sent, excess_seed=os.urandom(32)))


def test_sites_of_other_sessions_commit_to_no_noise_and_reveal_none() -> None:
    stage, seeds = signed(range(10), tiers=())
    assert set(seeds.values()) == {b""}
    sent = stage.sites[0].step(stage.proof)[1]
    assert sent.excess_seed == b""
    with pytest.raises(BadShares, match="0 bytes, got 32"):
        stage.server.receive(replace(sent, excess_seed=os.urandom(32)))


@pytest.mark.parametrize(("tiers", "commitment"), [((), bytes(32)), (TIERS, b""), (TIERS, bytes(31))])
def test_a_commitment_to_noise_stands_where_there_is_noise_and_nowhere_else(
    tiers: tuple[int, ...], commitment: bytes
) -> None:
    advertised = stages.advertise(cohort_of(tiers))
    first, *others = advertised.directory.advertisements
    forged = replace(advertised.directory, advertisements=(replace(first, noise_commitment=commitment), *others))
    with pytest.raises(BadKey, match="commitment has the wrong length"):
        advertised.sites[1].step(forged)


def test_a_swapped_commitment_is_no_longer_signed() -> None:
    advertised = stages.advertise(cohort_of())
    first, *others = advertised.directory.advertisements
    forged = replace(advertised.directory, advertisements=(replace(first, noise_commitment=os.urandom(32)), *others))
    with pytest.raises(RemoteProtocolError, match="verify"):
        advertised.sites[1].step(forged)


def test_nobody_prints_a_seed() -> None:
    advertised = stages.advertise(cohort_of())
    seed = advertised.sites[0].secrets.noise_seed
    uploaded = stages.upload(stages.share(advertised))
    waiting, _ = uploaded.sites[0].step(uploaded.survivor_set)
    for phase in (advertised.sites[0], uploaded.sites[0], waiting):
        assert repr(seed) not in repr(phase)
    assert repr(waiting.excess_seed) not in repr(waiting)


def test_with_a_sparse_graph_seeds_are_revealed_in_the_same_way() -> None:
    cohort = stages.make_cohort(
        20, threshold=4, min_survivors=14, sparse=stages.Sparse(6, (2,)), noise_tiers=(20, 17, 14)
    )
    advertised = stages.advertise(cohort)
    seeds = {index: site.secrets.noise_seed for index, site in advertised.sites.items()}
    stage = stages.sign(stages.upload(stages.share(advertised), [index for index in range(20) if index != 3]))
    for index in stage.sites:
        stage.server.receive(stage.sites[index].step(stage.proof)[1])
    keys = [part_keys(cohort.context, index, seeds[index])[2:] for index in range(20) if index != 3]
    assert stage.server.close().excess_keys() == keys
