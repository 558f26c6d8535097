"""The key server in rounds 0 and 1: what it takes, what it refuses, and that a refusal changes nothing."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from fl_core.crypto.agreement import generate_key_pair
from fl_core.errors import (
    BadKey,
    BadShares,
    BadSignature,
    IdentityError,
    LocalProtocolError,
    NotEnough,
    RemoteProtocolError,
    SessionFrozen,
    TacitError,
)
from fl_core.secagg import client
from fl_core.secagg.directory import advertisement_statement
from fl_core.secagg.exchange import CollectingAdvertisements
from fl_core.secagg.messages import KeyAdvertisement, SealedShares
from fl_core.simulation import stages

SIZE = 7


def advertisements(cohort: stages.Cohort) -> list[KeyAdvertisement]:
    return [
        client.advertise(cohort.context, index, cohort.signers[index], cohort.verifier, cohort.entropy)[1]
        for index in range(cohort.context.size)
    ]


BENT: dict[str, tuple[Callable[[list[KeyAdvertisement]], KeyAdvertisement], type[TacitError]]] = {
    "an index beyond the roster": (lambda ads: replace(ads[1], index=SIZE), RemoteProtocolError),
    "a negative index": (lambda ads: replace(ads[1], index=-1), RemoteProtocolError),
    "no signature": (lambda ads: replace(ads[1], signature=b""), BadSignature),
    "another's signature": (lambda ads: replace(ads[1], signature=ads[2].signature), BadSignature),
    "another's place": (lambda ads: replace(ads[1], index=2), IdentityError),
    "another's certificate": (lambda ads: replace(ads[1], certificate_der=ads[2].certificate_der), IdentityError),
    "a low-order key": (lambda ads: replace(ads[1], mask_public_key=bytes(32)), BadKey),
    "a swapped key": (
        lambda ads: replace(ads[1], mask_public_key=generate_key_pair(os.urandom).public_key),
        BadSignature,
    ),
}


@pytest.mark.parametrize("name", BENT)
def test_a_bent_advertisement_is_refused_and_changes_nothing(name: str) -> None:
    bend, error = BENT[name]
    cohort = stages.make_cohort(SIZE)
    ads = advertisements(cohort)
    server = CollectingAdvertisements(cohort.context, cohort.verifier)
    server.receive(ads[0])
    with pytest.raises(error):
        server.receive(bend(ads))
    assert server.received == {0}
    server.receive(ads[1])


@pytest.mark.parametrize("owner", [0, 1])
def test_a_key_that_stands_twice_is_refused_though_its_site_signed_it(owner: int) -> None:
    cohort = stages.make_cohort(SIZE)
    ads = advertisements(cohort)
    server = CollectingAdvertisements(cohort.context, cohort.verifier)
    server.receive(ads[0])
    bent = replace(ads[1], mask_public_key=ads[owner].cipher_public_key)
    bent = replace(bent, signature=cohort.signers[1].sign(advertisement_statement(cohort.context, bent)))
    with pytest.raises(BadKey, match=f"one key of site {owner} and site 1"):
        server.receive(bent)
    server.receive(ads[1])


def test_a_key_that_was_refused_is_not_taken() -> None:
    """Nobody can reserve another's key by an advertisement that is refused."""
    cohort = stages.make_cohort(SIZE)
    ads = advertisements(cohort)
    server = CollectingAdvertisements(cohort.context, cohort.verifier)
    with pytest.raises(BadSignature):
        server.receive(replace(ads[0], mask_public_key=ads[1].mask_public_key))
    server.receive(ads[1])


def test_the_same_message_is_taken_again_and_another_is_not() -> None:
    cohort = stages.make_cohort(SIZE)
    first, again = advertisements(cohort), advertisements(cohort)
    server = CollectingAdvertisements(cohort.context, cohort.verifier)
    server.receive(first[0])
    server.receive(first[0])
    with pytest.raises(RemoteProtocolError, match="different keys before"):
        server.receive(again[0])


def test_late_keys_are_refused_and_known_keys_are_not() -> None:
    cohort = stages.make_cohort(SIZE)
    ads = advertisements(cohort)
    server = CollectingAdvertisements(cohort.context, cohort.verifier)
    for advertisement in ads[:6]:
        server.receive(advertisement)
    _, directory = server.close()
    with pytest.raises(SessionFrozen, match="too late"):
        server.receive(ads[6])
    server.receive(ads[0])
    assert [advertisement.index for advertisement in directory.advertisements] == list(range(6))


def test_too_few_keys_keep_the_phase_open() -> None:
    cohort = stages.make_cohort(SIZE)
    ads = advertisements(cohort)
    server = CollectingAdvertisements(cohort.context, cohort.verifier)
    for advertisement in ads[:4]:
        server.receive(advertisement)
    with pytest.raises(NotEnough, match=">= 5, got 4"):
        server.close()
    server.receive(ads[4])
    server.close()
    with pytest.raises(LocalProtocolError, match="stepped twice"):
        server.close()


