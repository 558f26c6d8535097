"""Keys at rest are sealed: only the right secret opens them, and a changed file does not open."""

import json
import os

import pytest

from fl_core.crypto.paillier.key_files import UnlockSecret, open_private_key, seal_private_key
from fl_core.crypto.paillier.keys import PrivateKey
from fl_core.errors import ConfigError

PHRASE = UnlockSecret(b"correct horse", is_passphrase=True)
FILE = UnlockSecret(bytes(range(32)), is_passphrase=False)


@pytest.mark.parametrize("unlock", [PHRASE, FILE], ids=["passphrase", "key file"])
def test_a_key_survives_its_file_and_is_not_readable_in_it(small_key: PrivateKey, unlock: UnlockSecret) -> None:
    text = seal_private_key(small_key, unlock, os.urandom)
    assert open_private_key(text, unlock) == small_key
    for prime in (int(small_key.p), int(small_key.q)):
        assert prime.to_bytes(16, "big").hex() not in text
        assert str(prime) not in text
    assert json.loads(text)["modulus"] == small_key.public_key.to_bytes().hex()


@pytest.mark.parametrize(
    "wrong",
    [
        UnlockSecret(b"correct hors", is_passphrase=True),
        UnlockSecret(bytes(32), is_passphrase=False),
        FILE,
    ],
)
def test_another_secret_does_not_open_it(small_key: PrivateKey, wrong: UnlockSecret) -> None:
    with pytest.raises(ConfigError):
        open_private_key(seal_private_key(small_key, PHRASE, os.urandom), wrong)


@pytest.mark.parametrize("name", ["modulus", "salt", "sealed", "format", "method"])
def test_a_file_of_which_a_part_was_changed_does_not_open(small_key: PrivateKey, name: str) -> None:
    content = json.loads(seal_private_key(small_key, FILE, os.urandom))
    last = content[name][-1]
    content[name] = content[name][:-1] + ("0" if last != "0" else "1")
    with pytest.raises(ConfigError):
        open_private_key(json.dumps(content), FILE)


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"format": "tacit-paillier-key/1"}', "x" * 20_000])
def test_what_is_no_key_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        open_private_key(text, FILE)


def test_two_files_of_one_key_differ(small_key: PrivateKey) -> None:
    first, second = (json.loads(seal_private_key(small_key, FILE, os.urandom)) for _ in range(2))
    assert first["salt"] != second["salt"]
    assert first["sealed"] != second["sealed"]


@pytest.mark.parametrize(("secret", "is_passphrase"), [(b"", True), (bytes(31), False)])
def test_an_empty_passphrase_and_a_short_key_file_are_refused(secret: bytes, is_passphrase: bool) -> None:
    with pytest.raises(ConfigError):
        UnlockSecret(secret, is_passphrase)
    assert "secret" not in repr(FILE)
