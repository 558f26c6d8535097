"""What a site checks: every message of a server, bent in every way, is refused, changes nothing and reveals nothing."""

import copy
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
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
    TacitError,
)
from fl_core.secagg import client
from fl_core.secagg.messages import (
    ConsistencyProof,
    KeyAdvertisement,
    KeyDirectory,
    RelayedShares,
    SurvivorSet,
    SurvivorSignature,
)
from fl_core.secagg.sealing import HeldShares, seal_shares
from fl_core.simulation import stages

SIZE = 7
LOW_ORDER = (1).to_bytes(32, "little")
Bend = Callable[[tuple[KeyAdvertisement, ...]], tuple[KeyAdvertisement, ...]]


def at(index: int, /, **changes: object) -> Bend:
    """Change fields of one advertisement of a directory."""

    def bend(advertisements: tuple[KeyAdvertisement, ...]) -> tuple[KeyAdvertisement, ...]:
        changed = replace(advertisements[index], **changes)  # type: ignore[arg-type]
        return (*advertisements[:index], changed, *advertisements[index + 1 :])

    return bend


def copied(field: str, source: int, target: int) -> Bend:
    """Give one site a field of another."""
    return lambda advertisements: at(target, **{field: getattr(advertisements[source], field)})(advertisements)


BENT_DIRECTORIES: dict[str, tuple[Bend, type[TacitError], str]] = {
    "an unsigned key": (at(3, signature=b""), BadSignature, "verify"),
    "a swapped mask key": (at(3, mask_public_key=generate_key_pair(os.urandom).public_key), BadSignature, "verify"),
    "a swapped cipher key": (at(3, cipher_public_key=generate_key_pair(os.urandom).public_key), BadSignature, "verify"),
    "a swapped commitment": (at(3, self_seed_commitment=os.urandom(32)), BadSignature, "verify"),
    "another's signature": (copied("signature", 2, 3), BadSignature, "verify"),
    "another's certificate": (copied("certificate_der", 2, 3), IdentityError, "certificate of site 3"),
    "a low-order mask key": (at(3, mask_public_key=LOW_ORDER), BadKey, "low order"),
    "a low-order cipher key": (at(3, cipher_public_key=LOW_ORDER), BadKey, "low order"),
    "a short key": (at(3, mask_public_key=bytes(31)), BadKey, "32 bytes"),
    "a short commitment": (at(3, self_seed_commitment=bytes(31)), BadKey, "32 bytes"),
    "a key of two sites": (copied("mask_public_key", 2, 3), BadKey, "stands twice"),
    "one key for two purposes": (
        lambda directory: at(3, cipher_public_key=directory[3].mask_public_key)(directory),
        BadKey,
        "stands twice",
    ),
    "our own mask key replaced": (
        at(0, mask_public_key=generate_key_pair(os.urandom).public_key),
        RemoteProtocolError,
        "our own keys",
    ),
    "ourselves left out": (lambda directory: directory[1:], RemoteProtocolError, "our own keys"),
    "a site twice": (lambda directory: (*directory, directory[-1]), RemoteProtocolError, "not in order"),
    "no order": (lambda directory: directory[::-1], RemoteProtocolError, "not in order"),
    "a site beyond the roster": (at(6, index=SIZE), RemoteProtocolError, "nobody in the roster"),
    "too few sites": (lambda directory: directory[:4], NotEnough, ">= 5"),
    "nobody": (lambda directory: (), NotEnough, ">= 5"),
}


@pytest.mark.parametrize("name", BENT_DIRECTORIES)
def test_a_bent_directory_is_refused_and_changes_nothing(name: str) -> None:
    bend, error, text = BENT_DIRECTORIES[name]
    stage = stages.advertise(stages.make_cohort(SIZE))
    with pytest.raises(error, match=text):
        stage.sites[0].step(KeyDirectory(bend(stage.directory.advertisements)))
    stage.sites[0].step(stage.directory)


