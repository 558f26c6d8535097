"""Attack: sites send false shares, to spoil attempts or to have an honest site blamed.

What stops it: every share has a commitment of its dealer, which its holder checked when it opened the share. The long
form, with every number of liars, is in tests/secagg/test_blame.py; here it is what the attackers want.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fl_core.crypto.shamir import PRIME
from fl_core.errors import BadShares
from fl_core.secagg.blame import FalseDealing
from fl_core.secagg.commitments import CommitmentBook
from fl_core.secagg.messages import RevealedShare, RevealedShares
from fl_core.simulation import stages

SIZE, THRESHOLD, LIARS = 9, 5, (0, 1, 2)


def false(share: RevealedShare) -> RevealedShare:
    limb = (int.from_bytes(share.share[:8], "little") + 8) % PRIME
    return replace(share, share=limb.to_bytes(8, "little") + share.share[8:])


def sabotage(cohort: stages.Cohort, bend: Callable[[RevealedShares], RevealedShares]) -> stages.Signed:
    """Three of nine sites bend what they reveal; site 8 dropped out after the exchange."""
    stage = stages.sign(stages.upload(stages.share(stages.advertise(cohort)), range(8)))
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        stage.server.receive(bend(sent) if index in LIARS else sent)
    return stage


def all_seeds(sent: RevealedShares) -> RevealedShares:
    return replace(sent, self_seed_shares=tuple(map(false, sent.self_seed_shares)))


def the_key(sent: RevealedShares) -> RevealedShares:
    return replace(sent, mask_key_shares=tuple(map(false, sent.mask_key_shares)))


@pytest.mark.parametrize("bend", [all_seeds, the_key])
def test_three_liars_spoil_nothing_and_are_named(bend: Callable[[RevealedShares], RevealedShares]) -> None:
    cohort = stages.make_cohort(SIZE, threshold=THRESHOLD)
    stage = sabotage(cohort, bend)
    total = stage.aggregation.step(stage.server.close().combined_mask()).sum
    assert np.array_equal(total, cohort.sum_of(range(8)))
    assert stage.server.blame.holders == set(LIARS)


@pytest.mark.parametrize(("bend", "framed"), [(all_seeds, tuple(range(8))), (the_key, (8,))])
def test_without_commitments_they_spoil_the_attempt_and_the_honest_owners_are_blamed(
    bend: Callable[[RevealedShares], RevealedShares], framed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CommitmentBook, "is_right", lambda *_: True)
    stage = sabotage(stages.make_cohort(SIZE, threshold=THRESHOLD), bend)
    with pytest.raises(FalseDealing) as caught:
        stage.server.close()
    assert caught.value.dealers == framed
    assert stage.server.blame.holders == frozenset()


def test_a_complaint_of_three_liars_does_not_get_an_honest_dealer_blamed() -> None:
    def complain(sent: RevealedShares) -> RevealedShares:
        kept = tuple(share for share in sent.self_seed_shares if share.owner != 5)
        return replace(sent, self_seed_shares=kept, complaints=(5,))

    cohort = stages.make_cohort(SIZE, threshold=THRESHOLD)
    stage = sabotage(cohort, complain)
    total = stage.aggregation.step(stage.server.close().combined_mask()).sum
    assert np.array_equal(total, cohort.sum_of(range(8)))
    assert stage.server.blame.dealers(tolerated=len(LIARS)) == frozenset()


def test_a_share_that_is_no_share_is_refused_whole() -> None:
    stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE))), range(8)))
    sent = stage.sites[0].step(stage.proof)[1]
    first, *rest = sent.self_seed_shares
    with pytest.raises(BadShares):
        stage.server.receive(replace(sent, self_seed_shares=(replace(first, share=b"\xff" * 40), *rest)))
