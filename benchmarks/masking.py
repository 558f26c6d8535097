"""Masks and masked inputs on one core, side by side with OpenSSL + numpy and with Flower's functions."""

import os
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.figures import Figure
from benchmarks.flower import Flower, flower
from benchmarks.masked_input import MaskedInputRun
from benchmarks.stopwatch import best_by_turns, best_in_a_row, cpu_seconds, one_core
from fl_core.codec.packing import pack, unpack
from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto.mask_prg import add_mask, combine_masks

Words = npt.NDArray[np.uint32]

RING_DTYPE = np.uint32
REPEATS = 5
TURNS = 9
IN_A_ROW = 5
MANY = 50
LENGTH = 1_000_000
NEIGHBOURS = 100
WORD_BYTES = 4
BLOCK_BYTES = 1 << 18
WANTED = {32: 12.0, 16: 20.0}
"""How many times as fast as Flower a masked input should be, by the bits of the ring."""


def measure(*, quick: bool = False) -> list[Figure]:
    """Gigabytes of mask per second, parameters per second of the codec, and seconds of a whole masked input."""
    length, neighbours, turns = (1 << 18, 10, 3) if quick else (LENGTH, NEIGHBOURS, TURNS)
    with one_core(), flower() as peer:
        return [
            *_long_masks(1 << 18 if quick else 10_000_000),
            *_one_mask(length, turns, peer),
            *_codec(length, turns, peer),
            *_masked_inputs(length, neighbours, turns, peer),
        ]