def test_a_site_outside_of_the_roster_cannot_begin() -> None:
    cohort = stages.make_cohort(SIZE)
    for index in (-1, SIZE):
        with pytest.raises(LocalProtocolError, match="not in the roster"):
            client.advertise(cohort.context, index, cohort.signers[0], cohort.verifier, os.urandom)


BENT_RELAYS: dict[str, tuple[Callable[[RelayedShares], RelayedShares], type[TacitError], str]] = {
    "a short ciphertext": (
        lambda relay: RelayedShares((replace(relay.shares[0], ciphertext=b"short"), *relay.shares[1:])),
        BadShares,
        "96 bytes, got 5 bytes",
    ),
    "a share for somebody else": (
        lambda relay: RelayedShares((replace(relay.shares[0], recipient=2), *relay.shares[1:])),
        RemoteProtocolError,
        "somebody else",
    ),
    "a share of ourselves": (
        lambda relay: RelayedShares((replace(relay.shares[0], sender=0), *relay.shares[1:])),
        RemoteProtocolError,
        "outside the neighbours",
    ),
    "a sender twice": (
        lambda relay: RelayedShares((relay.shares[0], *relay.shares)),
        RemoteProtocolError,
        "not in order",
    ),
    "an unknown sender": (
        lambda relay: RelayedShares((*relay.shares, replace(relay.shares[-1], sender=SIZE))),
        RemoteProtocolError,
        "outside the neighbours",
    ),
    "too few senders": (lambda relay: RelayedShares(relay.shares[:3]), NotEnough, ">= 5, got 4"),
}


@pytest.mark.parametrize("name", BENT_RELAYS)
def test_a_bent_relay_is_refused_and_changes_nothing(name: str) -> None:
    bend, error, text = BENT_RELAYS[name]
    stage = stages.share(stages.advertise(stages.make_cohort(SIZE)))
    with pytest.raises(error, match=text):
        stage.sites[0].step(bend(stage.relayed[0]))
    assert stage.sites[0].step(stage.relayed[0]).participants == tuple(range(SIZE))


def test_sealed_bytes_that_are_no_shares_are_complained_about() -> None:
    stage = stages.share(stages.advertise(stages.make_cohort(SIZE)))
    waiting = stage.sites[0]
    false = HeldShares(mask_key=b"\xff" * 40, self_seed=bytes(40))
    sealed = seal_shares(waiting.directory, 1, 0, waiting.opening_keys[1], false)
    ready = waiting.step(RelayedShares((sealed, *stage.relayed[0].shares[1:])))
    assert ready.participants == tuple(range(SIZE))
    assert sorted(ready.held_shares) == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(5, np.uint32),
        np.zeros(7, np.uint32),
        np.zeros((6, 1), np.uint32),
        np.zeros(6, np.uint64),
        np.zeros(6, np.int32),
        np.full(6, 1 << 20, np.uint32),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_and_changes_nothing(vector: np.ndarray) -> None:
    shared = stages.share(stages.advertise(stages.make_cohort(3, ring_bits=20)))
    ready = shared.sites[0].step(shared.relayed[0])
    with pytest.raises(LocalProtocolError):
        ready.step(vector)
    ready.step(np.zeros(6, np.uint32))


def test_masking_leaves_the_sites_own_vector_alone() -> None:
    cohort = stages.make_cohort(3)
    before = cohort.vectors[0].copy()
    stages.upload(stages.share(stages.advertise(cohort)))
    assert np.array_equal(cohort.vectors[0], before)


def test_a_mask_made_early_gives_the_same_upload() -> None:
    def upload(early: bool) -> np.ndarray:
        cohort = stages.make_cohort(5, seed=9, ring_bits=19)
        shared = stages.share(stages.advertise(cohort))
        ready = shared.sites[2].step(shared.relayed[2])
        phase = ready.expand_mask() if early else ready
        assert phase.participants == tuple(range(5))
        return phase.step(cohort.vectors[2])[1].vector

    assert np.array_equal(upload(early=True), upload(early=False))


