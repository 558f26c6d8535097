"""Sealing against a second implementation (libsodium), and every way of tampering."""

import os

import pytest
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

from fl_core.crypto.aead import open_sealed, seal
from fl_core.errors import CryptoError

KEY = os.urandom(32)


@pytest.mark.parametrize("length", [0, 1, 80, 1000])
def test_sealing_equals_libsodium_under_a_zero_nonce(length: int) -> None:
    plaintext = os.urandom(length)
    sealed = seal(KEY, plaintext, b"context")
    assert sealed == crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, b"context", bytes(12), KEY)
    assert open_sealed(KEY, sealed, b"context") == plaintext


@pytest.mark.parametrize("position", range(len(b"two shares") + 16))
def test_every_flipped_byte_is_noticed(position: int) -> None:
    sealed = bytearray(seal(KEY, b"two shares", b"context"))
    sealed[position] ^= 1
    with pytest.raises(CryptoError, match="does not open"):
        open_sealed(KEY, bytes(sealed), b"context")


def test_another_key_or_context_opens_nothing() -> None:
    sealed = seal(KEY, b"two shares", b"context")
    for key, context in ((os.urandom(32), b"context"), (KEY, b"contexT"), (KEY, b"")):
        with pytest.raises(CryptoError, match="does not open"):
            open_sealed(key, sealed, context)


@pytest.mark.parametrize("length", [0, 15])
def test_a_message_without_room_for_a_tag_is_refused(length: int) -> None:
    with pytest.raises(CryptoError, match="too short"):
        open_sealed(KEY, bytes(length), b"")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_the_wrong_length_seals_nothing(length: int) -> None:
    with pytest.raises(CryptoError, match="32 bytes"):
        seal(bytes(length), b"", b"")
