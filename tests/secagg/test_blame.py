"""Who lied about shares: exactly the liars are named, and the sum is exact as long as enough right shares remain."""

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.shamir import PRIME
from fl_core.errors import BadShares, NotEnough, RemoteProtocolError
from fl_core.secagg import client
from fl_core.secagg.blame import Blame, FalseDealing
from fl_core.secagg.commitments import PAIR_BYTES, ShareKind, commit_share
from fl_core.secagg.messages import RelayedShares, RevealedShare, RevealedShares, SealedShares
from fl_core.secagg.sealing import HeldShares, agree_share_keys, commit_to, seal_shares
from fl_core.simulation import stages

SIZE = 7


def bent(share: bytes) -> bytes:
    """Another share that is well formed."""
    limb = (int.from_bytes(share[:8], "little") + 8) % PRIME
    return limb.to_bytes(8, "little") + share[8:]


def lie_about(shares: tuple[RevealedShare, ...], owners: set[int]) -> tuple[RevealedShare, ...]:
    return tuple(replace(one, share=bent(one.share)) if one.owner in owners else one for one in shares)


def lie(sent: RevealedShares, owners: set[int]) -> RevealedShares:
    return replace(
        sent,
        self_seed_shares=lie_about(sent.self_seed_shares, owners),
        mask_key_shares=lie_about(sent.mask_key_shares, owners),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_f_liars_are_blamed_exactly_and_the_sum_is_exact(data: st.DataObject) -> None:
    """n = 9, t = 5: whoever survives, and whatever the liars lie about, of either kind of share."""
    size, threshold = 9, 5
    survivors = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=6, max_size=size)))
    liars = data.draw(st.sets(st.sampled_from(survivors), max_size=len(survivors) - threshold))
    cohort = stages.make_cohort(size, threshold=threshold)
    stage = stages.sign(stages.upload(stages.share(stages.advertise(cohort)), survivors))
    for index in survivors:
        sent = stage.sites[index].step(stage.proof)[1]
        if index in liars:
            about = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
            sent = lie(sent, about)
        stage.server.receive(sent)
    total = stage.aggregation.step(stage.server.close().combined_mask()).sum
    assert np.array_equal(total, cohort.sum_of(survivors))
    assert stage.server.blame == Blame(frozenset(liars), {})


def test_one_liar_too_many_leaves_too_few_right_shares_and_all_are_named() -> None:
    cohort = stages.make_cohort(9, threshold=5)
    stage = stages.sign(stages.upload(stages.share(stages.advertise(cohort)), range(8)))
    for index in range(8):
        sent = stage.sites[index].step(stage.proof)[1]
        stage.server.receive(lie(sent, {2}) if index < 4 else sent)
    with pytest.raises(NotEnough, match=r"right shares of site 2.*>= 5, got 4"):
        stage.server.close()
    assert stage.server.blame.holders == {0, 1, 2, 3}


def deal(
    stage: stages.Advertised, dealer: int, change: Callable[[int, HeldShares], HeldShares], *, honestly: bool
) -> tuple[client.CollectingShares, SealedShares]:
    """Round 1 of a dealer that changes shares before it seals them; honestly: it commits to what it seals."""
    site = stage.sites[dealer]
    directory = site._checked(stage.directory)
    held = dict(site._split(directory))
    keys = agree_share_keys(directory, dealer, site.cipher_keys.secret_key)
    false = {peer: change(peer, held[peer]) for peer in keys}
    sealed = [seal_shares(directory, dealer, peer, keys[peer].sealing, false[peer]) for peer in keys]
    if not honestly:
        sealed = [
            replace(one, commitments=commit_to(directory, dealer, one.recipient, held[one.recipient])) for one in sealed
        ]
    opening = {peer: keys[peer].opening for peer in keys}
    following = client.CollectingShares(site.member, directory, site.secrets, held[dealer], opening)
    own = commit_to(directory, dealer, dealer, held[dealer])
    return following, SealedShares(tuple(sealed), own)