def test_a_mask_is_made_once_and_used_once() -> None:
    cohort = stages.make_cohort(3)
    shared = stages.share(stages.advertise(cohort))
    ready = shared.sites[0].step(shared.relayed[0])
    expanded = ready.expand_mask()
    for again in (ready.expand_mask, lambda: ready.step(cohort.vectors[0])):
        with pytest.raises(LocalProtocolError, match="stepped twice"):
            again()
    expanded.step(cohort.vectors[0])
    with pytest.raises(LocalProtocolError, match="stepped twice"):
        expanded.step(cohort.vectors[0])


# The five checks of Google's client in its third round, each by its name there, and the two that our lists add.
BENT_SURVIVORS: dict[str, tuple[tuple[int, ...], type[TacitError], str]] = {
    "self listed dead": ((1, 2, 3, 4, 5), RemoteProtocolError, "leave this site out"),
    "unknown id": ((0, 1, 2, 3, 4, SIZE), RemoteProtocolError, "outside U2"),
    "listed twice": ((0, 1, 1, 2, 3, 4), RemoteProtocolError, "not in order"),
    "already dead": ((0, 1, 2, 3, 4, 6), RemoteProtocolError, "outside U2.*got site 6"),
    "alive below the threshold": ((0, 1, 2, 3), NotEnough, ">= 5, got 4"),
    "negative id": ((-1, 0, 1, 2, 3, 4), RemoteProtocolError, "outside U2"),
    "nobody": ((), RemoteProtocolError, "leave this site out"),
}


@pytest.mark.parametrize("name", BENT_SURVIVORS)
def test_a_bent_survivor_set_is_refused_and_changes_nothing(name: str) -> None:
    survivors, error, text = BENT_SURVIVORS[name]
    stage = stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE)), range(6)))
    with pytest.raises(error, match=text):
        stage.sites[0].step(SurvivorSet(survivors))
    stage.sites[0].step(stage.survivor_set)


def test_a_site_helps_nobody_below_the_smallest_cohort_though_the_threshold_is_met() -> None:
    cohort = stages.make_cohort(SIZE, threshold=5, min_survivors=6)
    stage = stages.upload(stages.share(stages.advertise(cohort)))
    with pytest.raises(NotEnough, match="survivors: expected >= 6, got 5"):
        stage.sites[0].step(SurvivorSet((0, 1, 2, 3, 4)))
    with pytest.raises(NotEnough, match="survivors: expected >= 6, got 5"):
        stage.server.freeze(SurvivorSet((0, 1, 2, 3, 4)))


def test_a_site_looks_at_one_survivor_set_only() -> None:
    stage = stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE))))
    stage.sites[0].step(SurvivorSet((0, 1, 2, 3, 4)))
    for second in ((0, 1, 2, 3, 4), tuple(range(SIZE))):
        with pytest.raises(LocalProtocolError, match="stepped twice"):
            stage.sites[0].step(SurvivorSet(second))


def _signed_by(stage: stages.Signed, index: int, signer: int) -> SurvivorSignature:
    statement = stage.sites[index].statement
    return SurvivorSignature(index, stage.cohort.signers[signer].sign(statement))


BENT_PROOFS: dict[str, tuple[Callable[[stages.Signed], ConsistencyProof], type[TacitError], str]] = {
    "too few": (lambda stage: ConsistencyProof(stage.proof.signatures[:4]), NotEnough, ">= 5, got 4"),
    "one signer twice": (
        lambda stage: ConsistencyProof((stage.proof.signatures[0], *stage.proof.signatures[:4])),
        RemoteProtocolError,
        "not in order",
    ),
    "a signer outside of U3": (
        lambda stage: ConsistencyProof((*stage.proof.signatures, SurvivorSignature(6, b"signature"))),
        RemoteProtocolError,
        "outside U3.*got site 6",
    ),
    "one signature by another key": (
        lambda stage: ConsistencyProof((_signed_by(stage, 0, signer=1), *stage.proof.signatures[1:])),
        BadSignature,
        "verify",
    ),
    "an empty signature": (
        lambda stage: ConsistencyProof((SurvivorSignature(0, b""), *stage.proof.signatures[1:])),
        BadSignature,
        "verify",
    ),
}


