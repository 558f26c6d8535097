"""Attack: an attempt is made to fail after its uploads, and run again: two uploads of the same update under one mask.

The difference of the two would be the difference of what they hide. What stops it: keys, seeds and masks are drawn
anew in each attempt, and the attempt is part of every derivation; a site answers to no attempt twice.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client_sdk.journal import SiteJournal
from fl_core.errors import LocalProtocolError, StaleMessage
from fl_core.secagg import client, masks
from fl_core.simulation import stages
from fl_core.simulation.entropy import seeded_entropy

SIZE, LENGTH = 3, 4096


def two_uploads(entropy_seeds: tuple[int, int]) -> np.ndarray:
    """The difference of two uploads of site 0, of the same vector, in two attempts."""
    uploads = []
    for attempt, seed in enumerate(entropy_seeds, start=1):
        cohort = stages.make_cohort(SIZE, attempt=attempt, ring_bits=8, length=LENGTH)
        same = [np.full(LENGTH, 7, np.uint8)] * SIZE
        cohort = replace(cohort, entropy=seeded_entropy(seed), vectors=same)
        uploads.append(stages.upload(stages.share(stages.advertise(cohort))).uploads[0].vector)
    return uploads[0] - uploads[1]


def is_uniform(difference: np.ndarray) -> bool:
    counts = np.bincount(difference, minlength=256)
    # Chi-square of 255 degrees of freedom: beyond 360 with a chance below 2e-5, and the seeds are fixed.
    return float(((counts - LENGTH / 256) ** 2 / (LENGTH / 256)).sum()) < 360


def test_uploads_of_two_attempts_differ_by_noise() -> None:
    assert is_uniform(two_uploads((11, 12)))


def test_even_a_broken_entropy_source_does_not_repeat_a_mask() -> None:
    """The attempt is part of every derivation, so that equal secrets give other masks."""
    assert is_uniform(two_uploads((11, 11)))


def test_with_neither_fresh_secrets_nor_the_attempt_the_masks_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_mask_key", lambda _, secret, __: secret[:16])
    assert not two_uploads((11, 11)).any()


def test_an_attempt_is_answered_once_whatever_happens_to_the_site(tmp_path: Path) -> None:
    with SiteJournal(tmp_path) as journal:
        journal.record_attempt("job", 1, 2)
        journal.record_unmasked(b"s" * 16)
    with SiteJournal(tmp_path) as journal:
        for attempt in (1, 2):
            with pytest.raises(StaleMessage, match="not new"):
                journal.record_attempt("job", 1, attempt)
        with pytest.raises(LocalProtocolError, match="revealed before"):
            journal.record_unmasked(b"s" * 16)
        journal.record_attempt("job", 1, 3)


def test_without_its_journal_a_site_would_reveal_again(tmp_path: Path) -> None:
    with SiteJournal(tmp_path) as journal:
        journal.record_unmasked(b"s" * 16)
    (tmp_path / "journal.jsonl").unlink()
    with SiteJournal(tmp_path) as journal:
        journal.record_unmasked(b"s" * 16)


def test_a_site_keeps_no_secret_of_an_attempt_that_is_over() -> None:
    stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(5)))))
    revealed, _ = stage.sites[0].step(stage.proof)
    assert set(client.Revealed.__slots__) == {"context", "index", "survivors"}
    assert revealed.survivors == tuple(range(5))