def shared_with(stage: stages.Advertised, dealer: int, *dealt: object) -> stages.Shared:
    """Round 1 in which one dealer's part is given."""
    following, sealed = dealt
    sites = {}
    for index in stage.sites:
        if index != dealer:
            sites[index], message = stage.sites[index].step(stage.directory)
            stage.server.receive(index, message)
    sites[dealer] = following  # type: ignore[assignment]
    stage.server.receive(dealer, sealed)  # type: ignore[arg-type]
    return stages.Shared(stage.cohort, dict(sorted(sites.items())), *stage.server.close())


def both_bent(_: int, held: HeldShares) -> HeldShares:
    return HeldShares(bent(held.mask_key), bent(held.self_seed))


@pytest.mark.parametrize("survivors", [range(SIZE), [0, 1, 2, 4, 5, 6]])
def test_a_dealer_that_commits_to_false_shares_is_named_whether_it_survives_or_not(survivors: list[int]) -> None:
    advertised = stages.advertise(stages.make_cohort(SIZE))
    shared = shared_with(advertised, 3, *deal(advertised, 3, both_bent, honestly=True))
    stage = stages.sign(stages.upload(shared, survivors))
    for index in stage.sites:
        stage.server.receive(stage.sites[index].step(stage.proof)[1])
    with pytest.raises(FalseDealing, match="site 3 do not rebuild its") as caught:
        stage.server.close()
    assert caught.value.dealers == (3,)
    assert stage.server.blame == Blame(frozenset(), {})


def test_shares_of_no_secret_at_all_name_their_dealer_and_no_other() -> None:
    def huge(_: int, held: HeldShares) -> HeldShares:
        return HeldShares(os.urandom(7) + b"\x00" + held.mask_key[8:], os.urandom(7) + b"\x00" + held.self_seed[8:])

    advertised = stages.advertise(stages.make_cohort(SIZE))
    shared = shared_with(advertised, 3, *deal(advertised, 3, huge, honestly=True))
    stage = stages.sign(stages.upload(shared))
    for index in stage.sites:
        stage.server.receive(stage.sites[index].step(stage.proof)[1])
    with pytest.raises(FalseDealing) as caught:
        stage.server.close()
    assert caught.value.dealers == (3,)


def test_a_dealer_whose_shares_do_not_fit_its_commitments_is_complained_about_and_the_sum_is_exact() -> None:
    def two_bent(peer: int, held: HeldShares) -> HeldShares:
        return both_bent(peer, held) if peer in (0, 5) else held

    cohort = stages.make_cohort(SIZE)
    advertised = stages.advertise(cohort)
    shared = shared_with(advertised, 3, *deal(advertised, 3, two_bent, honestly=False))
    stage = stages.sign(stages.upload(shared))
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        assert sent.complaints == ((3,) if index in (0, 5) else ())
        stage.server.receive(sent)
    blame = stage.server.blame
    total = stage.aggregation.step(stage.server.close().combined_mask()).sum
    assert np.array_equal(total, cohort.sum_of(range(SIZE)))
    assert blame == Blame(frozenset(), {3: frozenset({0, 5})})
    assert blame.dealers(tolerated=1) == {3}
    assert blame.dealers(tolerated=2) == frozenset()
    assert blame.complainers(tolerated=1) == frozenset()


def test_nonsense_of_one_dealer_ends_nobodys_attempt_and_of_many_ends_it_before_the_upload() -> None:
    shared = stages.share(stages.advertise(stages.make_cohort(SIZE)))
    relayed = shared.relayed[0].shares
    nonsense = tuple(replace(one, ciphertext=os.urandom(len(one.ciphertext))) for one in relayed)
    with pytest.raises(BadShares, match="do not open"):
        shared.sites[0].step(RelayedShares((*nonsense[:3], *relayed[3:])))
    ready = shared.sites[0].step(RelayedShares((*nonsense[:2], *relayed[2:])))
    assert ready.participants == tuple(range(SIZE))
    assert sorted(ready.held_shares) == [0, 3, 4, 5, 6]


def test_a_key_server_that_changes_commitments_gains_complaints_and_no_share() -> None:
    shared = stages.share(stages.advertise(stages.make_cohort(SIZE)))
    first, *others = shared.relayed[0].shares
    shared.relayed[0] = RelayedShares((replace(first, commitments=bytes(PAIR_BYTES)), *others))
    stage = stages.sign(stages.upload(shared))
    sent = stage.sites[0].step(stage.proof)[1]
    assert sent.complaints == (1,)
    assert 1 not in {share.owner for share in (*sent.self_seed_shares, *sent.mask_key_shares)}


