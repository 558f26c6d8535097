"""The key server in rounds 3 and 4: one survivor set, checked shares, and nothing but a sum of masks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.shamir import PRIME, lagrange_at_zero
from fl_core.errors import (
    BadShares,
    BadSignature,
    LocalProtocolError,
    NotEnough,
    RemoteProtocolError,
    SessionFrozen,
    TacitError,
)
from fl_core.secagg.blame import FalseDealing
from fl_core.secagg.commitments import CommitmentBook
from fl_core.secagg.messages import RevealedShare, RevealedShares, SurvivorSet, SurvivorSignature
from fl_core.secagg.rebuilding import RebuildJob
from fl_core.secagg.unmasking import RebuiltSeeds
from fl_core.simulation import stages

SIZE = 7


def uploaded(survivors: range | list[int] = range(5), **options: int) -> stages.Uploaded:
    return stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE, **options))), survivors)


def rebuilt(stage: stages.Signed) -> RebuiltSeeds:
    for index in stage.sites:
        stage.server.receive(stage.sites[index].step(stage.proof)[1])
    return stage.server.close()


@pytest.mark.parametrize(
    ("survivors", "error"),
    [
        ((0, 1, 2, 3, SIZE), RemoteProtocolError),
        ((0, 1, 2, 3, 3), RemoteProtocolError),
        ((4, 3, 2, 1, 0), RemoteProtocolError),
        ((0, 1, 2, 3), NotEnough),
        ((), NotEnough),
    ],
)
def test_a_bent_survivor_set_is_refused_and_changes_nothing(
    survivors: tuple[int, ...], error: type[TacitError]
) -> None:
    stage = uploaded()
    with pytest.raises(error):
        stage.server.freeze(SurvivorSet(survivors))
    stage.server.freeze(stage.survivor_set)


def test_survivors_are_fixed_once() -> None:
    stage = uploaded()
    stage.server.freeze(stage.survivor_set)
    for again in (stage.survivor_set, SurvivorSet(tuple(range(SIZE)))):
        with pytest.raises(LocalProtocolError, match="stepped twice"):
            stage.server.freeze(again)


def test_a_signature_of_a_stranger_of_another_or_of_another_set_is_refused() -> None:
    stage = uploaded()
    other = uploaded([0, 1, 2, 3, 6])
    signatures = stage.server.freeze(stage.survivor_set)
    good = stage.sites[0].step(stage.survivor_set)[1]
    statement = stage.sites[1].step(stage.survivor_set)[0].statement
    stranger = SurvivorSignature(6, stage.cohort.signers[6].sign(statement))
    for bent, error, text in (
        (stranger, RemoteProtocolError, "outside of U3"),
        (replace(good, index=1), BadSignature, "verify"),
        (SurvivorSignature(0, b""), BadSignature, "verify"),
        (other.sites[0].step(other.survivor_set)[1], BadSignature, "verify"),
    ):
        with pytest.raises(error, match=text):
            signatures.receive(bent)
    assert signatures.received == frozenset()
    signatures.receive(good)
    signatures.receive(good)
    assert signatures.received == {0}


def test_too_few_signatures_keep_the_phase_open_and_late_ones_are_refused() -> None:
    stage = uploaded(range(6))
    signatures = stage.server.freeze(stage.survivor_set)
    messages = [stage.sites[index].step(stage.survivor_set)[1] for index in range(6)]
    for message in messages[:4]:
        signatures.receive(message)
    with pytest.raises(NotEnough, match=">= 5, got 4"):
        signatures.close()
    signatures.receive(messages[4])
    _, proof = signatures.close()
    assert [signature.index for signature in proof.signatures] == [0, 1, 2, 3, 4]
    with pytest.raises(SessionFrozen):
        signatures.receive(messages[5])
    signatures.receive(messages[0])


def bend_first(shares: tuple[RevealedShare, ...], **changes: object) -> tuple[RevealedShare, ...]:
    return (replace(shares[0], **changes), *shares[1:])  # type: ignore[arg-type]


BENT: dict[str, tuple[Callable[[RevealedShares], RevealedShares], type[TacitError]]] = {
    "of a stranger": (lambda sent: replace(sent, index=6), RemoteProtocolError),
    "a seed share missing": (
        lambda sent: replace(sent, self_seed_shares=sent.self_seed_shares[1:]),
        RemoteProtocolError,
    ),
    "a key share missing": (lambda sent: replace(sent, mask_key_shares=()), RemoteProtocolError),
    "both kinds of one owner": (
        lambda sent: replace(sent, mask_key_shares=(sent.self_seed_shares[0], *sent.mask_key_shares)),
        RemoteProtocolError,
    ),
    "an owner twice": (
        lambda sent: replace(sent, self_seed_shares=(sent.self_seed_shares[0], *sent.self_seed_shares)),
        RemoteProtocolError,
    ),
    "the kinds swapped": (
        lambda sent: replace(sent, self_seed_shares=sent.mask_key_shares, mask_key_shares=sent.self_seed_shares),
        RemoteProtocolError,
    ),
    "a short share": (
        lambda sent: replace(sent, self_seed_shares=bend_first(sent.self_seed_shares, share=bytes(39))),
        BadShares,
    ),
    "a number beyond the field": (
        lambda sent: replace(sent, mask_key_shares=bend_first(sent.mask_key_shares, share=b"\xff" * 40)),
        BadShares,
    ),
    "a pickled object": (
        lambda sent: replace(sent, self_seed_shares=bend_first(sent.self_seed_shares, share=b"cos\nsystem\n.")),
        BadShares,
    ),
}


@pytest.mark.parametrize("name", BENT)
def test_bent_reveals_are_refused_and_change_nothing(name: str) -> None:
    bend, error = BENT[name]
    stage = stages.sign(uploaded())
    sent = stage.sites[0].step(stage.proof)[1]
    with pytest.raises(error):
        stage.server.receive(bend(sent))
    assert stage.server.received == frozenset()
    stage.server.receive(sent)


def test_reveals_are_taken_again_but_not_changed_and_not_late() -> None:
    stage = stages.sign(uploaded(range(6)))
    sent = [stage.sites[index].step(stage.proof)[1] for index in range(6)]
    for message in sent[:5]:
        stage.server.receive(message)
    stage.server.receive(sent[0])
    false = replace(sent[0], self_seed_shares=bend_first(sent[0].self_seed_shares, share=bytes(40)))
    with pytest.raises(RemoteProtocolError, match="different shares before"):
        stage.server.receive(false)
    stage.server.close()
    with pytest.raises(SessionFrozen):
        stage.server.receive(sent[5])


def test_only_who_signed_may_reveal() -> None:
    stage = stages.sign(uploaded(range(6)), range(5))
    sent = stage.sites[0].step(stage.proof)[1]
    with pytest.raises(RemoteProtocolError, match="outside of U4"):
        stage.server.receive(replace(sent, index=5))


def test_too_few_reveals_keep_the_phase_open() -> None:
    stage = stages.sign(uploaded())
    sent = [stage.sites[index].step(stage.proof)[1] for index in range(5)]
    for message in sent[:4]:
        stage.server.receive(message)
    with pytest.raises(NotEnough, match=">= 5, got 4"):
        stage.server.close()
    stage.server.receive(sent[4])
    stage.server.close()


def eight_more(share: bytes, holder: int) -> bytes:
    """A false share by which the secret of holders 0 to 4 comes out eight larger: a well-formed, wrong secret.

    Less would not do: X25519 ignores the lowest three bits of a secret key.
    """
    weight = int(lagrange_at_zero(range(5))[holder])
    limb = (int.from_bytes(share[:8], "little") + 8 * pow(weight, -1, PRIME)) % PRIME
    return limb.to_bytes(8, "little") + share[8:]


@pytest.mark.parametrize("kind", ["self_seed_shares", "mask_key_shares"])
def test_a_false_share_with_too_few_right_ones_gives_no_mask_and_names_the_holder(kind: str) -> None:
    stage = stages.sign(uploaded())
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        if index == 3:
            shares = getattr(sent, kind)
            false = bend_first(shares, share=eight_more(shares[0].share, 3))
            sent = replace(sent, **{kind: false})  # type: ignore[arg-type]
        stage.server.receive(sent)
    with pytest.raises(NotEnough, match=f"right shares of site {0 if kind == 'self_seed_shares' else 5}"):
        stage.server.close()
    assert stage.server.blame.holders == {3}


@pytest.mark.parametrize("kind", ["self_seed_shares", "mask_key_shares"])
def test_without_commitments_a_false_share_would_name_its_owner(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitmentBook, "is_right", lambda *_: True)
    stage = stages.sign(uploaded())
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        if index == 3:
            shares = getattr(sent, kind)
            false = bend_first(shares, share=eight_more(shares[0].share, 3))
            sent = replace(sent, **{kind: false})  # type: ignore[arg-type]
        stage.server.receive(sent)
    with pytest.raises(FalseDealing, match=f"site {0 if kind == 'self_seed_shares' else 5} do not rebuild its"):
        stage.server.close()


def revealing(sparse: bool, liar: int | None) -> stages.Signed:
    """A session that waits to be closed; `liar` revealed a false share of each kind that it has."""
    if sparse:
        cohort = stages.make_cohort(16, threshold=4, min_survivors=11, sparse=stages.Sparse(6, (3,)))
        stage = stages.sign(stages.upload(stages.share(stages.advertise(cohort)), range(14)))
    else:
        stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(9, threshold=6))), range(7)))
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        if index == liar:
            kinds = {kind: getattr(sent, kind) for kind in ("self_seed_shares", "mask_key_shares")}
            sent = replace(sent, **{kind: bend_first(own, share=bytes(40)) for kind, own in kinds.items() if own})
        stage.server.receive(sent)
    return stage


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("liar", [None, 2])
@pytest.mark.parametrize("parts", [1, 2, 5, 100])
def test_secrets_rebuilt_by_jobs_in_threads_are_those_of_one_call(sparse: bool, liar: int | None, parts: int) -> None:
    alone, together = revealing(sparse, liar).server, revealing(sparse, liar).server
    jobs = together.rebuild_jobs(parts)
    with ThreadPoolExecutor(3) as pool:
        seeds = together.close(list(pool.map(RebuildJob.rebuild, jobs)))
    expected = alone.close()
    assert 1 <= len(jobs) <= parts
    assert (seeds.self_seeds, seeds.mask_keys) == (expected.self_seeds, expected.mask_keys)
    assert (seeds.survivors, seeds.revealed) == (expected.survivors, expected.revealed)
    assert together.blame == alone.blame
    assert together.blame.holders == (frozenset() if liar is None else {liar})


def test_every_job_has_to_be_done_before_the_phase_closes_once() -> None:
    server = revealing(sparse=False, liar=None).server
    first, *others = [job.rebuild() for job in server.rebuild_jobs(3)]
    with pytest.raises(LocalProtocolError, match="not every secret"):
        server.close(others)
    server.close([first, *others])
    with pytest.raises(LocalProtocolError):
        server.close([first, *others])


def test_jobs_name_every_false_dealer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitmentBook, "is_right", lambda *_: True)
    stage = stages.sign(uploaded())
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        if index == 3:
            kinds = {kind: getattr(sent, kind) for kind in ("self_seed_shares", "mask_key_shares")}
            bends = {kind: bend_first(own, share=eight_more(own[0].share, 3)) for kind, own in kinds.items()}
            sent = replace(sent, **bends)
        stage.server.receive(sent)
    for parts in (1, 2, 7):
        with pytest.raises(FalseDealing) as caught:
            stage.server.close([job.rebuild() for job in stage.server.rebuild_jobs(parts)])
        assert caught.value.dealers == (0, 5)


def test_jobs_in_threads_give_the_same_mask_as_one_call() -> None:
    stage = stages.sign(uploaded(length=1001, ring_bits=21))
    seeds = rebuilt(stage)
    mask = seeds.combined_mask()
    with ThreadPoolExecutor(3) as pool:
        parts = [seeds.owners[part::3] for part in range(3)]
        terms = [term for made in pool.map(seeds.terms_of, parts) for term in made]
        out = np.full_like(mask, 7)
        list(pool.map(lambda job: job.expand(out), seeds.mask_jobs(7, terms)))
    assert np.array_equal(out, mask)
    with pytest.raises(LocalProtocolError, match="no parts"):
        seeds.mask_jobs(0)


def test_a_pair_of_which_both_dropped_out_is_skipped() -> None:
    seeds = rebuilt(stages.sign(uploaded(range(5))))
    assert [len(seeds.terms_of([owner])) for owner in seeds.owners] == [1, 1, 1, 1, 1, 5, 5]
    assert len(seeds.terms_of(seeds.owners)) == 15


def test_rebuilt_secrets_are_those_of_their_owners_and_are_never_shown() -> None:
    cohort = stages.make_cohort(SIZE)
    advertised = stages.advertise(cohort)
    drawn = {index: site.secrets for index, site in advertised.sites.items()}
    seeds = rebuilt(stages.sign(stages.upload(stages.share(advertised), range(5))))
    assert seeds.self_seeds == {index: drawn[index].self_seed for index in range(5)}
    assert seeds.mask_keys == {index: drawn[index].mask_secret_key for index in (5, 6)}
    for secret in (*seeds.self_seeds.values(), *seeds.mask_keys.values()):
        assert repr(secret) not in repr(seeds)


@settings(max_examples=25, deadline=None)
@given(ring_bits=st.sampled_from([1, 7, 8, 15, 16, 23, 32, 40, 64]), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_sum_is_exact_in_every_ring(ring_bits: int, length: int, seed: int) -> None:
    cohort = stages.make_cohort(4, seed=seed, ring_bits=ring_bits, length=length)
    total = stages.reveal(stages.sign(stages.upload(stages.share(stages.advertise(cohort)), [0, 1, 3])))
    assert np.array_equal(total, cohort.sum_of([0, 1, 3]))