@pytest.mark.parametrize("name", BENT_PROOFS)
def test_a_bent_proof_is_refused_and_nothing_is_revealed(name: str) -> None:
    bend, error, text = BENT_PROOFS[name]
    stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE))), range(6)))
    with pytest.raises(error, match=text):
        stage.sites[0].step(bend(stage))
    stage.sites[0].step(stage.proof)


def test_a_site_reveals_one_kind_of_share_per_peer_and_its_own_seed_share() -> None:
    stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE))), [0, 1, 2, 3, 5]))
    finished, revealed = stage.sites[2].step(stage.proof)
    assert [share.owner for share in revealed.self_seed_shares] == [0, 1, 2, 3, 5]
    assert [share.owner for share in revealed.mask_key_shares] == [4, 6]
    assert finished.survivors == (0, 1, 2, 3, 5)


def test_who_dropped_before_sharing_has_nothing_revealed() -> None:
    shared = stages.share(stages.advertise(stages.make_cohort(SIZE)), range(6))
    stage = stages.sign(stages.upload(shared, range(5)))
    _, revealed = stage.sites[0].step(stage.proof)
    assert {share.owner for share in (*revealed.self_seed_shares, *revealed.mask_key_shares)} == set(range(6))


def test_no_phase_moves_twice() -> None:
    cohort = stages.make_cohort(3)
    advertised = stages.advertise(cohort)
    shared = stages.share(advertised)
    uploaded = stages.upload(shared)
    signed = stages.sign(uploaded)
    stages.reveal(signed)
    for again in (
        lambda: advertised.sites[0].step(advertised.directory),
        lambda: shared.sites[0].step(shared.relayed[0]),
        lambda: uploaded.sites[0].step(uploaded.survivor_set),
        lambda: signed.sites[0].step(signed.proof),
    ):
        with pytest.raises(LocalProtocolError, match="stepped twice"):
            again()


def test_no_phase_shows_a_secret_or_can_be_copied() -> None:
    advertised = stages.advertise(stages.make_cohort(3))
    collecting = advertised.sites[0]
    secrets = [
        collecting.cipher_keys.secret_key,
        collecting.secrets.mask_secret_key,
        collecting.secrets.self_seed,
    ]
    shared = stages.share(advertised)
    ready = shared.sites[0].step(shared.relayed[0])
    secrets += [part for held in ready.held_shares.values() for part in (held.mask_key, held.self_seed)]
    awaiting, _ = ready.step(shared.cohort.vectors[0])
    for phase in (collecting, shared.sites[0], ready, awaiting):
        shown = repr(phase)
        assert not any(repr(secret) in shown or secret.hex() in shown for secret in secrets)
        with pytest.raises(LocalProtocolError, match="copied"):
            copy.deepcopy(phase._turn)


def test_every_attempt_has_fresh_keys_and_an_unrelated_mask() -> None:
    """A site that is asked to run a round again masks the same vector anew: the difference says nothing."""
    uploads = []
    for attempt in (1, 2):
        cohort = stages.make_cohort(3, seed=4, attempt=attempt, length=4096, ring_bits=8)
        shared = stages.share(stages.advertise(cohort))
        ready = shared.sites[0].step(shared.relayed[0])
        uploads.append(ready.step(np.zeros(4096, np.uint8))[1].vector)
    counts = np.bincount(uploads[0] - uploads[1], minlength=256)
    # Chi-square of 255 degrees of freedom: beyond 360 with a chance below 2e-5, and the seed is fixed.
    assert float(((counts - 16.0) ** 2 / 16.0).sum()) < 360
