"""Every engine of this processor gives the powers of gmpy2, for numbers of every kind, size and number."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.paillier import engine as engines_module
from fl_core.crypto.paillier.bignum import gil_released
from fl_core.crypto.paillier.ciphertexts import add_ciphertexts, check_ciphertexts
from fl_core.crypto.paillier.decryption import decrypt
from fl_core.crypto.paillier.encryption import Encryptor
from fl_core.crypto.paillier.engine import (
    GmpEngine,
    GmpTable,
    check_against_gmpy2,
    engine_for,
    load_engine,
    supported_engines,
)
from fl_core.crypto.paillier.keys import PrivateKey
from fl_core.crypto.paillier.powers import PowerEngine, RandomnessTable, window_for
from fl_core.errors import CryptoError

engines = pytest.mark.parametrize("engine", [load_engine(name) for name in supported_engines()], ids=lambda e: e.name)


@st.composite
def power_cases(draw: st.DrawFn) -> tuple[int, list[int], int]:
    """An odd modulus around every border of a limb, numbers below its square, and an exponent."""
    bits = draw(st.one_of(st.integers(9, 2200), st.sampled_from([44, 45, 51, 52, 53, 96, 97, 104, 1024, 2072, 2073])))
    modulus = draw(st.one_of(st.integers(1 << (bits - 1), (1 << bits) - 1), st.just((1 << bits) - 1))) | 1
    edges = st.sampled_from([0, 1, modulus - 1, modulus, modulus + 1, modulus * modulus - 1])
    bases = draw(st.lists(st.one_of(edges, st.integers(0, modulus * modulus - 1)), max_size=10))
    return modulus, bases, draw(st.integers(1, 2**70))


@engines
@settings(deadline=None, max_examples=60)
@given(case=power_cases())
def test_secret_powers_are_those_of_python(engine: PowerEngine, case: tuple[int, list[int], int]) -> None:
    modulus, bases, exponent = case
    powers = engine.secret_powers(bases, exponent, exponent.bit_length(), modulus)
    assert powers == [pow(base, exponent, modulus * modulus) for base in bases]


@engines
@pytest.mark.parametrize("uses", [1, 100, 10_000])
def test_tables_of_every_width_give_the_same_powers(engine: PowerEngine, uses: int, small_key: PrivateKey) -> None:
    ours = engine.randomness_table(small_key.public_key, uses)
    theirs = GmpEngine().randomness_table(small_key.public_key, 1)
    exponents = [bytes(16), bytes(15) + b"\x01", b"\xff" * 16, b"\x80" + bytes(15), *(os.urandom(16) for _ in range(7))]
    assert ours.powers(exponents) == theirs.powers(exponents)
    assert ours.powers([]) == []


@engines
def test_a_key_for_use_encrypts_and_decrypts(
    engine: PowerEngine, iso_key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(engines_module.VARIABLE, engine.name)
    plaintexts = [0, 1, int(iso_key.public_key.n) - 1, *range(9)]
    assert decrypt(iso_key, Encryptor(iso_key.public_key, 12).encrypt(plaintexts, os.urandom)) == plaintexts


@engines
def test_threads_give_what_one_thread_gives(
    engine: PowerEngine, iso_key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(engines_module.VARIABLE, engine.name)
    key, numbers = iso_key.public_key, list(range(48))
    exponents = [os.urandom(key.randomness_bits // 8) for _ in numbers]
    table = engine.randomness_table(key, len(numbers))
    alone = table.powers(exponents)
    ciphertexts = Encryptor(key, len(numbers)).encrypt(numbers, os.urandom)
    parts = [slice(at, at + 8) for at in range(0, 48, 8)]
    with ThreadPoolExecutor(4) as threads:
        powers = [one for part in threads.map(lambda part: table.powers(exponents[part]), parts) for one in part]
        sums = [
            one
            for part in threads.map(lambda part: add_ciphertexts(key, ciphertexts[part], ciphertexts[part]), parts)
            for one in part
        ]
        opened = [one for part in threads.map(lambda part: decrypt(iso_key, sums[part]), parts) for one in part]
    assert powers == alone
    assert sums == add_ciphertexts(key, ciphertexts, ciphertexts)
    assert opened == [2 * number for number in numbers]


@dataclass(frozen=True, slots=True)
class Witness:
    """A number that notes, whenever it is multiplied, whether the GIL would be released for that."""

    seen: list[bool] = field(default_factory=list)

    def __mul__(self, _other: object) -> int:
        self.seen.append(gmpy2.get_context().allow_release_gil)
        return 1

    __rmul__ = __mul__

    def __lt__(self, _other: object) -> bool:
        return True

    __gt__ = __lt__


def test_gmpy2_releases_the_gil_for_each_kind_of_work_and_for_nothing_else(
    small_key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, witness = small_key.public_key, Witness()
    released, secret_power = witness.seen, gmpy2.powmod_sec
    monkeypatch.setattr(gmpy2, "powmod_sec", lambda *numbers: witness * 1 and secret_power(*numbers))
    GmpEngine().secret_powers([3], 5, 3, 7)
    GmpTable(key, 1, ((1, witness),)).powers([b"\x01"])  # type: ignore[arg-type]
    add_ciphertexts(key, [witness], [1])  # type: ignore[list-item]
    check_ciphertexts(key, [witness])  # type: ignore[list-item]
    assert released == [True] * 4
    assert not gmpy2.get_context().allow_release_gil


def test_the_gil_is_kept_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), gil_released():
        gmpy2.mpz(1) % gmpy2.mpz(0)
    assert not gmpy2.get_context().allow_release_gil


def test_more_uses_make_wider_windows() -> None:
    widths = [window_for(1024, uses) for uses in (1, 10, 100, 1000, 10_000)]
    assert widths == sorted(widths)
    assert len(set(widths)) > 3
    assert (window_for(1024, 0), window_for(1024, 10**6)) == (1, 8)


@dataclass(frozen=True, slots=True)
class BrokenEngine:
    """Gives a wrong bit."""

    name: str = "broken"

    def randomness_table(self, public_key: object, uses: int) -> RandomnessTable:
        raise NotImplementedError

    def secret_powers(self, bases: Sequence[int], exponent: int, exponent_bits: int, modulus: int) -> list[int]:
        first, *rest = GmpEngine().secret_powers(bases, exponent, exponent_bits, modulus)
        return [*rest, first ^ 1]


def test_an_engine_that_differs_from_gmpy2_is_not_used() -> None:
    with pytest.raises(CryptoError, match="gmpy2"):
        check_against_gmpy2(BrokenEngine())


def test_an_engine_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_module, "processor_flags", dict)
    assert supported_engines() == ("gmpy2",)
    with pytest.raises(CryptoError, match="cannot run"):
        load_engine.__wrapped__("ifma")


def test_a_named_engine_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines_module.VARIABLE, "gmpy2")
    assert engine_for(10**6).name == "gmpy2"
