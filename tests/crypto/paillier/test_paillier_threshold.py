"""Any threshold of holders decrypts, fewer do not, and a holder that answers wrongly is found out."""

import os
from collections.abc import Sequence
from itertools import combinations

import pytest

from fl_core.crypto.paillier.encryption import Encryptor
from fl_core.crypto.paillier.threshold import (
    KeyShare,
    SharedKey,
    combine_partials,
    deal,
    decrypt_partially,
    generate_shared_key,
)
from fl_core.crypto.paillier.threshold_proof import PartialProof, check_proof, prove
from fl_core.errors import BadShares, CryptoError, NotEnough
from fl_core.simulation.entropy import seeded_entropy

THRESHOLD, HOLDERS = 3, 5


@pytest.fixture(scope="module")
def dealt() -> tuple[SharedKey, list[KeyShare]]:
    return generate_shared_key(256, THRESHOLD, HOLDERS, seeded_entropy(3))


@pytest.fixture(scope="module")
def plaintexts(dealt: tuple[SharedKey, list[KeyShare]]) -> list[int]:
    n = int(dealt[0].public_key.n)
    return [0, 1, n - 1, n // 2, *range(7)]


@pytest.fixture(scope="module")
def ciphertexts(dealt: tuple[SharedKey, list[KeyShare]], plaintexts: list[int]) -> list[int]:
    return Encryptor(dealt[0].public_key, 20).encrypt(plaintexts, os.urandom)


@pytest.fixture(scope="module")
def partials(dealt: tuple[SharedKey, list[KeyShare]], ciphertexts: list[int]) -> dict[int, list[int]]:
    key, shares = dealt
    return {share.index: decrypt_partially(key, share, ciphertexts) for share in shares}


def test_every_threshold_of_holders_decrypts(
    dealt: tuple[SharedKey, list[KeyShare]], partials: dict[int, list[int]], plaintexts: list[int]
) -> None:
    for size in (THRESHOLD, HOLDERS):
        for chosen in combinations(partials, size):
            assert combine_partials(dealt[0], {index: partials[index] for index in chosen}) == plaintexts


def test_fewer_holders_decrypt_nothing(dealt: tuple[SharedKey, list[KeyShare]], partials: dict[int, list[int]]) -> None:
    with pytest.raises(NotEnough):
        combine_partials(dealt[0], {index: partials[index] for index in (1, 2)})
    # Whoever leaves the check out gets no power of n + 1.
    weaker = SharedKey(dealt[0].public_key, 2, HOLDERS, dealt[0].base, dealt[0].verification)
    with pytest.raises(BadShares, match="fit together"):
        combine_partials(weaker, {index: partials[index] for index in (1, 2)})


def test_the_proof_of_an_honest_holder_is_accepted(
    dealt: tuple[SharedKey, list[KeyShare]], ciphertexts: list[int], partials: dict[int, list[int]]
) -> None:
    key, shares = dealt
    for share in shares[:2]:
        proof = prove(key, share, b"context", ciphertexts, partials[share.index], os.urandom)
        again = PartialProof.from_bytes(key, proof.to_bytes(key))
        assert again == proof
        check_proof(key, share.index, b"context", ciphertexts, partials[share.index], again)


def wrong_answers(key: SharedKey, answers: Sequence[int]) -> dict[str, list[int]]:
    square, n = int(key.public_key.n_squared), int(key.public_key.n)
    first, second, *rest = answers
    return {
        "moved by a plaintext": [first * (1 + n) % square, second, *rest],
        "swapped": [second, first, *rest],
        "of another number": [first * 4 % square, second, *rest],
        "made up of two that even out": [first * 4 % square, second * pow(4, -1, square) % square, *rest],
    }


@pytest.mark.parametrize(
    "name", ["moved by a plaintext", "swapped", "of another number", "made up of two that even out"]
)
def test_a_wrong_answer_is_found_out_and_its_holder_named(
    dealt: tuple[SharedKey, list[KeyShare]], ciphertexts: list[int], partials: dict[int, list[int]], name: str
) -> None:
    key, shares = dealt
    lie = wrong_answers(key, partials[2])[name]
    for answers in (lie, partials[2]):
        proof = prove(key, shares[1], b"context", ciphertexts, answers, os.urandom)
        with pytest.raises(BadShares, match="holder 2"):
            check_proof(key, 2, b"context", ciphertexts, lie, proof)


def test_a_proof_belongs_to_its_context_holder_and_numbers(
    dealt: tuple[SharedKey, list[KeyShare]], ciphertexts: list[int], partials: dict[int, list[int]]
) -> None:
    key, shares = dealt
    proof = prove(key, shares[0], b"context", ciphertexts, partials[1], os.urandom)
    with pytest.raises(BadShares):
        check_proof(key, 1, b"other", ciphertexts, partials[1], proof)
    with pytest.raises(BadShares):
        check_proof(key, 2, b"context", ciphertexts, partials[1], proof)
    with pytest.raises(BadShares):
        check_proof(key, 1, b"context", ciphertexts[::-1], partials[1], proof)
    with pytest.raises(BadShares):
        check_proof(key, 6, b"context", ciphertexts, partials[1], proof)
    with pytest.raises(BadShares):
        check_proof(key, 1, b"context", ciphertexts, [0, *partials[1][1:]], proof)
    with pytest.raises(BadShares):
        PartialProof.from_bytes(key, proof.to_bytes(key)[1:])


@pytest.mark.parametrize(("threshold", "holders"), [(1, 3), (4, 3), (2, 17)])
def test_impossible_thresholds_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(CryptoError):
        generate_shared_key(64, threshold, holders, seeded_entropy(1))


def test_primes_that_are_equal_are_refused_and_shares_are_not_shown(dealt: tuple[SharedKey, list[KeyShare]]) -> None:
    with pytest.raises(CryptoError):
        deal(23, 23, 2, 3, os.urandom)
    assert str(dealt[1][0].secret) not in repr(dealt[1][0])
