"""X25519 and HKDF against the RFCs, and the public keys that nobody honest sends."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fl_core.crypto.agreement import agree, check_public_key, derive_key, generate_key_pair, public_key_of
from fl_core.errors import BadKey, CryptoError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "primitives.json").read_text())
LOW_ORDER = [bytes.fromhex(point) for point in VECTORS["x25519_low_order"]["points"]]
LOW_ORDER_IN_ANY_FORM = [*LOW_ORDER, *(point[:31] + bytes([point[31] | 0x80]) for point in LOW_ORDER)]


@pytest.mark.parametrize("vector", VECTORS["x25519"]["vectors"])
def test_agreement_equals_rfc_7748(vector: dict[str, str]) -> None:
    shared = agree(bytes.fromhex(vector["scalar"]), bytes.fromhex(vector["u"]))
    assert shared.hex() == vector["output"]


def test_a_thousand_agreements_equal_rfc_7748() -> None:
    scalar = point = bytes([9]) + bytes(31)
    results = {}
    for iteration in range(1, 1001):
        scalar, point = agree(scalar, point), scalar
        results[str(iteration)] = scalar.hex()
    assert VECTORS["x25519"]["iterated"].items() <= results.items()


def test_both_ends_agree_as_in_rfc_7748() -> None:
    case = {name: bytes.fromhex(text) for name, text in VECTORS["x25519_agreement"].items() if name != "source"}
    assert public_key_of(case["alice_secret"]) == case["alice_public"]
    assert public_key_of(case["bob_secret"]) == case["bob_public"]
    assert agree(case["alice_secret"], case["bob_public"]) == case["shared"]
    assert agree(case["bob_secret"], case["alice_public"]) == case["shared"]


@pytest.mark.parametrize("vector", VECTORS["hkdf_sha256"]["vectors"])
def test_derived_keys_equal_rfc_5869(vector: dict[str, str]) -> None:
    ikm, salt, info, okm = (bytes.fromhex(vector[name]) for name in ("ikm", "salt", "info", "okm"))
    assert derive_key(ikm, salt=salt, info=info, length=len(okm)) == okm


@pytest.mark.parametrize("point", LOW_ORDER_IN_ANY_FORM)
def test_a_low_order_point_is_refused_at_the_door_and_in_the_agreement(point: bytes) -> None:
    with pytest.raises(BadKey):
        check_public_key(point)
    with pytest.raises(BadKey, match="all zero"):
        agree(os.urandom(32), point)


def test_another_encoding_of_a_good_key_is_refused() -> None:
    public_key = generate_key_pair(os.urandom).public_key
    check_public_key(public_key)
    with pytest.raises(BadKey, match="canonical"):
        check_public_key(public_key[:31] + bytes([public_key[31] | 0x80]))
    with pytest.raises(BadKey, match="canonical"):
        check_public_key((2**255 - 19 + 9).to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_the_wrong_length_is_refused(length: int) -> None:
    good = generate_key_pair(os.urandom)
    for refused in (
        lambda: agree(good.secret_key, bytes(length)),
        lambda: agree(bytes(length), good.public_key),
        lambda: check_public_key(bytes(length)),
        lambda: public_key_of(bytes(length)),
    ):
        with pytest.raises(BadKey, match=f"32 bytes, got {length} bytes"):
            refused()


def test_a_broken_entropy_source_is_noticed() -> None:
    with pytest.raises(CryptoError, match="entropy"):
        generate_key_pair(lambda count: bytes(count - 1))


@pytest.mark.parametrize("length", [0, 8161])
def test_an_impossible_length_of_a_derived_key_is_refused(length: int) -> None:
    with pytest.raises(CryptoError):
        derive_key(b"secret", salt=b"", info=b"", length=length)


def test_nothing_is_derived_from_an_empty_secret() -> None:
    with pytest.raises(CryptoError):
        derive_key(b"", salt=b"", info=b"", length=32)


def test_a_key_pair_never_shows_its_secret() -> None:
    pair = generate_key_pair(os.urandom)
    assert pair.secret_key.hex() not in repr(pair)
    assert repr(pair.secret_key) not in repr(pair)
