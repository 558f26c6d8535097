"""Attacks on an encrypted sum, by the aggregator, the key server and a site, and each with its check taken out.

The aggregator has every ciphertext and may ask for one decryption. What it asks for beyond the sum of the sites that
it declares comes back under pads that it cannot make.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from fl_core.crypto.paillier.ciphertexts import add_ciphertexts, read_ciphertexts, read_plaintexts, write_ciphertexts
from fl_core.crypto.paillier.decryption import decrypt
from fl_core.crypto.paillier.encryption import Encryptor
from fl_core.crypto.paillier.keys import generate_private_key
from fl_core.crypto.paillier.pads import SEED_BYTES, pads
from fl_core.crypto.sealed_box import seal_to
from fl_core.encrypted import opening, site
from fl_core.encrypted.statement import UploadStatement, state
from fl_core.errors import BadAggregate, BadSignature, CryptoError, IdentityError, NotEnough, RemoteProtocolError
from fl_core.simulation.encrypted import EncryptedFederation, EncryptedUpload
from fl_core.simulation.entropy import seeded_entropy

SITES, LENGTH = 5, 40
OWN_SEED = bytes(SEED_BYTES)


@dataclass
class Aggregator:
    """A malicious aggregator, with everything that an honest one has."""

    federation: EncryptedFederation
    vectors: npt.NDArray[np.uint32]
    uploads: list[EncryptedUpload]

    @classmethod
    def begin(cls) -> "Aggregator":
        key = generate_private_key(256, seeded_entropy(1))
        federation = EncryptedFederation.make(
            key, os.urandom, sites=SITES, length=LENGTH, bits=16, ring_bits=20, min_survivors=3
        )
        vectors = np.random.default_rng(1).integers(0, 1 << 16, (SITES, LENGTH), np.uint32)
        vectors[:, 1] = 1
        return cls(federation, vectors, [federation.upload(index, vectors[index]) for index in range(SITES)])

    @property
    def lone(self) -> bytes:
        """The upload of its victim, site 0."""
        return self.uploads[0].data

    def statements(self, *indices: int) -> list[UploadStatement]:
        return [self.uploads[index].statement for index in indices]

    def product(self, *indices: int) -> bytes:
        key = self.federation.context.public_key
        total = [1] * self.federation.context.plaintexts
        for index in indices:
            total = add_ciphertexts(key, total, read_ciphertexts(key, self.uploads[index].data))
        return write_ciphertexts(key, total)

    def ask(self, data: bytes, statements: Sequence[UploadStatement]) -> list[int]:
        """What the key server answers when it takes the ciphertexts for the sum of these sites."""
        opened = self.federation.opening(statements)
        return read_plaintexts(self.federation.context.public_key, opened.decrypt(self.federation.private_key, 0, data))

    def read(self, plaintexts: Sequence[int]) -> npt.NDArray[np.uint64]:
        """What can be read in plaintexts; BadAggregate when they are noise."""
        return self.federation.context.layout.unpack(plaintexts, LENGTH, SITES)

    def forge(self, index: int) -> UploadStatement:
        """A seed of its own in the name of a site, signed by a site that colludes."""
        context = self.federation.context
        seed = seal_to(self.federation.keyserver_certificate_der, OWN_SEED, context.seed_context(index))
        lie = state(context, index, seed, bytes(32), self.federation.signers[4])
        return replace(lie, certificate_der=self.uploads[index].statement.certificate_der)


@pytest.fixture
def aggregator() -> Aggregator:
    return Aggregator.begin()


def test_the_honest_question_is_answered_with_the_sum(aggregator: Aggregator) -> None:
    told = aggregator.read(aggregator.ask(aggregator.product(0, 1, 2), aggregator.statements(0, 1, 2)))
    np.testing.assert_array_equal(told, aggregator.vectors[:3].sum(axis=0))


def test_a_lone_upload_that_is_declared_to_be_a_sum_comes_back_as_noise(aggregator: Aggregator) -> None:
    with pytest.raises(BadAggregate):
        aggregator.read(aggregator.ask(aggregator.lone, aggregator.statements(0, 1, 2)))


def test_a_rerandomised_lone_upload_comes_back_as_noise(aggregator: Aggregator) -> None:
    key = aggregator.federation.context.public_key
    fresh = Encryptor(key, 9).rerandomise(read_ciphertexts(key, aggregator.lone), os.urandom)
    with pytest.raises(BadAggregate):
        aggregator.read(aggregator.ask(write_ciphertexts(key, fresh), aggregator.statements(0, 1, 2)))


def test_without_pads_the_lone_upload_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (site, opening):
        monkeypatch.setattr(module, "pads", lambda _seed, _key, _first, count: [0] * count)
    aggregator = Aggregator.begin()
    told = aggregator.read(aggregator.ask(aggregator.lone, aggregator.statements(0, 1, 2)))
    np.testing.assert_array_equal(told, aggregator.vectors[0])


@pytest.mark.parametrize(
    ("summed", "declared"),
    [((0, 1, 2, 3), (0, 1, 2)), ((0, 1, 2), (0, 1, 2, 3)), ((0, 1, 3), (0, 1, 2)), ((0, 0, 1, 2), (0, 1, 2))],
)
def test_a_wrong_set_of_survivors_comes_back_as_noise(
    aggregator: Aggregator, summed: tuple[int, ...], declared: tuple[int, ...]
) -> None:
    with pytest.raises(BadAggregate):
        aggregator.read(aggregator.ask(aggregator.product(*summed), aggregator.statements(*declared)))


def test_ciphertexts_in_one_another_s_places_come_back_as_noise(aggregator: Aggregator) -> None:
    width, data = aggregator.federation.context.public_key.ciphertext_bytes, aggregator.product(0, 1, 2)
    swapped = data[width : 2 * width] + data[:width] + data[2 * width :]
    with pytest.raises(BadAggregate):
        aggregator.read(aggregator.ask(swapped, aggregator.statements(0, 1, 2)))


def test_a_set_below_the_minimum_is_refused(aggregator: Aggregator) -> None:
    with pytest.raises(NotEnough, match="so few"):
        aggregator.ask(aggregator.product(0, 1), aggregator.statements(0, 1))


def test_without_the_minimum_a_single_update_is_read(aggregator: Aggregator) -> None:
    object.__setattr__(aggregator.federation.context, "min_survivors", 1)
    told = aggregator.read(aggregator.ask(aggregator.lone, aggregator.statements(0)))
    np.testing.assert_array_equal(told, aggregator.vectors[0])


def test_seeds_of_its_own_in_the_names_of_sites_are_refused(aggregator: Aggregator) -> None:
    with pytest.raises(BadSignature):
        aggregator.ask(aggregator.lone, [*aggregator.statements(0), aggregator.forge(1), aggregator.forge(2)])


def test_without_signatures_a_single_update_is_read(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "check_statement", lambda *_: None)
    key = aggregator.federation.context.public_key
    told = aggregator.ask(aggregator.lone, [*aggregator.statements(0), aggregator.forge(1), aggregator.forge(2)])
    # It knows the pads of its two seeds, which were taken away for nothing, and puts them back.
    own = pads(OWN_SEED, key, 0, len(told))
    back = [(plaintext + 2 * pad) % int(key.n) for plaintext, pad in zip(told, own, strict=True)]
    np.testing.assert_array_equal(aggregator.read(back), aggregator.vectors[0])


def test_statements_of_another_attempt_are_refused(aggregator: Aggregator) -> None:
    later = replace(aggregator.federation, context=replace(aggregator.federation.context, binding=b"o" * 32))
    with pytest.raises(BadSignature):
        later.opening(aggregator.statements(0, 1, 2))


def test_a_seed_that_was_sealed_for_another_site_does_not_open(aggregator: Aggregator) -> None:
    federation, stolen = aggregator.federation, aggregator.uploads[0].statement.sealed_seed
    moved = state(federation.context, 1, stolen, bytes(32), federation.signers[1])
    with pytest.raises(CryptoError, match="site 1"):
        aggregator.ask(aggregator.lone, [*aggregator.statements(0), moved, *aggregator.statements(2)])


def test_a_site_that_stands_twice_or_under_another_certificate_is_refused(aggregator: Aggregator) -> None:
    one, two, three = aggregator.statements(0, 1, 2)
    for statements in ([one, one, two], [two, one, three]):
        with pytest.raises(RemoteProtocolError, match="order"):
            aggregator.ask(aggregator.lone, statements)
    with pytest.raises(IdentityError):
        aggregator.ask(aggregator.lone, [replace(one, certificate_der=two.certificate_der), two, three])


def test_the_key_server_sees_noise(aggregator: Aggregator) -> None:
    federation = aggregator.federation
    total = federation.add_up({index: aggregator.uploads[index].data for index in range(3)})
    asked = total.blind(os.urandom).ciphertexts(range(federation.context.plaintexts))
    with pytest.raises(BadAggregate):
        aggregator.read(aggregator.ask(asked, aggregator.statements(0, 1, 2)))


def test_without_blinding_the_key_server_sees_the_sum(aggregator: Aggregator) -> None:
    seen = aggregator.read(aggregator.ask(aggregator.product(0, 1, 2), aggregator.statements(0, 1, 2)))
    np.testing.assert_array_equal(seen, aggregator.vectors[:3].sum(axis=0))


def test_a_stolen_private_key_alone_opens_no_upload(aggregator: Aggregator) -> None:
    key = aggregator.federation.private_key
    with pytest.raises(BadAggregate):
        aggregator.read(decrypt(key, read_ciphertexts(key.public_key, aggregator.lone)))


def test_collusion_of_aggregator_and_key_server_opens_single_updates(aggregator: Aggregator) -> None:
    """What is not defended, and why `policy.paillier` refuses by default: the private key and the seeds are enough."""
    federation, key = aggregator.federation, aggregator.federation.private_key
    seed = federation.opener.open(aggregator.uploads[0].statement.sealed_seed, federation.context.seed_context(0))
    plaintexts = decrypt(key, read_ciphertexts(key.public_key, aggregator.lone))
    own = pads(seed, key.public_key, 0, len(plaintexts))
    bare = [(plaintext - pad) % int(key.public_key.n) for plaintext, pad in zip(plaintexts, own, strict=True)]
    np.testing.assert_array_equal(aggregator.read(bare), aggregator.vectors[0])


def test_a_forged_count_is_seen_in_the_sum(aggregator: Aggregator) -> None:
    federation, lie = aggregator.federation, aggregator.vectors[0].copy()
    lie[1] = 2
    uploads = {0: federation.upload(0, lie), 1: aggregator.uploads[1], 2: aggregator.uploads[2]}
    total = federation.add_up({index: upload.data for index, upload in uploads.items()})
    total.freeze(range(SITES))
    opened = federation.open(total, [upload.statement for upload in uploads.values()])
    assert int(opened[1]) == 4 != len(uploads)


def test_a_level_that_reaches_into_the_guard_bit_is_seen(aggregator: Aggregator) -> None:
    federation, key = aggregator.federation, aggregator.federation.context.public_key
    width, guard = key.ciphertext_bytes, 1 << federation.context.layout.sum_bits
    first = read_ciphertexts(key, aggregator.lone[:width])
    spoilt = add_ciphertexts(key, first, Encryptor(key, 1).encrypt([guard], os.urandom))
    data = write_ciphertexts(key, spoilt) + aggregator.lone[width:]
    total = federation.add_up({0: data, 1: aggregator.uploads[1].data, 2: aggregator.uploads[2].data})
    total.freeze(range(SITES))
    with pytest.raises(BadAggregate, match="more than the survivors"):
        federation.open(total, aggregator.statements(0, 1, 2))
