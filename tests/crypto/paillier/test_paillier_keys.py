"""Keys are what encryption relies on, and the base of the randomness follows from n."""

import math
import os

import gmpy2
import pytest

from fl_core.crypto.paillier.keys import PrivateKey, PublicKey, generate_private_key, randomness_base
from fl_core.crypto.paillier.primes import blum_prime, safe_prime
from fl_core.errors import BadKey, CryptoError
from fl_core.simulation.entropy import seeded_entropy


def test_a_generated_key_is_what_the_randomness_needs() -> None:
    key = generate_private_key(512, os.urandom)
    key.check_for_use()
    assert key.p % 4 == key.q % 4 == 3
    assert math.gcd(int(key.p) - 1, int(key.q) - 1) == 2
    assert key.public_key.bits == 512
    assert key.public_key.randomness_bits == 256


def test_a_key_of_the_size_for_use_has_every_bit_of_it() -> None:
    assert generate_private_key(2048, seeded_entropy(5)).public_key.bits == 2048


def test_the_base_of_the_randomness_is_an_nth_residue_of_symbol_one(small_key: PrivateKey) -> None:
    base, n = int(randomness_base(small_key.public_key)), int(small_key.public_key.n)
    carmichael = (int(small_key.p) - 1) * (int(small_key.q) - 1) // 2
    assert pow(base, carmichael, n * n) == 1
    assert base != 1


def test_two_moduli_have_different_bases(small_key: PrivateKey, iso_key: PrivateKey) -> None:
    assert randomness_base(small_key.public_key) % 2**64 != randomness_base(iso_key.public_key) % 2**64


def test_a_public_key_survives_its_bytes(iso_key: PrivateKey) -> None:
    key = iso_key.public_key
    assert PublicKey.from_bytes(key.to_bytes()) == key
    assert PublicKey.from_bytes(key.to_bytes()).fingerprint == key.fingerprint


@pytest.mark.parametrize("data", [b"", b"\x00\x01\x02\x03\x04", b"\xff" * 513, b"\xff" * 31 + b"\xfe"])
def test_bytes_that_are_no_modulus_are_refused(data: bytes) -> None:
    with pytest.raises(BadKey):
        PublicKey.from_bytes(data)


def test_a_prime_modulus_is_refused() -> None:
    with pytest.raises(BadKey, match="two odd primes"):
        PublicKey(blum_prime(64, os.urandom))


@pytest.mark.parametrize("primes", [(293, 293), (293, 434), (3, 7)])
def test_numbers_that_make_no_key_are_refused(primes: tuple[int, int]) -> None:
    with pytest.raises((CryptoError, BadKey)):
        PrivateKey(*primes)


def test_a_key_whose_primes_are_one_modulo_four_is_refused_for_use() -> None:
    with pytest.raises(CryptoError, match="3 modulo 4"):
        PrivateKey(293, 433).check_for_use()


@pytest.mark.parametrize("bits", [31, 30, 4098, 2047])
def test_a_size_out_of_range_is_refused(bits: int) -> None:
    with pytest.raises(CryptoError, match="size"):
        generate_private_key(bits, os.urandom)


def test_a_private_key_never_shows_its_primes(small_key: PrivateKey) -> None:
    assert str(small_key.p) not in repr(small_key)
    assert str(small_key.q) not in repr(small_key)


@pytest.mark.parametrize("bits", [16, 40, 128])
def test_a_safe_prime_is_one(bits: int) -> None:
    prime = safe_prime(bits, seeded_entropy(bits))
    assert int(prime).bit_length() == bits
    assert gmpy2.is_prime(prime)
    assert gmpy2.is_prime((prime - 1) // 2)
    with pytest.raises(CryptoError, match="too few bits"):
        safe_prime(15, os.urandom)
