"""Attack: the key server stands in the middle. To its victim it plays the whole cohort, with keys of its own.

With every cipher key its own it opens all shares of the victim, rebuilds both secrets and unmasks one upload. What
stops it: each key is signed by a certificate of the roster, which the key server did not issue.
"""

import os
from collections.abc import Callable

import numpy as np
import pytest

from fl_core.crypto.mask_prg import RingVector, reduce_ring
from fl_core.crypto.shamir import combine, lagrange_at_zero, parse_shares
from fl_core.errors import BadSignature, IdentityError
from fl_core.secagg import client
from fl_core.secagg.masks import expand_terms, pair_term, self_term
from fl_core.secagg.messages import KeyDirectory, RelayedShares
from fl_core.secagg.sealing import open_shares
from fl_core.simulation import stages
from fl_core.simulation.identity import FingerprintVerifier, simulated_signers

SIZE, VICTIM = 5, 0


class BelievesEverything:
    def verify(self, index: int, certificate_der: bytes, message: bytes, signature: bytes) -> None: ...


def play_the_cohort(cohort: stages.Cohort) -> RingVector:
    """The attack: what the key server learns of the victim's vector."""
    context, forgers = cohort.context, simulated_signers(SIZE, os.urandom)
    victim, advertisement = client.advertise(context, VICTIM, cohort.signers[0], cohort.verifier, cohort.entropy)
    fakes = {
        index: client.advertise(context, index, forgers[index], BelievesEverything(), os.urandom)
        for index in range(1, SIZE)
    }
    directory = KeyDirectory((advertisement, *(fake[1] for fake in fakes.values())))
    waiting, sealed = victim.step(directory)
    played = {index: fake[0].step(directory) for index, fake in fakes.items()}
    ready = waiting.step(RelayedShares(tuple(message.shares[VICTIM] for _, message in played.values())))
    _, upload = ready.step(cohort.vectors[VICTIM])
    known = waiting.directory
    opened = [open_shares(known, share, played[share.recipient][0].opening_keys[VICTIM]) for share in sealed.shares]
    rows = np.stack([parse_shares([held.mask_key, held.self_seed]) for held in opened])
    mask_key, self_seed = combine(lagrange_at_zero([share.recipient for share in sealed.shares]), rows)
    pairs = [pair_term(known, VICTIM, index, mask_key) for index in fakes]
    stripped = upload.vector - expand_terms([self_term(known, VICTIM, self_seed), *pairs], context)
    reduce_ring(stripped, context.ring_bits)
    return stripped


def test_a_key_server_that_plays_the_cohort_is_found_out_before_a_share_is_sent() -> None:
    with pytest.raises(IdentityError, match="certificate is not that of the roster"):
        play_the_cohort(stages.make_cohort(SIZE))


def test_without_the_signature_check_it_reads_the_victims_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FingerprintVerifier, "verify", BelievesEverything.verify)
    cohort = stages.make_cohort(SIZE)
    assert np.array_equal(play_the_cohort(cohort), cohort.vectors[VICTIM])


@pytest.mark.parametrize("field", ["mask_public_key", "cipher_public_key", "self_seed_commitment"])
def test_a_single_swapped_key_under_the_right_certificate_is_found_out(
    field: str, forge: Callable[..., KeyDirectory]
) -> None:
    stage = stages.advertise(stages.make_cohort(SIZE))
    with pytest.raises(BadSignature):
        stage.sites[VICTIM].step(forge(stage.directory, 3, **{field: os.urandom(31) + b"\x01"}))
