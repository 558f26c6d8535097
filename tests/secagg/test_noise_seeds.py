"""The chain of noise seeds: it goes one way, belongs to one site of one session, and is committed to."""

import os
from dataclasses import replace

import pytest

from fl_core.errors import BadShares, PlanError
from fl_core.secagg.context import SessionContext
from fl_core.secagg.noise_seeds import check_seed_length, excess_parts, noise_commitment, part_keys, seed_of_part

CONTEXT = SessionContext(bytes(range(32)), 10, 7, 7, 24, 5, noise_tiers=(10, 9, 8, 7))
SEED = os.urandom(32)


def test_a_later_seed_gives_the_later_keys_and_the_same_commitment() -> None:
    keys = part_keys(CONTEXT, 3, SEED)
    assert len(set(keys)) == 4
    assert {len(key) for key in keys} == {16}
    for part in range(4):
        later = seed_of_part(CONTEXT, 3, SEED, part)
        assert part_keys(CONTEXT, 3, later, part) == keys[part:]
        assert noise_commitment(CONTEXT, 3, later, part) == noise_commitment(CONTEXT, 3, SEED)


def test_a_seed_is_worthless_at_another_part_of_another_site_or_in_another_session() -> None:
    commitment, second = noise_commitment(CONTEXT, 3, SEED), seed_of_part(CONTEXT, 3, SEED, 1)
    elsewhere = replace(CONTEXT, binding=bytes(32))
    assert noise_commitment(CONTEXT, 3, second, 1) == commitment
    assert noise_commitment(CONTEXT, 3, second, 2) != commitment
    assert noise_commitment(CONTEXT, 4, second, 1) != commitment
    assert noise_commitment(elsewhere, 3, second, 1) != commitment
    assert not set(part_keys(elsewhere, 3, SEED)) & set(part_keys(CONTEXT, 3, SEED))
    assert not set(part_keys(CONTEXT, 4, SEED)) & set(part_keys(CONTEXT, 3, SEED))


def test_what_is_not_needed_follows_from_the_survivors() -> None:
    assert [excess_parts(CONTEXT, survivors) for survivors in (10, 9, 8, 7)] == [
        range(1, 4), range(2, 4), range(3, 4), range(4, 4),
    ]  # fmt: skip
    assert not excess_parts(replace(CONTEXT, noise_tiers=()), 10)
    with pytest.raises(PlanError, match="so few survivors"):
        excess_parts(CONTEXT, 6)


def test_a_session_without_such_noise_commits_to_nothing() -> None:
    assert noise_commitment(replace(CONTEXT, noise_tiers=()), 3, SEED) == b""


@pytest.mark.parametrize(("seed", "wanted"), [(b"", True), (bytes(31), True), (bytes(33), True), (bytes(32), False)])
def test_a_seed_of_the_wrong_length_is_refused(seed: bytes, wanted: bool) -> None:
    with pytest.raises(BadShares, match="noise seed of site 3"):
        check_seed_length(3, seed, wanted)


@pytest.mark.parametrize("tiers", [(10, 8, 9, 7), (9, 8, 7), (10, 8), (10, 9, 9, 7), (10,), tuple(range(30, 6, -1))])
def test_tiers_that_are_not_those_of_the_session_are_refused(tiers: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="tiers of the noise"):
        replace(CONTEXT, noise_tiers=tiers)
