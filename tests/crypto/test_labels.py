"""Domain separation: the one way in which fields are joined, byte by byte."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.crypto import labels
from fl_core.crypto.labels import digest_fields, encode_fields
from fl_core.errors import CryptoError

integers = st.integers(-(2**63), 2**63 - 1)
fields = st.lists(
    st.one_of(st.binary(max_size=9), st.text(max_size=9), integers, st.booleans(), st.floats(allow_nan=False)),
    max_size=5,
)


def test_the_encoding_is_this_to_the_byte() -> None:
    encoded = encode_fields(b"label", b"\x01\x02", "é", -1, 0.5, True)
    assert encoded.hex() == (
        "00000005" + b"label".hex()
        + "62" + "0000000000000002" + "0102"
        + "73" + "0000000000000002" + "c3a9"
        + "69" + "0000000000000008" + "ffffffffffffffff"
        + "64" + "0000000000000008" + "3fe0000000000000"
        + "3f" + "0000000000000001" + "01"
    )  # fmt: skip
    assert digest_fields(b"label", b"\x01\x02") == hashlib.sha256(encode_fields(b"label", b"\x01\x02")).digest()


@given(fields, fields)
def test_different_fields_never_give_the_same_bytes(ours: list[labels.Field], theirs: list[labels.Field]) -> None:
    same = [(type(field), repr(field)) for field in ours] == [(type(field), repr(field)) for field in theirs]
    assert (encode_fields(b"label", *ours) == encode_fields(b"label", *theirs)) == same


def test_a_border_between_fields_cannot_be_moved() -> None:
    assert encode_fields(b"l", b"ab", b"c") != encode_fields(b"l", b"a", b"bc")
    assert encode_fields(b"la", b"b") != encode_fields(b"l", b"ab")
    assert encode_fields(b"l", 1) != encode_fields(b"l", True)
    assert encode_fields(b"l", 1) != encode_fields(b"l", 1.0)


def test_no_two_purposes_have_one_label() -> None:
    values = [value for name, value in vars(labels).items() if name.isupper()]
    assert len(set(values)) == len(values) > 10
    assert all(value.startswith(b"tacit/") for value in values)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_refused(number: int) -> None:
    with pytest.raises(CryptoError, match="64-bit"):
        encode_fields(b"label", number)
