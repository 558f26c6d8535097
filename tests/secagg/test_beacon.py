"""The beacon: committed to in the plan, revealed once, for one directory."""

import copy
import os
from dataclasses import replace

import pytest

from fl_core.crypto.one_time import sign_once, verify_key_of, verify_once
from fl_core.errors import BadSignature, LocalProtocolError, PlanError, RemoteProtocolError, StaleMessage
from fl_core.secagg.beacon import beacon_statement, graph_seed, make_beacon
from fl_core.secagg.context import HararySpec, SessionContext
from fl_core.simulation.entropy import seeded_entropy

SECRET = make_beacon(seeded_entropy(7))
CONTEXT = SessionContext(bytes(range(32)), 20, 4, 14, 16, 5, HararySpec(6, SECRET.commitment, (2,)))
DIGEST = bytes(reversed(range(32)))


def test_everybody_makes_the_same_seed_and_another_session_or_directory_another() -> None:
    beacon = make_beacon(seeded_entropy(7)).reveal(CONTEXT.binding, DIGEST)
    seed = graph_seed(CONTEXT, DIGEST, beacon)
    assert seed == graph_seed(CONTEXT, DIGEST, beacon)
    other = make_beacon(seeded_entropy(7)).reveal(CONTEXT.binding, bytes(32))
    assert graph_seed(CONTEXT, bytes(32), other) != seed
    elsewhere = replace(CONTEXT, binding=bytes(32))
    assert graph_seed(elsewhere, DIGEST, make_beacon(seeded_entropy(7)).reveal(bytes(32), DIGEST)) != seed


def test_a_beacon_is_revealed_for_one_directory() -> None:
    secret = make_beacon(os.urandom)
    secret.reveal(CONTEXT.binding, DIGEST)
    for digest in (DIGEST, bytes(32)):
        with pytest.raises(LocalProtocolError, match="stepped twice"):
            secret.reveal(CONTEXT.binding, digest)
    with pytest.raises(LocalProtocolError, match="copied"):
        copy.deepcopy(secret)


def test_another_value_or_key_than_was_committed_to_is_refused() -> None:
    beacon = make_beacon(seeded_entropy(7)).reveal(CONTEXT.binding, DIGEST)
    key = os.urandom(32)
    statement = beacon_statement(CONTEXT.binding, DIGEST)
    for bent in (
        replace(beacon, value=bytes(32)),
        replace(beacon, verify_key=verify_key_of(key), signature=sign_once(key, statement)),
        make_beacon(os.urandom).reveal(CONTEXT.binding, DIGEST),
    ):
        with pytest.raises(StaleMessage, match="not the one of the plan"):
            graph_seed(CONTEXT, DIGEST, bent)


@pytest.mark.parametrize("place", [0, 31, 32, 63])
def test_a_flipped_bit_of_the_signature_is_refused(place: int) -> None:
    beacon = make_beacon(seeded_entropy(7)).reveal(CONTEXT.binding, DIGEST)
    bent = bytearray(beacon.signature)
    bent[place] ^= 1
    with pytest.raises(BadSignature, match="did not sign this directory"):
        graph_seed(CONTEXT, DIGEST, replace(beacon, signature=bytes(bent)))


def test_a_signature_over_another_directory_or_session_is_refused() -> None:
    with pytest.raises(BadSignature, match="did not sign this directory"):
        graph_seed(CONTEXT, bytes(32), make_beacon(seeded_entropy(7)).reveal(CONTEXT.binding, DIGEST))
    with pytest.raises(BadSignature, match="did not sign this directory"):
        graph_seed(CONTEXT, DIGEST, make_beacon(seeded_entropy(7)).reveal(bytes(32), DIGEST))


def test_a_complete_graph_has_no_seed() -> None:
    complete = SessionContext(bytes(32), 20, 14, 14, 16, 5)
    with pytest.raises(RemoteProtocolError, match="complete"):
        graph_seed(complete, DIGEST, make_beacon(seeded_entropy(7)).reveal(bytes(32), DIGEST))


def test_a_secret_beacon_shows_nothing() -> None:
    assert "value" not in repr(SECRET)
    assert SECRET.value.hex() not in repr(SECRET)


def test_one_time_signatures_are_those_of_rfc_8032() -> None:
    """Section 7.1, test 2."""
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert verify_key_of(secret) == public
    assert sign_once(secret, b"\x72") == signature
    verify_once(public, b"\x72", signature)
    for key, message, bent in [(public, b"\x73", signature), (bytes(31), b"\x72", signature), (public, b"\x72", b"")]:
        with pytest.raises(BadSignature):
            verify_once(key, message, bent)


@pytest.mark.parametrize(
    "change",
    [
        {"harary": HararySpec(14, bytes(32), (2,))},
        {"threshold": 1},
        {"threshold": 7},
    ],
)
def test_a_context_whose_graph_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        replace(CONTEXT, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("degree", "size", "need"), [(5, 32, 2), (0, 32, 0), (6, 31, 2), (6, 32, 0), (6, 32, 4), (6, 32, None)]
)
def test_the_numbers_of_a_sparse_graph_check_themselves(degree: int, size: int, need: int | None) -> None:
    with pytest.raises(PlanError):
        HararySpec(degree, bytes(size), () if need is None else (need, 1))