def _long_masks(length: int) -> list[Figure]:
    vector = np.zeros(length, RING_DTYPE)
    # The first use compiles; that is no part of a session's steady state.
    add_mask(vector, os.urandom(16))
    one = _gigabytes_per_second(vector.nbytes, lambda: add_mask(vector, os.urandom(16)))
    drawn = _gigabytes_per_second(vector.nbytes, lambda: _add_numpy_mask(vector))
    other = np.ones(length, RING_DTYPE)
    plain = _gigabytes_per_second(vector.nbytes, lambda: np.add(vector, other, out=vector))
    short = np.zeros(length // 10, RING_DTYPE)
    keys = [os.urandom(16) for _ in range(MANY)]
    many = _gigabytes_per_second(short.nbytes * MANY, lambda: combine_masks(short, keys, [False] * MANY))
    return [
        Figure("add_mask", one, "GB/s", baseline=drawn),
        Figure("add_mask_against_plain_addition", one, "GB/s", baseline=plain),
        Figure("combine_50_masks", many, "GB/s", baseline=drawn),
    ]


def _one_mask(length: int, turns: int, peer: Flower | None) -> list[Figure]:
    """One mask made and added to a vector that fits no first-level cache, by each of those who can do it."""
    vector = np.zeros(length, RING_DTYPE)
    zeros, keystream = memoryview(bytes(vector.nbytes)), bytearray(vector.nbytes + 15)
    block = min(BLOCK_BYTES, vector.nbytes)
    ways: dict[str, Callable[[], object]] = {
        "fused": lambda: add_mask(vector, os.urandom(16)),
        "openssl_whole": lambda: _openssl_then_numpy(vector, zeros, keystream),
        "openssl_blocks": lambda: _openssl_then_numpy_in_blocks(vector, zeros[:block], keystream),
        "keystream": lambda: _keystream(zeros, keystream),
    }
    measurements = {name: partial(best_in_a_row, work, IN_A_ROW) for name, work in ways.items()}
    if peer:
        measurements["flower"] = partial(peer.seconds, "mask_and_add", length=length)
    seconds = best_by_turns(measurements, turns)
    speed = {name: length * WORD_BYTES / 1e9 / taken for name, taken in seconds.items()}
    openssl = max(speed["openssl_whole"], speed["openssl_blocks"])
    figures = [
        Figure("fused_mask_1m", speed["fused"], "GB/s", baseline=openssl),
        Figure("fused_mask_1m_against_openssl_keystream", speed["fused"], "GB/s", baseline=speed["keystream"]),
    ]
    if peer:
        words = {name: length / 1e6 / taken for name, taken in seconds.items()}
        figures.append(Figure("fused_mask_1m_against_flower", words["fused"], "Mwords/s", baseline=words["flower"]))
    return figures


def _openssl_then_numpy(vector: Words, zeros: memoryview, keystream: bytearray) -> None:
    """What OpenSSL and numpy do for a mask: keystream into a buffer that is there, then an addition in place."""
    _keystream(zeros, keystream)
    np.add(vector, np.frombuffer(keystream, RING_DTYPE, len(vector)), out=vector)


def _openssl_then_numpy_in_blocks(vector: Words, zeros: memoryview, keystream: bytearray) -> None:
    """The same in blocks that stay in the second-level cache, from one cipher object."""
    cipher = Cipher(algorithms.AES128(os.urandom(16)), modes.CTR(bytes(16))).encryptor()
    for start in range(0, len(vector), BLOCK_BYTES // WORD_BYTES):
        part = vector[start : start + BLOCK_BYTES // WORD_BYTES]
        cipher.update_into(zeros[: part.nbytes], keystream)
        np.add(part, np.frombuffer(keystream, RING_DTYPE, len(part)), out=part)


def _keystream(zeros: memoryview, keystream: bytearray) -> None:
    Cipher(algorithms.AES128(os.urandom(16)), modes.CTR(bytes(16))).encryptor().update_into(zeros, keystream)


def _codec(length: int, turns: int, peer: Flower | None) -> list[Figure]:
    """Clip, quantise and pack; unpack and decode; millions of parameters per second."""
    update = np.random.default_rng(1).standard_normal(length, np.float32)
    figures: list[Figure] = []
    for bits, ring_bits in ((16, 32), (12, 24), (8, 16), (4, 8)):
        codec = UpdateCodec(CodecSpec(3.0, bits, ring_bits), manifest_of_length(length), max_weight=10)
        packed = pack(codec.encode(update, 10, os.urandom), ring_bits).tobytes()
        measurements = {
            "encode": partial(best_in_a_row, partial(_encode, codec, update), IN_A_ROW),
            "decode": partial(best_in_a_row, partial(_decode, codec, packed), IN_A_ROW),
        }
        if peer:
            measurements["flower"] = partial(peer.seconds, "quantise", length=length)
        seconds = best_by_turns(measurements, turns)
        speed = {name: length / 1e6 / taken for name, taken in seconds.items()}
        figures += [
            Figure(f"encode_{ring_bits}_bit_ring", speed["encode"], "Mparameters/s", baseline=speed.get("flower")),
            Figure(f"decode_{ring_bits}_bit_ring", speed["decode"], "Mparameters/s"),
        ]
    return figures


def _encode(codec: UpdateCodec, update: npt.NDArray[np.float32]) -> None:
    pack(codec.encode(update, 10, os.urandom), codec.spec.ring_bits)


def _decode(codec: UpdateCodec, packed: bytes) -> None:
    codec.decode_sum(unpack(packed, codec.length, codec.spec.ring_bits), 1)


def _masked_inputs(length: int, neighbours: int, turns: int, peer: Flower | None) -> list[Figure]:
    """A site's part of round 2, from shares and a float update to packed bytes."""
    runs = {ring_bits: MaskedInputRun.prepare(length, neighbours, ring_bits) for ring_bits in WANTED}
    measurements = {str(ring_bits): partial(cpu_seconds, run.work) for ring_bits, run in runs.items()}
    if peer:
        measurements["flower"] = partial(peer.seconds, "masked_input", length=length, neighbours=neighbours)
    seconds = best_by_turns(measurements, turns)
    theirs = seconds.get("flower")
    figures: list[Figure] = []
    for ring_bits, wanted in WANTED.items():
        ours = seconds[str(ring_bits)]
        figures.append(Figure(f"masked_input_{ring_bits}_bit_ring", ours, "s", baseline=theirs))
        if theirs:
            name = f"masked_input_{ring_bits}_bit_ring_times_flower"
            figures.append(Figure(name, theirs / ours, "x", baseline=wanted))
    return figures


def manifest_of_length(length: int) -> TensorManifest:
    """A model of one flat tensor."""
    return TensorManifest((TensorSpec("model", "float32", (length,)),))


def _add_numpy_mask(vector: Words) -> None:
    mask = np.random.default_rng(1).integers(0, 1 << 32, len(vector), dtype=RING_DTYPE)
    np.add(vector, mask, out=vector)


def _gigabytes_per_second(count: int, work: Callable[[], object]) -> float:
    return count / median(cpu_seconds(work) for _ in range(REPEATS)) / 1e9
