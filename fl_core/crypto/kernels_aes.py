"""AES-128-CTR keystream added to, or subtracted from, a ring vector in one pass: AES instructions through numba.

The mask itself is never stored. Two forms exist: VAES on 512-bit registers (thirty-two blocks in flight) and AES-NI on
128-bit registers (eight blocks in flight). `mask_engine` chooses one of them, or OpenSSL, and holds it against OpenSSL
before it is used. AES instructions have no tables and no secret-dependent branches, so that the time says nothing about
the key.

Nothing here is compiled before it is called: on a processor without these instructions it never may be.

Source: FIPS 197 (the cipher), NIST SP 800-38A section 6.5 (counter mode).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

ROUNDS = 10
ROUND_KEY_WORDS = 2 * (ROUNDS + 1)
BLOCK_BYTES = 16
RCON = (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1B, 0x36)

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_X128 = ir.VectorType(_I64, 2)
_X512 = ir.VectorType(_I64, 8)


def _declare(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(module, ir.FunctionType(result, arguments), name)  # type: ignore[no-untyped-call]


def _data_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return cgutils.create_struct_proxy(array_type)(context, builder, array).data  # type: ignore[no-untyped-call]


def _round_key(builder: Any, keys: Any, number: int, vector: ir.VectorType) -> Any:
    """The round key, repeated to fill the register."""
    pointer = builder.bitcast(builder.gep(keys, [ir.Constant(_I64, 2 * number)]), _X128.as_pointer())
    key = builder.load(pointer)
    key.align = 8
    # Nothing writes the key schedule while masks are made, so the keys may stay in registers over a whole loop.
    key.set_metadata("invariant.load", builder.module.add_metadata([]))
    if vector.count == 2:
        return key
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), [lane % 2 for lane in range(vector.count)])
    return builder.shuffle_vector(key, ir.Constant(_X128, ir.Undefined), lanes)


def _encrypt(builder: Any, keys: Any, states: list[Any], vector: ir.VectorType, suffix: str) -> list[Any]:
    enc = _declare(builder.module, f"llvm.x86.aesni.aesenc{suffix}", vector, [vector, vector])
    last = _declare(builder.module, f"llvm.x86.aesni.aesenclast{suffix}", vector, [vector, vector])
    key = _round_key(builder, keys, 0, vector)
    states = [builder.xor(state, key) for state in states]
    for number in range(1, ROUNDS):
        key = _round_key(builder, keys, number, vector)
        states = [builder.call(enc, [state, key]) for state in states]
    key = _round_key(builder, keys, ROUNDS, vector)
    return [builder.call(last, [state, key]) for state in states]


def _splat(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count))


def _counters(builder: Any, high: Any, low: Any, vector: ir.VectorType, registers: int) -> list[Any]:
    """Big-endian 128-bit counters of consecutive blocks; the caller knows that the lower half does not overflow."""
    per_register = vector.count // 2
    odd_lanes = ir.Constant(ir.VectorType(ir.IntType(1), vector.count), [0, 1] * per_register)
    halves = builder.select(odd_lanes, _splat(builder, low, vector), _splat(builder, high, vector))
    swap = _declare(builder.module, f"llvm.bswap.v{vector.count}i64", vector, [vector])
    lanes = range(vector.count)
    offsets = [[(r * per_register + lane // 2) * (lane % 2) for lane in lanes] for r in range(registers)]
    return [builder.call(swap, [builder.add(halves, ir.Constant(vector, offset))]) for offset in offsets]


def _combine(builder: Any, target: Any, states: list[Any], vector: ir.VectorType, lane_bits: int, negate: Any) -> None:
    """target[...] += states, or -= where `negate` has all bits set: -x is (x ^ -1) - (-1)."""
    count = vector.count * 64 // lane_bits
    lanes = ir.VectorType(ir.IntType(lane_bits), count)
    lane = negate if lane_bits == 64 else builder.trunc(negate, ir.IntType(lane_bits))
    sign = _splat(builder, lane, lanes)
    base = builder.bitcast(target, lanes.as_pointer())
    for register, state in enumerate(states):
        place = builder.gep(base, [ir.Constant(_I32, register)])
        old = builder.load(place)
        old.align = lane_bits // 8
        signed = builder.sub(builder.xor(builder.bitcast(state, lanes), sign), sign)
        stored = builder.store(builder.add(old, signed), place)
        stored.align = lane_bits // 8


def _stride_intrinsic(vector: ir.VectorType, registers: int, suffix: str) -> Any:
    """One stride of keystream, from the block numbered `high`, `low`, into `accumulator` from element `index` on."""

    def stride(_typing: Any, accumulator: Any, index: Any, keys: Any, high: Any, low: Any, sign: Any) -> Any:  # noqa: ARG001
        signature = types.void(accumulator, types.int64, keys, types.uint64, types.uint64, types.int64)
        lane_bits = accumulator.dtype.bitwidth

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = _data_pointer(context, builder, signature.args[0], arguments[0])
            round_keys = _data_pointer(context, builder, signature.args[2], arguments[2])
            target = builder.gep(data, [arguments[1]])
            counters = _counters(builder, arguments[3], arguments[4], vector, registers)
            states = _encrypt(builder, round_keys, counters, vector, suffix)
            _combine(builder, target, states, vector, lane_bits, arguments[5])
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(stride)


_stride_vaes = _stride_intrinsic(_X512, 8, ".512")
_stride_aesni = _stride_intrinsic(_X128, 8, "")
_VAES_STRIDE_BYTES = 8 * 64
_AESNI_STRIDE_BYTES = 8 * 16
# What is worked on for all masks before the next tile: half of a first-level cache, and whole strides of both forms.
_TILE_BYTES = 16 * 1024


@intrinsic
def _keystream_half(_typing: Any, keys: Any, high: Any, low: Any, half: Any) -> Any:  # noqa: ARG001
    """Eight bytes of the keystream block numbered `high`, `low`, as a little-endian integer: half 0 or 1."""
    signature = types.uint64(keys, types.uint64, types.uint64, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        round_keys = _data_pointer(context, builder, signature.args[0], arguments[0])
        counters = _counters(builder, arguments[1], arguments[2], _X128, 1)
        states = _encrypt(builder, round_keys, counters, _X128, "")
        return builder.extract_element(states[0], builder.trunc(arguments[3], _I32))

    return signature, codegen


@intrinsic
def _expand_key(_typing: Any, key: Any, out: Any) -> Any:
    """FIPS 197 key expansion by AESKEYGENASSIST: key (2,) uint64 -> out (22,) uint64."""
    signature = types.void(key, out)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = _data_pointer(context, builder, signature.args[0], arguments[0])
        target = _data_pointer(context, builder, signature.args[1], arguments[1])
        assist = _declare(builder.module, "llvm.x86.aesni.aeskeygenassist", _X128, [_X128, _I8])
        words = ir.VectorType(_I32, 4)
        zero = ir.Constant(words, [0] * 4)
        loaded = builder.load(builder.bitcast(source, _X128.as_pointer()))
        loaded.align = 8
        state = loaded
        for number in range(ROUNDS + 1):
            stored = builder.store(
                state, builder.bitcast(builder.gep(target, [ir.Constant(_I64, 2 * number)]), _X128.as_pointer())
            )
            stored.align = 8
            if number == ROUNDS:
                break
            mixed = builder.bitcast(builder.call(assist, [state, ir.Constant(_I8, RCON[number])]), words)
            mixed = builder.shuffle_vector(mixed, zero, ir.Constant(words, [3] * 4))
            current = builder.bitcast(state, words)
            for shift in (1, 2):
                lanes = [lane - shift if lane >= shift else 4 for lane in range(4)]
                slid = builder.shuffle_vector(current, zero, ir.Constant(words, lanes))
                current = builder.xor(current, slid)
            state = builder.bitcast(builder.xor(current, mixed), _X128)
        return context.get_dummy_value()

    return signature, codegen


@njit(nogil=True, cache=True)
def expand_round_keys(keys: Any, out: Any) -> None:
    """Expand AES-128 keys.

    Args:
        keys: (m, 2) uint64, each key's sixteen bytes as two little-endian words.
        out: (m, 22) uint64, written.
    """
    for row in range(keys.shape[0]):
        _expand_key(keys[row], out[row])  # type: ignore[call-arg]


@njit(nogil=True, cache=True)
def combine_aesni(accumulator: Any, round_keys: Any, signs: Any, skip: Any, high: Any, low: Any) -> None:
    """Add or subtract many masks, eight cipher blocks at a time, tile by tile so that the vector stays in the cache.

    Args:
        accumulator: (d,) uint8, uint16, uint32 or uint64, contiguous; changed in place, modulo its lane.
        round_keys: (m, 22) uint64 of `expand_round_keys`.
        signs: (m,) int64, 0 to add the mask and -1 to subtract it.
        skip: int64, words of the first cipher block that stand before accumulator[0]; less than a block.
        high: uint64, upper half of the number of the first cipher block.
        low: uint64, lower half; it must not overflow before the end of the accumulator.
    """
    lane_bytes = np.int64(accumulator.itemsize)
    head, end = _whole_strides(accumulator, skip, _AESNI_STRIDE_BYTES)
    for tile in range(head, end, _TILE_BYTES // lane_bytes):
        tile_end = min(tile + _TILE_BYTES // lane_bytes, end)
        for row in range(round_keys.shape[0]):
            block = low + np.uint64((skip + tile) * lane_bytes // 16)
            for index in range(tile, tile_end, _AESNI_STRIDE_BYTES // lane_bytes):
                _stride_aesni(accumulator, index, round_keys[row], high, block, signs[row])
                block += np.uint64(_AESNI_STRIDE_BYTES // 16)
    for row in range(round_keys.shape[0]):
        _combine_words(accumulator, np.int64(0), head, round_keys[row], signs[row], skip, high, low)
        _combine_words(accumulator, end, np.int64(accumulator.size), round_keys[row], signs[row], skip, high, low)


@njit(nogil=True, cache=True)
def combine_vaes(accumulator: Any, round_keys: Any, signs: Any, skip: Any, high: Any, low: Any) -> None:
    """As `combine_aesni`, thirty-two cipher blocks at a time."""
    lane_bytes = np.int64(accumulator.itemsize)
    head, end = _whole_strides(accumulator, skip, _VAES_STRIDE_BYTES)
    for tile in range(head, end, _TILE_BYTES // lane_bytes):
        tile_end = min(tile + _TILE_BYTES // lane_bytes, end)
        for row in range(round_keys.shape[0]):
            block = low + np.uint64((skip + tile) * lane_bytes // 16)
            for index in range(tile, tile_end, _VAES_STRIDE_BYTES // lane_bytes):
                _stride_vaes(accumulator, index, round_keys[row], high, block, signs[row])
                block += np.uint64(_VAES_STRIDE_BYTES // 16)
    combine_aesni(accumulator[:head], round_keys, signs, skip, high, low)
    after = (skip + end) * lane_bytes
    combine_aesni(accumulator[end:], round_keys, signs, after % 16 // lane_bytes, high, low + np.uint64(after // 16))


@njit(nogil=True, cache=True)
def _whole_strides(accumulator: Any, skip: Any, stride_bytes: Any) -> Any:
    """The first element that begins a cipher block, and the end of the last whole stride after it."""
    lane_bytes = np.int64(accumulator.itemsize)
    size = np.int64(accumulator.size)
    head = min(size, (16 - skip * lane_bytes) % 16 // lane_bytes)
    per_stride = stride_bytes // lane_bytes
    return head, head + (size - head) // per_stride * per_stride


@njit(nogil=True, cache=True)
def _combine_words(
    accumulator: Any, begin: Any, end: Any, keys: Any, sign: Any, skip: Any, high: Any, low: Any
) -> None:
    """The elements that fill no stride, one by one."""
    lane_bytes = np.int64(accumulator.itemsize)
    for index in range(begin, end):
        position = (skip + index) * lane_bytes
        block = low + np.uint64(position // 16)
        half: Any = _keystream_half(keys, high, block, position % 16 // 8)  # type: ignore[call-arg]
        word = accumulator.dtype.type(half >> np.uint64(8 * (position % 8)))
        if sign == 0:
            accumulator[index] += word
        else:
            accumulator[index] -= word
