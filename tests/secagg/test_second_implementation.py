"""One session against a second implementation of every derivation, written from the protocol's description alone.

It shares no code with the first: HKDF by hmac, the keystream by AES over counted blocks, X25519 by another library,
Python's integers for all arithmetic.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fl_core.crypto.signing import verify_signature
from fl_core.secagg.messages import KeyAdvertisement
from fl_core.simulation import stages


def joined(label: str, *fields: bytes | int) -> bytes:
    text = label.encode()
    encoded = struct.pack(">I", len(text)) + text
    for field in fields:
        tag, body = (b"b", field) if isinstance(field, bytes) else (b"i", struct.pack(">q", field))
        encoded += tag + struct.pack(">Q", len(body)) + body
    return encoded


def hashed(label: str, *fields: bytes | int) -> bytes:
    return hashlib.sha256(joined(label, *fields)).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")[:length]


def agreed(secret: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))


def mask(key: bytes, length: int, ring_bits: int) -> list[int]:
    width = next(width for width in (1, 2, 4, 8) if 8 * width >= ring_bits)
    blocks = -(-length * width // 16)
    counters = b"".join(place.to_bytes(16, "big") for place in range(blocks))
    stream = Cipher(algorithms.AES128(key), modes.ECB()).encryptor().update(counters)
    words = (stream[place * width : (place + 1) * width] for place in range(length))
    return [int.from_bytes(word, "little") % 2**ring_bits for word in words]


def statement(binding: bytes, one: KeyAdvertisement) -> bytes:
    keys = (one.cipher_public_key, one.mask_public_key, one.self_seed_commitment)
    return joined("tacit/advertisement/v1", binding, one.index, *keys)


def set_hash(binding: bytes, indices: Sequence[int]) -> bytes:
    return hashed("tacit/set/v1", binding, *indices)


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 with our labels: the left part is as large as a power of two can be."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1
    while 2 * left < len(leaves):
        left *= 2
    return hashed("tacit/directory-node/v1", tree_root(leaves[:left]), tree_root(leaves[left:]))


def directory_digest(binding: bytes, everybody: Sequence[KeyAdvertisement]) -> bytes:
    leaves = [hashed("tacit/directory-leaf/v1", statement(binding, one)) for one in everybody]
    members = set_hash(binding, [one.index for one in everybody])
    return hashed("tacit/directory/v1", binding, members, tree_root(leaves))


def uploads_root(binding: bytes, vectors: dict[int, np.ndarray]) -> bytes:
    """The root over four uploads: a tree of two levels."""
    leaves = [
        hashed("tacit/upload-leaf/v1", binding, index, hashlib.sha256(vector.tobytes()).digest())
        for index, vector in vectors.items()
    ]
    pairs = [hashlib.sha256(b"\x01" + leaves[place] + leaves[place + 1]).digest() for place in (0, 2)]
    return hashlib.sha256(b"\x01" + pairs[0] + pairs[1]).digest()


@pytest.mark.parametrize("ring_bits", [6, 16, 21, 32, 50])
def test_a_site_sends_what_the_description_says(ring_bits: int) -> None:
    cohort = stages.make_cohort(5, ring_bits=ring_bits, length=33)
    binding, us = cohort.context.binding, 2
    advertised = stages.advertise(cohort)
    site, everybody = advertised.sites[us], advertised.directory.advertisements
    shared = stages.share(advertised)
    uploaded = stages.upload(shared)
    for one in everybody:
        verify_signature(one.certificate_der, statement(binding, one), one.signature)
    own = everybody[us]
    assert own.self_seed_commitment == hashed("tacit/seed-commitment/v1", binding, us, site.secrets.self_seed)
    directory = directory_digest(binding, everybody)

    info = joined("tacit/self-mask/v1", directory, us, 33, ring_bits)
    expected = [int(level) for level in cohort.vectors[us]]
    terms = [(1, hkdf(site.secrets.self_seed, binding, info, 16))]
    for peer in (0, 1, 3, 4):
        secret = agreed(site.secrets.mask_secret_key, everybody[peer].mask_public_key)
        info = joined("tacit/pair-mask/v1", directory, min(us, peer), max(us, peer), 33, ring_bits)
        terms.append((1 if us > peer else -1, hkdf(secret, binding, info, 16)))
    for sign, key in terms:
        words = mask(key, 33, ring_bits)
        expected = [(level + sign * word) % 2**ring_bits for level, word in zip(expected, words, strict=True)]
    assert uploaded.uploads[us].vector.tolist() == expected


def test_a_peer_opens_and_signs_what_the_description_says() -> None:
    cohort = stages.make_cohort(5)
    binding, us, sender = cohort.context.binding, 2, 4
    advertised = stages.advertise(cohort)
    secret_key = advertised.sites[us].cipher_keys.secret_key
    everybody = advertised.directory.advertisements
    directory = directory_digest(binding, everybody)
    shared = stages.share(advertised)
    (sealed,) = (share for share in shared.relayed[us].shares if share.sender == sender)
    info = joined("tacit/share-key/v1", directory, sender, us)
    key = hkdf(agreed(secret_key, everybody[sender].cipher_public_key), binding, info, 32)
    data = joined("tacit/share-data/v1", binding, directory, sender, us)
    plaintext = ChaCha20Poly1305(key).decrypt(bytes(12), sealed.ciphertext, data)

    uploaded = stages.upload(shared, [1, 2, 3, 4])
    held = uploaded.sites[us].held_shares[sender]
    assert plaintext == held.mask_key + held.self_seed
    signature = uploaded.sites[us].step(uploaded.survivor_set)[1].signature
    root = uploaded.survivor_set.uploads_root
    assert root == uploads_root(binding, {index: uploaded.uploads[index].vector for index in [1, 2, 3, 4]})
    for place, share in enumerate((held.mask_key, held.self_seed)):
        start = joined("tacit/share-commitment/v1", binding, place)
        committed = hashlib.sha256(start + struct.pack(">II", sender, us) + share).digest()[:16]
        assert sealed.commitments[16 * place : 16 * place + 16] == committed
    sets = set_hash(binding, range(5)), set_hash(binding, [1, 2, 3, 4])
    verify_signature(
        everybody[us].certificate_der, joined("tacit/survivors/v1", binding, directory, *sets, root), signature
    )


def test_the_noise_of_a_site_has_the_seeds_and_keys_that_the_description_says() -> None:
    cohort = stages.make_cohort(5, min_survivors=4, noise_tiers=(5, 4))
    binding, us = cohort.context.binding, 2
    advertised = stages.advertise(cohort)
    seeds = [advertised.sites[us].secrets.noise_seed]
    for part in range(2):
        seeds.append(hashed("tacit/noise-seed/v1", binding, us, part, seeds[part]))
    own = advertised.directory.advertisements[us]
    assert own.noise_commitment == hashed("tacit/noise-commitment/v1", binding, us, seeds[2])
    keys = (own.cipher_public_key, own.mask_public_key, own.self_seed_commitment, own.noise_commitment)
    verify_signature(own.certificate_der, joined("tacit/advertisement/v1", binding, us, *keys), own.signature)

    uploaded = stages.upload(stages.share(advertised))
    expected = [hashed("tacit/noise-key/v1", binding, us, part, seeds[part])[:16] for part in range(2)]
    assert list(uploaded.sites[us].noise_keys) == expected
    signed = stages.sign(uploaded)
    assert signed.sites[us].step(signed.proof)[1].excess_seed == seeds[1]
