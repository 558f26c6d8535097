"""Every engine of this processor gives the shared secrets of libsodium, for points of every kind and number."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_scalarmult_base

from fl_core.crypto import agreement_engine
from fl_core.crypto.agreement import agree, agree_many, generate_key_pair
from fl_core.crypto.agreement_engine import AgreementEngine, SodiumEngine, load_engine, supported_engines
from fl_core.errors import BadKey, CryptoError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "primitives.json").read_text())
LOW_ORDER = [bytes.fromhex(point) for point in VECTORS["x25519_low_order"]["points"]]
PRIME = 2**255 - 19
# Around every limb and word, around the prime, and beyond it: where a carry that is lost would show.
EDGES = [
    number.to_bytes(32, "little")
    for bit in (0, 51, 64, 102, 128, 153, 192, 204, 254, 255)
    for number in ((1 << bit) - 1, 1 << bit, (1 << bit) + 1)
] + [number.to_bytes(32, "little") for number in (PRIME - 1, PRIME, PRIME + 1, PRIME + 9, 2**255 - 1, 2**256 - 1)]

engines = pytest.mark.parametrize("engine", [load_engine(name) for name in supported_engines()], ids=lambda e: e.name)
scalars = st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from([bytes(32), b"\xff" * 32]))
points = st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from([*EDGES, *LOW_ORDER]))


@engines
@settings(deadline=None)
@given(pairs=st.lists(st.tuples(scalars, points), max_size=20))
def test_every_engine_equals_libsodium(engine: AgreementEngine, pairs: list[tuple[bytes, bytes]]) -> None:
    factors, group = [scalar for scalar, _ in pairs], [point for _, point in pairs]
    assert engine.multiply(factors, group) == SodiumEngine().multiply(factors, group)


@engines
def test_every_edge_equals_libsodium(engine: AgreementEngine) -> None:
    for scalar in (bytes(32), b"\xff" * 32, os.urandom(32)):
        assert engine.multiply([scalar] * len(EDGES), EDGES) == [
            SodiumEngine().multiply([scalar], [point])[0] for point in EDGES
        ]


@engines
@pytest.mark.parametrize("vector", VECTORS["x25519"]["vectors"])
def test_every_engine_equals_rfc_7748(engine: AgreementEngine, vector: dict[str, str]) -> None:
    products = engine.multiply([bytes.fromhex(vector["scalar"])] * 9, [bytes.fromhex(vector["u"])] * 9)
    assert [product.hex() for product in products] == [vector["output"]] * 9


@engines
def test_a_thousand_steps_equal_rfc_7748(engine: AgreementEngine) -> None:
    scalar = point = bytes([9]) + bytes(31)
    results = {}
    for iteration in range(1, 1001):
        scalar, point = engine.multiply([scalar], [point])[0], scalar
        results[str(iteration)] = scalar.hex()
    assert VECTORS["x25519"]["iterated"].items() <= results.items()


@engines
@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_low_order_point_in_a_crowd_is_refused_by_its_bytes(
    engine: AgreementEngine, point: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(agreement_engine.VARIABLE, engine.name)
    crowd = [crypto_scalarmult_base(os.urandom(32)) for _ in range(11)]
    with pytest.raises(BadKey, match=point.hex()):
        agree_many(os.urandom(32), [*crowd, point, *crowd])


@engines
def test_many_agreements_are_the_single_ones_in_their_order(
    engine: AgreementEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(agreement_engine.VARIABLE, engine.name)
    ours, others = generate_key_pair(os.urandom), [generate_key_pair(os.urandom) for _ in range(19)]
    secrets = agree_many(ours.secret_key, [other.public_key for other in others])
    assert secrets == [agree(other.secret_key, ours.public_key) for other in others]
    assert len(set(secrets)) == 19


def test_no_agreement_is_no_secret() -> None:
    assert agree_many(os.urandom(32), []) == []


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(BadKey, match="31 bytes"):
        agree_many(os.urandom(31), [os.urandom(32)])
    with pytest.raises(BadKey, match="33 bytes"):
        agree_many(os.urandom(32), [os.urandom(32), os.urandom(33)])


@dataclass(frozen=True, slots=True)
class BrokenEngine:
    """Gives a wrong bit."""

    name: str = "broken"

    def multiply(self, scalars: list[bytes], points: list[bytes]) -> list[bytes]:
        first, *rest = SodiumEngine().multiply(scalars, points)
        return [bytes([first[0] ^ 1]) + first[1:], *rest]


def test_an_engine_that_differs_from_libsodium_is_not_used() -> None:
    with pytest.raises(CryptoError, match="libsodium"):
        agreement_engine._check_against_libsodium(BrokenEngine())


def test_an_engine_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_engine, "processor_flags", dict)
    assert supported_engines() == ("libsodium",)
    with pytest.raises(CryptoError, match="cannot run"):
        load_engine.__wrapped__("ifma")


def test_a_small_cohort_does_not_load_numba() -> None:
    code = (
        "import os, sys; from fl_core.crypto.agreement import agree_many, public_key_of; "
        "agree_many(os.urandom(32), [public_key_of(os.urandom(32))] * 100); print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif("ifma" not in supported_engines(), reason="this processor has no IFMA")
@pytest.mark.parametrize("value", [0, 1, 18, PRIME - 1, PRIME, PRIME + 1, PRIME + 18, 2 * PRIME - 1, 2 * PRIME, 2**256])
def test_a_result_is_below_the_prime_whatever_form_the_arithmetic_left_it_in(value: int) -> None:
    from fl_core.crypto import kernels_x25519 as kernels

    work = np.zeros((kernels.ELEMENTS * kernels.LIMBS, kernels.LANES), np.uint64)
    for limb in range(kernels.LIMBS):
        top = limb == kernels.LIMBS - 1
        part = value >> (51 * limb)
        work[kernels._X2 * kernels.LIMBS + limb] = part if top else part & ((1 << 51) - 1)
    out = np.zeros((kernels.LANES, 4), np.uint64)
    kernels._end(work, out, 0)
    assert [int.from_bytes(row.tobytes(), "little") for row in out] == [value % PRIME] * kernels.LANES