@pytest.mark.parametrize("complaints", [(0,), (2, 1), (1, 1), (SIZE,), (6,)])
def test_impossible_complaints_are_refused_and_change_nothing(complaints: tuple[int, ...]) -> None:
    """About itself, out of order, twice, about a stranger, and about one whose share it reveals."""
    stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE)))))
    sent = stage.sites[0].step(stage.proof)[1]
    with pytest.raises(RemoteProtocolError):
        stage.server.receive(replace(sent, complaints=complaints))
    assert stage.server.received == frozenset()
    stage.server.receive(sent)


def test_who_complains_about_everybody_is_the_one_who_is_blamed() -> None:
    blame = Blame(frozenset(), {dealer: frozenset({6}) for dealer in range(5)})
    assert blame.complainers(tolerated=4) == {6}
    assert blame.complainers(tolerated=5) == frozenset()
    assert blame.dealers(tolerated=1) == frozenset()


def test_a_commitment_is_bound_to_everything_about_its_share() -> None:
    context, share = stages.make_cohort(SIZE).context, bytes(40)
    other = stages.make_cohort(SIZE, attempt=2).context
    made = {
        commit_share(context, ShareKind.MASK_KEY, 0, 1, share),
        commit_share(context, ShareKind.SELF_SEED, 0, 1, share),
        commit_share(context, ShareKind.MASK_KEY, 1, 0, share),
        commit_share(context, ShareKind.MASK_KEY, 0, 1, bent(share)),
        commit_share(other, ShareKind.MASK_KEY, 0, 1, share),
    }
    assert len(made) == 5
    assert {len(one) for one in made} == {16}


def sparse_cohort() -> stages.Cohort:
    return stages.make_cohort(16, threshold=4, min_survivors=11, sparse=stages.Sparse(6, (3,)))


@pytest.mark.parametrize("survivors", [range(16), range(14)])
def test_liars_among_the_neighbours_are_blamed_and_the_sum_of_a_sparse_graph_is_exact(survivors: range) -> None:
    cohort = sparse_cohort()
    stage = stages.sign(stages.upload(stages.share(stages.advertise(cohort)), survivors))
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        stage.server.receive(lie(sent, set(range(16))) if index == 5 else sent)
    total = stage.aggregation.step(stage.server.close().combined_mask()).sum
    assert np.array_equal(total, cohort.sum_of(survivors))
    assert stage.server.blame == Blame(frozenset({5}), {})


def test_unusable_shares_of_a_neighbour_are_complained_about_on_a_sparse_graph() -> None:
    cohort = sparse_cohort()
    shared = stages.share(stages.advertise(cohort))
    first, *others = shared.relayed[3].shares
    shared.relayed[3] = RelayedShares((replace(first, ciphertext=bytes(len(first.ciphertext))), *others))
    stage = stages.sign(stages.upload(shared))
    total = stages.reveal(stage)
    assert np.array_equal(total, cohort.sum_of(range(16)))
    assert stage.server.blame == Blame(frozenset(), {first.sender: frozenset({3})})


def test_a_site_of_a_sparse_graph_needs_a_threshold_of_usable_shares_of_others() -> None:
    shared = stages.share(stages.advertise(sparse_cohort()))
    shares = shared.relayed[3].shares
    for usable in (3, 4):
        spoilt = tuple(replace(one, ciphertext=bytes(len(one.ciphertext))) for one in shares[usable:])
        incoming = RelayedShares((*shares[:usable], *spoilt))
        if usable < 4:
            with pytest.raises(BadShares, match="do not open"):
                shared.sites[3].step(incoming)
        else:
            assert set(shared.sites[3].step(incoming).held_shares) == {one.sender for one in shares[:4]}


def test_a_site_of_a_sparse_graph_commits_to_no_share_of_its_own() -> None:
    stage = stages.advertise(sparse_cohort())
    _, sealed = stage.sites[3].step(stage.directory_of(3))
    assert sealed.own_commitments == b""
    with pytest.raises(BadShares, match="does not hold"):
        stage.server.receive(3, replace(sealed, own_commitments=bytes(PAIR_BYTES)))
    stage.server.receive(3, sealed)
