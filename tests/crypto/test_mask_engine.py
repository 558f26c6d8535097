"""Every mask engine that this processor has, byte for byte against OpenSSL and NIST SP 800-38A."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import mask_engine
from fl_core.crypto.mask_engine import KernelEngine, MaskEngine, load_engine, supported_engines
from fl_core.crypto.mask_prg import combine_masks
from fl_core.errors import CryptoError

NIST: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "primitives.json").read_text())["aes128_ctr"]
LANES = ("uint8", "uint16", "uint32", "uint64")

engines = pytest.mark.parametrize("engine", [load_engine(name) for name in supported_engines()], ids=lambda e: e.name)


def openssl_words(key: bytes, start: int, length: int, lane: str) -> Any:
    """The keystream in one piece from its beginning, by OpenSSL alone."""
    stream = Cipher(algorithms.AES128(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes((start + length) * np.dtype(lane).itemsize)), lane)[start:]


@engines
@settings(max_examples=60, deadline=None)
@given(
    lane=st.sampled_from(LANES),
    length=st.one_of(st.integers(0, 200), st.integers(0, 40_000)),
    start=st.integers(0, 5000),
    negative=st.lists(st.booleans(), max_size=4),
    seed=st.binary(min_size=16, max_size=16),
)
def test_an_engine_adds_and_subtracts_the_keystream_of_openssl(
    engine: MaskEngine, lane: str, length: int, start: int, negative: list[bool], seed: bytes
) -> None:
    keys = [
        bytes(a ^ b for a, b in zip(seed, place.to_bytes(16, "big"), strict=True)) for place in range(len(negative))
    ]
    vector = np.arange(length).astype(lane)
    expected = vector.copy()
    for key, sign in zip(keys, negative, strict=True):
        mask = openssl_words(key, start, length, lane)
        expected = expected - mask if sign else expected + mask
    combine_masks(vector, keys, negative, start, engine)
    assert np.array_equal(vector, expected)


@engines
@pytest.mark.parametrize("lane", LANES)
def test_an_engine_equals_nist_sp_800_38a(engine: MaskEngine, lane: str) -> None:
    plain, secret = bytes.fromhex(NIST["plaintext"]), bytes.fromhex(NIST["ciphertext"])
    words = np.frombuffer(bytes(len(plain)), lane).copy()
    start = int(NIST["counter"], 16) * 16 // words.itemsize
    combine_masks(words, [bytes.fromhex(NIST["key"])], [False], start, engine)
    assert words.tobytes() == bytes(a ^ b for a, b in zip(plain, secret, strict=True))


@engines
def test_ranges_masked_apart_are_the_vector_masked_whole(engine: MaskEngine) -> None:
    keys, negative = [os.urandom(16), os.urandom(16)], [False, True]
    whole, parts = np.zeros(10_007, np.uint16), np.zeros(10_007, np.uint16)
    combine_masks(whole, keys, negative, 0, engine)
    for first, last in ((0, 1), (1, 4099), (4099, 10_007)):
        combine_masks(parts[first:last], keys, negative, first, engine)
    assert np.array_equal(whole, parts)


@engines
def test_the_counter_carries_into_its_upper_half(engine: MaskEngine) -> None:
    key, start = bytes(16), ((1 << 64) - 2) * 4
    words = np.zeros(16, np.uint32)
    combine_masks(words, [key], [False], start, engine)
    counters = b"".join(((1 << 64) - 2 + block).to_bytes(16, "big") for block in range(4))
    assert words.tobytes() == Cipher(algorithms.AES128(key), modes.ECB()).encryptor().update(counters)


@engines
@pytest.mark.parametrize(
    "first",
    [0, 1, 224, 255, *((1 << bits) - 300 for bits in (16, 32, 40, 48)), (5 << 40) + 3, (0xF0E1D2C3B4A5 << 80) + 5],
)
def test_a_mask_goes_on_over_every_carry_of_its_counter(engine: MaskEngine, first: int) -> None:
    key, blocks = os.urandom(16), 1200
    counters = b"".join((first + block).to_bytes(16, "big") for block in range(blocks))
    expected = np.frombuffer(Cipher(algorithms.AES128(key), modes.ECB()).encryptor().update(counters), np.uint64)
    for skip in (0, 1, 77):
        words = np.zeros(2 * blocks - skip, np.uint64)
        combine_masks(words, [key], [False], 2 * first + skip, engine)
        assert np.array_equal(words, expected[skip:])


def test_an_engine_that_the_processor_lacks_is_refused() -> None:
    with pytest.raises(CryptoError, match="cannot run the mask engine"):
        load_engine("abacus")


def test_an_engine_that_makes_other_masks_is_never_used() -> None:
    def kernel(accumulator: Any, *_: Any) -> None:
        accumulator += accumulator.dtype.type(1)

    with pytest.raises(CryptoError, match="not make the masks of OpenSSL"):
        mask_engine._check_against_openssl(KernelEngine("broken", kernel))


@pytest.mark.parametrize("setting", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_DISABLE_JIT": "1"}])
def test_no_kernel_runs_where_numba_makes_code_for_another_processor(setting: dict[str, str]) -> None:
    code = "from fl_core.crypto.mask_engine import best_engine; print(best_engine().name)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in os.environ.items() if name != "TACIT_MASK_ENGINE"} | setting,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.strip() == "openssl"


def test_compiled_code_is_loaded_for_much_work_and_never_for_little_however_often() -> None:
    code = """
import sys
import numpy as np
from fl_core.crypto.mask_prg import COMPILED_FROM_BYTES, add_mask
large, small = np.zeros(COMPILED_FROM_BYTES // 4, np.uint32), np.zeros(1000, np.uint32)
for _ in range(COMPILED_FROM_BYTES // small.nbytes + 1):
    add_mask(small, bytes(16))
print("fl_core.crypto.kernels_aes" in sys.modules)
add_mask(large, bytes(16))
print("fl_core.crypto.kernels_aes" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["False", str(mask_engine.best_engine().name != "openssl")]
