"""A whole encrypted session gives the exact sum of those who uploaded, and refuses what is malformed."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.paillier.slots import SlotLayout
from fl_core.crypto.sealed_box import seal_to
from fl_core.encrypted.context import EncryptedContext
from fl_core.encrypted.running_total import EncryptedTotal
from fl_core.errors import (
    BadAggregate,
    CryptoError,
    LocalProtocolError,
    NotEnough,
    PlanError,
    RemoteProtocolError,
    TacitError,
)
from fl_core.simulation.encrypted import EncryptedFederation
from fl_core.simulation.identity import simulated_opener

Vectors = npt.NDArray[np.uint32]


@settings(deadline=None, max_examples=12)
@given(survivors=st.sets(st.integers(0, 4), min_size=3))
def test_the_sum_of_whoever_uploaded_is_exact(
    federation: EncryptedFederation, vectors: Vectors, survivors: set[int]
) -> None:
    uploads = {index: federation.upload(index, vectors[index]) for index in sorted(survivors)}
    total = federation.add_up({index: upload.data for index, upload in uploads.items()})
    assert total.freeze(range(5)) == tuple(sorted(survivors))
    opened = federation.open(total, [upload.statement for upload in uploads.values()])
    np.testing.assert_array_equal(opened, vectors[sorted(survivors)].sum(axis=0))


def test_bytes_that_are_cut_anywhere_are_added_once(federation: EncryptedFederation, vectors: Vectors) -> None:
    data = federation.upload(0, vectors[0]).data
    whole, cut = EncryptedTotal(federation.context), EncryptedTotal(federation.context)
    whole.take(0, data)
    for part in cut.parts([data[:7], data[7:100], b"", data[100:]]):
        cut.add_part(*part)
    assert whole._total == cut._total


def test_parts_are_added_on_any_thread_in_any_order(federation: EncryptedFederation, vectors: Vectors) -> None:
    data, width = federation.upload(0, vectors[0]).data, federation.context.public_key.ciphertext_bytes
    alone, together = EncryptedTotal(federation.context), EncryptedTotal(federation.context)
    alone.take(0, data)
    parts = list(together.parts(data[at : at + width] for at in range(0, len(data), width)))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda part: together.add_part(*part), reversed(parts)))
    assert len(parts) > 3
    assert together._total == alone._total


@pytest.mark.parametrize("name", ["zero", "n squared", "multiple of p", "too long", "too short", "cut"])
def test_a_malformed_upload_changes_nothing(federation: EncryptedFederation, vectors: Vectors, name: str) -> None:
    key, width = federation.context.public_key, federation.context.public_key.ciphertext_bytes
    data = federation.upload(0, vectors[0]).data
    bad = {
        "zero": bytes(width) + data[width:],
        "n squared": data[:-width] + int(key.n_squared).to_bytes(width, "big"),
        "multiple of p": data[:-width] + int(federation.private_key.p * 77).to_bytes(width, "big"),
        "too long": data + data[:width],
        "too short": data[width:],
        "cut": data[:-1],
    }[name]
    total = EncryptedTotal(federation.context)
    with pytest.raises((CryptoError, RemoteProtocolError)):
        total.take(0, bad)
    assert total._total == [1] * federation.context.plaintexts
    with pytest.raises(NotEnough):
        total.freeze(range(5))


def test_a_site_uploads_once_and_strangers_stay_out(federation: EncryptedFederation, vectors: Vectors) -> None:
    total = federation.add_up({index: federation.upload(index, vectors[index]).data for index in range(3)})
    with pytest.raises(RemoteProtocolError, match="once"):
        total.take(2, federation.upload(2, vectors[2]).data)
    with pytest.raises(BadAggregate, match="may not be there"):
        total.freeze([0, 1, 3])


def test_a_part_is_blinded_once_and_every_part_must_come_back(
    federation: EncryptedFederation, vectors: Vectors
) -> None:
    blinded = federation.add_up({index: federation.upload(index, vectors[index]).data for index in range(3)}).blind(
        os.urandom
    )
    blinded.ciphertexts(range(1))
    with pytest.raises(LocalProtocolError, match="once"):
        blinded.ciphertexts(range(1))
    with pytest.raises(BadAggregate):
        blinded.take(range(2), [1, 2])
    with pytest.raises(BadAggregate):
        blinded.open()


def test_a_vector_of_another_length_is_not_encrypted(federation: EncryptedFederation, vectors: Vectors) -> None:
    with pytest.raises(LocalProtocolError, match="length"):
        federation.upload(0, np.zeros(3, np.uint32))


@pytest.mark.parametrize(
    "change",
    [{"binding": b"short"}, {"min_survivors": 2}, {"min_survivors": 6}, {"length": 0}, {"size": 6, "min_survivors": 3}],
)
def test_a_context_that_cannot_hold_is_refused(
    federation: EncryptedFederation, vectors: Vectors, change: dict[str, object]
) -> None:
    with pytest.raises(PlanError):
        replace(federation.context, **change)


def test_slots_of_another_key_are_refused(federation: EncryptedFederation, vectors: Vectors) -> None:
    context = federation.context
    with pytest.raises(PlanError):
        EncryptedContext(context.binding, 5, 3, 40, 20, context.public_key, SlotLayout(9, 5, 512))


def test_a_sealed_box_opens_for_its_certificate_and_context_alone(
    federation: EncryptedFederation, vectors: Vectors
) -> None:
    box = seal_to(federation.keyserver_certificate_der, b"seed", b"context")
    opener = federation.opener
    assert opener.open(box, b"context") == b"seed"
    assert len(box) == 4 + 81
    _, other = simulated_opener(os.urandom)
    for wrong in (
        lambda: opener.open(box, b"other"),
        lambda: other.open(box, b"context"),
        lambda: opener.open(box[:-1], b"context"),
        lambda: opener.open(b"\x05" + box[1:], b"context"),
        lambda: opener.open(b"", b"context"),
    ):
        with pytest.raises(TacitError):
            wrong()
    for bit in range(0, 8 * len(box), 37):
        flipped = bytearray(box)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CryptoError):
            opener.open(bytes(flipped), b"context")