def sealed_by(stage: stages.Advertised, index: int) -> SealedShares:
    return stage.sites[index].step(stage.directory)[1]


BENT_SHARES: dict[str, tuple[Callable[[SealedShares], SealedShares], type[TacitError], str]] = {
    "a missing recipient": (
        lambda sealed: replace(sealed, shares=sealed.shares[1:]),
        RemoteProtocolError,
        r"got \[0\]",
    ),
    "a recipient twice": (
        lambda sealed: replace(sealed, shares=(sealed.shares[0], *sealed.shares)),
        RemoteProtocolError,
        "not in order",
    ),
    "a recipient beyond U1": (
        lambda sealed: replace(sealed, shares=(*sealed.shares, replace(sealed.shares[0], recipient=6))),
        RemoteProtocolError,
        r"got \[6\]",
    ),
    "itself as recipient": (
        lambda sealed: replace(
            sealed, shares=(sealed.shares[0], replace(sealed.shares[0], recipient=1), *sealed.shares[1:])
        ),
        RemoteProtocolError,
        r"got \[1\]",
    ),
    "another's name": (
        lambda sealed: replace(sealed, shares=(replace(sealed.shares[0], sender=3), *sealed.shares[1:])),
        RemoteProtocolError,
        "another sender",
    ),
    "a long ciphertext": (
        lambda sealed: replace(
            sealed, shares=(replace(sealed.shares[0], ciphertext=bytes(10_000)), *sealed.shares[1:])
        ),
        BadShares,
        "96 bytes, got 10000 bytes",
    ),
    "short commitments": (
        lambda sealed: replace(sealed, shares=(replace(sealed.shares[0], commitments=bytes(31)), *sealed.shares[1:])),
        BadShares,
        "32 bytes, got 31 bytes",
    ),
    "no commitments of its own": (
        lambda sealed: replace(sealed, own_commitments=b""),
        BadShares,
        "32 bytes, got 0 bytes",
    ),
    "nothing": (lambda sealed: replace(sealed, shares=()), RemoteProtocolError, "not those of this session"),
}


@pytest.mark.parametrize("name", BENT_SHARES)
def test_bent_shares_are_refused_and_change_nothing(name: str) -> None:
    bend, error, text = BENT_SHARES[name]
    stage = stages.advertise(stages.make_cohort(SIZE), range(6))
    sealed = sealed_by(stage, 1)
    with pytest.raises(error, match=text):
        stage.server.receive(1, bend(sealed))
    assert stage.server.received == frozenset()
    stage.server.receive(1, sealed)


def test_shares_of_a_stranger_or_of_another_are_refused() -> None:
    stage = stages.advertise(stages.make_cohort(SIZE), range(6))
    sealed = sealed_by(stage, 1)
    with pytest.raises(RemoteProtocolError, match="outside of U1"):
        stage.server.receive(6, sealed)
    with pytest.raises(RemoteProtocolError, match="another sender"):
        stage.server.receive(2, sealed)


def test_only_u2_is_relayed_and_only_to_u2() -> None:
    stage = stages.share(stages.advertise(stages.make_cohort(SIZE)), [0, 2, 3, 4, 6])
    assert stage.server.participants == (0, 2, 3, 4, 6)
    assert set(stage.relayed) == {0, 2, 3, 4, 6}
    for index, relayed in stage.relayed.items():
        assert [share.sender for share in relayed.shares] == [other for other in (0, 2, 3, 4, 6) if other != index]
        assert {share.recipient for share in relayed.shares} == {index}


def test_late_or_different_shares_are_refused_and_known_ones_are_not() -> None:
    stage = stages.advertise(stages.make_cohort(SIZE))
    sealed = {index: sealed_by(stage, index) for index in range(6)}
    for index in range(6):
        stage.server.receive(index, sealed[index])
        stage.server.receive(index, sealed[index])
    bent = replace(sealed[0].shares[0], ciphertext=bytes(96))
    with pytest.raises(RemoteProtocolError, match="different shares before"):
        stage.server.receive(0, replace(sealed[0], shares=(bent, *sealed[0].shares[1:])))
    stage.server.close()
    with pytest.raises(SessionFrozen, match="too late"):
        stage.server.receive(6, sealed_by(stage, 6))
    stage.server.receive(0, sealed[0])
    with pytest.raises(LocalProtocolError, match="stepped twice"):
        stage.server.close()


def test_too_few_shares_keep_the_phase_open() -> None:
    stage = stages.advertise(stages.make_cohort(SIZE))
    for index in range(4):
        stage.server.receive(index, sealed_by(stage, index))
    with pytest.raises(NotEnough, match=">= 5, got 4"):
        stage.server.close()
    stage.server.receive(4, sealed_by(stage, 4))
    stage.server.close()
