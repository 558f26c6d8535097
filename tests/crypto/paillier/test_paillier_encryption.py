"""Ciphertexts are those of the standard and of phe, and what is no ciphertext is refused."""

import os
from typing import Any

import phe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.paillier.ciphertexts import (
    add_ciphertexts,
    check_ciphertexts,
    read_ciphertexts,
    read_plaintexts,
    write_ciphertexts,
    write_plaintexts,
)
from fl_core.crypto.paillier.decryption import decrypt, signed
from fl_core.crypto.paillier.encryption import Encryptor, encrypt_with
from fl_core.crypto.paillier.keys import PrivateKey, PublicKey, generate_private_key
from fl_core.errors import CryptoError
from fl_core.simulation.entropy import seeded_entropy

SMALL = generate_private_key(256, seeded_entropy(1))
SMALL_N = int(SMALL.public_key.n)


def with_randomness(key: PublicKey, plaintext: int, randomness: int) -> int:
    """(1 + m n) r**n mod n**2, where the standard and phe choose r themselves."""
    high, low = divmod(pow(randomness, int(key.n), int(key.n_squared)), int(key.n))
    return encrypt_with(key, plaintext, (low, high))


def test_the_vector_of_iso_18033_6(iso_key: PrivateKey, vectors: dict[str, Any]) -> None:
    numbers = {name: int(text, 16) for name, text in vectors["iso_18033_6"].items() if name != "source"}
    key = iso_key.public_key
    first = with_randomness(key, numbers["m1"], numbers["r1"])
    second = with_randomness(key, numbers["m2"], numbers["r2"])
    assert (first, second) == (numbers["c1"], numbers["c2"])
    assert add_ciphertexts(key, [first], [second]) == [numbers["c1_times_c2"]]
    assert decrypt(iso_key, [first, second, numbers["c1_times_c2"]]) == [
        numbers["m1"],
        numbers["m2"],
        numbers["m1_plus_m2"],
    ]


def test_the_known_answer_of_phe(vectors: dict[str, Any]) -> None:
    known = vectors["phe"]
    key = PrivateKey(known["p"], known["q"])
    assert with_randomness(key.public_key, known["m"], known["r"]) == known["c"]
    assert decrypt(key, [known["c"]]) == [known["m"]]


def test_phe_decrypts_what_we_encrypt_and_the_sum_of_both(iso_key: PrivateKey) -> None:
    theirs = phe.PaillierPublicKey(int(iso_key.public_key.n))
    secret = phe.PaillierPrivateKey(theirs, int(iso_key.p), int(iso_key.q))
    ours = Encryptor(iso_key.public_key, 1).encrypt([41, int(iso_key.public_key.n) - 3], os.urandom)
    assert secret.raw_decrypt(int(ours[0])) == 41
    numbers = [phe.EncryptedNumber(theirs, int(ciphertext)) for ciphertext in ours]
    assert [secret.decrypt(number) for number in numbers] == [41, -3]
    assert secret.decrypt(numbers[0] + theirs.encrypt(1)) == 42


def test_we_decrypt_what_phe_encrypts(iso_key: PrivateKey) -> None:
    theirs = phe.PaillierPublicKey(int(iso_key.public_key.n))
    ciphertexts = [theirs.encrypt(number).ciphertext() for number in (5, -7)]
    assert [signed(iso_key, plaintext) for plaintext in decrypt(iso_key, ciphertexts)] == [5, -7]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, SMALL_N - 1), st.integers(0, SMALL_N - 1)), max_size=5))
def test_sums_of_plaintexts_are_products_of_ciphertexts(pairs: list[tuple[int, int]]) -> None:
    encryptor = Encryptor(SMALL.public_key, len(pairs))
    left, right = (encryptor.encrypt([pair[side] for pair in pairs], os.urandom) for side in (0, 1))
    total = add_ciphertexts(SMALL.public_key, left, right)
    assert decrypt(SMALL, total) == [(a + b) % SMALL_N for a, b in pairs]


def test_no_two_encryptions_of_one_number_are_equal(small_key: PrivateKey) -> None:
    encryptor = Encryptor(small_key.public_key, 100)
    ciphertexts = encryptor.encrypt([7] * 100, os.urandom)
    assert len(set(ciphertexts)) == 100
    again = encryptor.rerandomise(ciphertexts, os.urandom)
    assert not set(again) & set(ciphertexts)
    assert decrypt(small_key, again) == [7] * 100


def test_the_randomness_uses_every_bit_of_its_exponent(small_key: PrivateKey) -> None:
    encryptor = Encryptor(small_key.public_key, 1)
    first, last = (encryptor.encrypt([0], lambda count, byte=byte: bytes([byte]) * count) for byte in (0, 255))
    assert first == [1]
    table = encryptor._table.powers([(2**128 - 1).to_bytes(16, "big")])
    assert last == [encrypt_with(small_key.public_key, 0, table[0])]


def test_numbers_survive_their_bytes(small_key: PrivateKey) -> None:
    key = small_key.public_key
    ciphertexts = Encryptor(key, 3).encrypt([0, 1, int(key.n) - 1], os.urandom)
    assert read_ciphertexts(key, write_ciphertexts(key, ciphertexts)) == ciphertexts
    assert read_plaintexts(key, write_plaintexts(key, [0, int(key.n) - 1])) == [0, int(key.n) - 1]


@pytest.mark.parametrize("name", ["zero", "n**2", "above", "p", "multiple of q", "n"])
def test_a_number_that_is_no_ciphertext_is_refused_by_everybody(small_key: PrivateKey, name: str) -> None:
    key = small_key.public_key
    number = {
        "zero": 0,
        "n**2": int(key.n_squared),
        "above": int(key.n_squared) + 1,
        "p": int(small_key.p),
        "multiple of q": int(small_key.q) * 12345,
        "n": int(key.n),
    }[name]
    good = Encryptor(key, 1).encrypt([1], os.urandom)
    with pytest.raises(CryptoError, match=r"out of range|divisor"):
        check_ciphertexts(key, [*good, number])
    with pytest.raises(CryptoError, match=r"out of range|divisor"):
        decrypt(small_key, [*good, number])
    if name != "above":
        with pytest.raises(CryptoError, match=r"out of range|divisor"):
            read_ciphertexts(key, number.to_bytes(key.ciphertext_bytes, "big"))


def test_bytes_that_are_cut_off_are_refused(small_key: PrivateKey) -> None:
    with pytest.raises(CryptoError, match="cut off"):
        read_ciphertexts(small_key.public_key, bytes(63))
    with pytest.raises(CryptoError, match="out of range"):
        read_plaintexts(small_key.public_key, b"\xff" * 32)


@pytest.mark.parametrize("plaintext", [-1, SMALL_N, SMALL_N + 1])
def test_a_plaintext_out_of_range_is_refused(plaintext: int) -> None:
    with pytest.raises(CryptoError, match="plaintext"):
        Encryptor(SMALL.public_key, 1).encrypt([plaintext], os.urandom)


def test_sums_of_different_numbers_of_ciphertexts_are_refused(small_key: PrivateKey) -> None:
    with pytest.raises(CryptoError, match="differ in number"):
        add_ciphertexts(small_key.public_key, [1], [1, 2])
