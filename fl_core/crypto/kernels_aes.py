"""AES-128-CTR keystream added to, or subtracted from, a ring vector in one pass: AES instructions through numba.

The mask itself is never stored. Two forms exist: VAES on 512-bit registers (thirty-two blocks in flight) and AES-NI on
128-bit registers (eight blocks in flight). `mask_engine` chooses one of them, or OpenSSL, and holds it against OpenSSL
before it is used. AES instructions look nothing up and branch on no secret: their time says nothing about the key.

The VAES form leaves two of the ten rounds out. Counters of one group of 256 blocks differ in their last byte only.
After one round that byte has reached one column of the state; the other three are the same in the whole group. The next
round is linear in the bytes behind its S-box, so that the state after two rounds is the sum of a part that depends on
the last byte and a part that depends on the group. The first part is tabulated, for each key and tile of the vector,
and read in the order of the counters, whatever the key: 4 KiB in the place of a fifth of the work. It depends on the
bytes 0, 5 and 10 of the counter too, which meet the last byte in the first round: they are the same in 2**40 blocks.

Nothing here is compiled before it is called: on a processor without these instructions it never may be.

Source: FIPS 197 (the cipher), NIST SP 800-38A section 6.5 (counter mode), Bernstein and Schwabe 2008, "New AES software
speed records", section 3 (counter-mode caching, there for the first round and a part of the second).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

ROUNDS = 10
ROUND_KEY_WORDS = 2 * (ROUNDS + 1)
FIRST_ROUNDS = 2
"""Rounds after which a state is still a sum of two parts, one of the last counter byte and one of the others."""
BLOCK_BYTES = 16
RCON = (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1B, 0x36)

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_X128 = ir.VectorType(_I64, 2)
_X512 = ir.VectorType(_I64, 8)


def _declare(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(module, ir.FunctionType(result, arguments), name)  # type: ignore[no-untyped-call]


def _data_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return cgutils.create_struct_proxy(array_type)(context, builder, array).data  # type: ignore[no-untyped-call]


def _key_scope(module: Any) -> Any:
    """What marks a key schedule: no store of this file goes there, so that keys stay in registers over whole loops."""
    domain = module.add_metadata([ir.MetaDataString(module, "masks")])
    scope = module.add_metadata([ir.MetaDataString(module, "key schedules"), domain])
    return module.add_metadata([scope])


def _round_key(builder: Any, keys: Any, number: int, vector: ir.VectorType) -> Any:
    """The round key, repeated to fill the register."""
    pointer = builder.bitcast(builder.gep(keys, [ir.Constant(_I64, 2 * number)]), _X128.as_pointer())
    key = builder.load(pointer)
    key.align = 8
    key.set_metadata("alias.scope", _key_scope(builder.module))
    return _repeat(builder, key, vector)


def _repeat(builder: Any, block: Any, vector: ir.VectorType) -> Any:
    """A cipher block, repeated to fill the register."""
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), [lane % 2 for lane in range(vector.count)])
    return builder.shuffle_vector(block, ir.Constant(_X128, ir.Undefined), lanes)


def _first_rounds(builder: Any, keys: Any, states: list[Any], vector: ir.VectorType, suffix: str) -> list[Any]:
    """Counters to states after two rounds."""
    enc = _declare(builder.module, f"llvm.x86.aesni.aesenc{suffix}", vector, [vector, vector])
    key = _round_key(builder, keys, 0, vector)
    states = [builder.xor(state, key) for state in states]
    for number in range(1, FIRST_ROUNDS + 1):
        key = _round_key(builder, keys, number, vector)
        states = [builder.call(enc, [state, key]) for state in states]
    return states


def _last_rounds(builder: Any, keys: Any, states: list[Any], vector: ir.VectorType, suffix: str) -> list[Any]:
    """States after two rounds to keystream."""
    enc = _declare(builder.module, f"llvm.x86.aesni.aesenc{suffix}", vector, [vector, vector])
    last = _declare(builder.module, f"llvm.x86.aesni.aesenclast{suffix}", vector, [vector, vector])
    for number in range(FIRST_ROUNDS + 1, ROUNDS):
        key = _round_key(builder, keys, number, vector)
        states = [builder.call(enc, [state, key]) for state in states]
    key = _round_key(builder, keys, ROUNDS, vector)
    return [builder.call(last, [state, key]) for state in states]


def _encrypt(builder: Any, keys: Any, states: list[Any], vector: ir.VectorType, suffix: str) -> list[Any]:
    return _last_rounds(builder, keys, _first_rounds(builder, keys, states, vector, suffix), vector, suffix)


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


def _load(builder: Any, pointer: Any, vector: ir.VectorType) -> Any:
    loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    loaded.align = 8
    return loaded


def _store(builder: Any, value: Any, pointer: Any, align: int = 8) -> None:
    stored = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    stored.align = align
    stored.set_metadata("noalias", _key_scope(builder.module))


def _combine(
    builder: Any, target: Any, states: list[Any], vector: ir.VectorType, lane_bits: int, *, subtract: bool
) -> None:
    """target[...] += states, or -=."""
    lanes = ir.VectorType(ir.IntType(lane_bits), vector.count * 64 // lane_bits)
    base = builder.bitcast(target, lanes.as_pointer())
    for register, state in enumerate(states):
        place = builder.gep(base, [ir.Constant(_I32, register)])
        old = builder.load(place)
        old.align = lane_bits // 8
        combine = builder.sub if subtract else builder.add
        _store(builder, combine(old, builder.bitcast(state, lanes)), place, lane_bits // 8)


def _counted_stride(vector: ir.VectorType, registers: int, suffix: str, *, subtract: bool) -> Any:
    """One stride of keystream, from the block numbered `high`, `low`, into `accumulator` from element `index` on."""

    def stride(_typing: Any, accumulator: Any, index: Any, keys: Any, high: Any, low: Any) -> Any:  # noqa: ARG001
        signature = types.void(accumulator, types.int64, keys, types.uint64, types.uint64)
        lane_bits = accumulator.dtype.bitwidth

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = _data_pointer(context, builder, signature.args[0], arguments[0])
            round_keys = _data_pointer(context, builder, signature.args[2], arguments[2])
            target = builder.gep(data, [arguments[1]])
            counters = _counters(builder, arguments[3], arguments[4], vector, registers)
            states = _encrypt(builder, round_keys, counters, vector, suffix)
            _combine(builder, target, states, vector, lane_bits, subtract=subtract)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(stride)


def _tabulated_stride(vector: ir.VectorType, registers: int, suffix: str, *, subtract: bool) -> Any:
    """As `_counted_stride`, from the block whose lower half is `low`: the table was turned to its group."""

    def stride(_typing: Any, accumulator: Any, index: Any, keys: Any, table: Any, low: Any) -> Any:  # noqa: ARG001
        signature = types.void(accumulator, types.int64, keys, table, types.uint64)
        lane_bits = accumulator.dtype.bitwidth

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = _data_pointer(context, builder, signature.args[0], arguments[0])
            round_keys = _data_pointer(context, builder, signature.args[2], arguments[2])
            entries = _data_pointer(context, builder, signature.args[3], arguments[3])
            target = builder.gep(data, [arguments[1]])
            turn = _repeat(builder, _load(builder, _turn_place(builder, entries, arguments[4]), _X128), vector)
            place = builder.and_(arguments[4], ir.Constant(_I64, GROUP_BLOCKS - 1))
            first = builder.gep(entries, [builder.mul(place, ir.Constant(_I64, 2))])
            places = [builder.gep(first, [ir.Constant(_I64, vector.count * r)]) for r in range(registers)]
            states = [builder.xor(_load(builder, entry, vector), turn) for entry in places]
            states = _last_rounds(builder, round_keys, states, vector, suffix)
            _combine(builder, target, states, vector, lane_bits, subtract=subtract)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(stride)


def _turn_place(builder: Any, entries: Any, low: Any) -> Any:
    """Where the turn of a block's group stands behind the table: neighbouring groups have different places."""
    parity = builder.and_(builder.lshr(low, ir.Constant(_I64, 8)), ir.Constant(_I64, 1))
    entry = builder.add(parity, ir.Constant(_I64, GROUP_BLOCKS))
    return builder.gep(entries, [builder.mul(entry, ir.Constant(_I64, 2))])


GROUP_BLOCKS = 256
"""Cipher blocks whose counters differ in the last byte only."""
TABLE_WORDS = 2 * (GROUP_BLOCKS + 2)
"""States after two rounds of one group, then what turns them to the group at work and to the next one."""

_VAES_REGISTERS, _AESNI_REGISTERS = 8, 8
_VAES_BLOCKS = 4 * _VAES_REGISTERS
_VAES_STRIDE_BYTES = _VAES_BLOCKS * BLOCK_BYTES
_AESNI_STRIDE_BYTES = _AESNI_REGISTERS * BLOCK_BYTES
# What is worked on for all masks before the next tile: it stays in a second-level cache, and is whole strides of both.
_TILE_BYTES = 128 * 1024

_add_vaes = _tabulated_stride(_X512, _VAES_REGISTERS, ".512", subtract=False)
_subtract_vaes = _tabulated_stride(_X512, _VAES_REGISTERS, ".512", subtract=True)
_add_aesni = _counted_stride(_X128, _AESNI_REGISTERS, "", subtract=False)
_subtract_aesni = _counted_stride(_X128, _AESNI_REGISTERS, "", subtract=True)


@intrinsic
def _tabulate(_typing: Any, keys: Any, table: Any, high: Any, low: Any, place: Any) -> Any:  # noqa: ARG001
    """Write the states after two rounds of `_VAES_BLOCKS` blocks, from `place` on in the group of `high`, `low`."""
    signature = types.void(keys, table, types.uint64, types.uint64, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        round_keys = _data_pointer(context, builder, signature.args[0], arguments[0])
        entries = _data_pointer(context, builder, signature.args[1], arguments[1])
        block = builder.add(builder.and_(arguments[3], ir.Constant(_I64, -GROUP_BLOCKS)), arguments[4])
        counters = _counters(builder, arguments[2], block, _X512, _VAES_REGISTERS)
        first = builder.gep(entries, [builder.mul(arguments[4], ir.Constant(_I64, 2))])
        for register, state in enumerate(_first_rounds(builder, round_keys, counters, _X512, ".512")):
            _store(builder, state, builder.gep(first, [ir.Constant(_I64, _X512.count * register)]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _turn_to_group(_typing: Any, keys: Any, table: Any, high: Any, low: Any) -> Any:  # noqa: ARG001
    """Write what turns the table to the group of the block numbered `high`, `low`."""
    signature = types.void(keys, table, types.uint64, types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        round_keys = _data_pointer(context, builder, signature.args[0], arguments[0])
        entries = _data_pointer(context, builder, signature.args[1], arguments[1])
        first = builder.and_(arguments[3], ir.Constant(_I64, -GROUP_BLOCKS))
        counters = _counters(builder, arguments[2], first, _X128, 1)
        (state,) = _first_rounds(builder, round_keys, counters, _X128, "")
        turn = builder.xor(state, _load(builder, entries, _X128))
        _store(builder, turn, _turn_place(builder, entries, arguments[3]))
        return context.get_dummy_value()

    return signature, codegen


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
    """FIPS 197 key expansion by AESKEYGENASSIST: the first two uint64 of key -> out (22,) uint64."""
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
def combine_aesni(accumulator: Any, keys: Any, negative: Any, skip: Any, high: Any, low: Any) -> None:
    """Add or subtract many masks, eight cipher blocks at a time, tile by tile so that the vector stays in the cache.

    Args:
        accumulator: (d,) uint8, uint16, uint32 or uint64, contiguous; changed in place, modulo its lane.
        keys: 16 * m bytes, each key after the one before.
        negative: m bytes, 0 to add the mask and 1 to subtract it.
        skip: int64, words of the first cipher block that stand before accumulator[0]; less than a block.
        high: int64, the bits of the upper half of the number of the first cipher block.
        low: int64, those of the lower half; the accumulator must end before its next multiple of 2**40.
    """
    signs = np.frombuffer(negative, np.uint8)
    _combine_aesni(accumulator, _round_keys(keys), signs, skip, np.uint64(high), np.uint64(low))


@njit(nogil=True, cache=True)
def combine_vaes(accumulator: Any, keys: Any, negative: Any, skip: Any, high: Any, low: Any) -> None:
    """As `combine_aesni`, thirty-two cipher blocks at a time, two of their rounds from a table."""
    _combine_vaes(
        accumulator, _round_keys(keys), np.frombuffer(negative, np.uint8), skip, np.uint64(high), np.uint64(low)
    )


@njit(nogil=True, cache=True)
def _combine_vaes(accumulator: Any, round_keys: Any, negative: Any, skip: Any, high: Any, low: Any) -> None:
    lane_bytes = np.int64(accumulator.itemsize)
    place = np.int64(low % np.uint64(GROUP_BLOCKS))
    head, end = _whole_strides(accumulator, skip, place, _VAES_STRIDE_BYTES, _VAES_STRIDE_BYTES)
    table = np.empty(TABLE_WORDS, np.uint64)
    for tile in range(head, end, _TILE_BYTES // lane_bytes):
        tile_end = min(tile + _TILE_BYTES // lane_bytes, end)
        block = low + np.uint64((skip + tile) * lane_bytes // BLOCK_BYTES)
        for row in range(round_keys.shape[0]):
            if tile == head or round_keys.shape[0] > 1:
                for entry in range(0, GROUP_BLOCKS, _VAES_BLOCKS):
                    _tabulate(round_keys[row], table, high, block, entry)  # type: ignore[call-arg]
            _combine_tile_vaes(accumulator, tile, tile_end, round_keys[row], negative[row], table, high, block)
    _combine_aesni(accumulator[:head], round_keys, negative, skip, high, low)
    after = (skip + end) * lane_bytes
    last = low + np.uint64(after // BLOCK_BYTES)
    _combine_aesni(accumulator[end:], round_keys, negative, after % BLOCK_BYTES // lane_bytes, high, last)


@njit(nogil=True, cache=True)
def _round_keys(keys: Any) -> Any:
    """16 * m bytes of keys -> (m, 22) uint64 key schedules."""
    words = np.frombuffer(keys, np.uint64)
    out = np.empty((len(words) // 2, ROUND_KEY_WORDS), np.uint64)
    for row in range(out.shape[0]):
        _expand_key(words[2 * row :], out[row])  # type: ignore[call-arg]
    return out


@njit(nogil=True, cache=True)
def _combine_aesni(accumulator: Any, round_keys: Any, negative: Any, skip: Any, high: Any, low: Any) -> None:
    lane_bytes = np.int64(accumulator.itemsize)
    head, end = _whole_strides(accumulator, skip, np.int64(0), BLOCK_BYTES, _AESNI_STRIDE_BYTES)
    for tile in range(head, end, _TILE_BYTES // lane_bytes):
        tile_end = min(tile + _TILE_BYTES // lane_bytes, end)
        block = low + np.uint64((skip + tile) * lane_bytes // BLOCK_BYTES)
        for row in range(round_keys.shape[0]):
            _combine_tile_aesni(accumulator, tile, tile_end, round_keys[row], negative[row], high, block)
    for row in range(round_keys.shape[0]):
        _combine_words(accumulator, np.int64(0), head, round_keys[row], negative[row], skip, high, low)
        _combine_words(accumulator, end, np.int64(accumulator.size), round_keys[row], negative[row], skip, high, low)


@njit(nogil=True, cache=True)
def _whole_strides(accumulator: Any, skip: Any, place: Any, align_bytes: Any, stride_bytes: Any) -> Any:
    """The first element whose keystream byte is a multiple of `align_bytes`, and the end of the last whole stride.

    `place` is the number of the first cipher block, or as much of it as the alignment asks for.
    """
    lane_bytes = np.int64(accumulator.itemsize)
    size = np.int64(accumulator.size)
    head = min(size, -(place * BLOCK_BYTES + skip * lane_bytes) % align_bytes // lane_bytes)
    per_stride = stride_bytes // lane_bytes
    return head, head + (size - head) // per_stride * per_stride


@njit(nogil=True, cache=True)
def _combine_tile_aesni(
    accumulator: Any, begin: Any, end: Any, keys: Any, negative: Any, high: Any, block: Any
) -> None:
    """Whole strides, from the cipher block numbered `high`, `block` on."""
    per_stride = _AESNI_STRIDE_BYTES // np.int64(accumulator.itemsize)
    if negative == 0:
        for index in range(begin, end, per_stride):
            _add_aesni(accumulator, index, keys, high, block)
            block += np.uint64(_AESNI_REGISTERS)
    else:
        for index in range(begin, end, per_stride):
            _subtract_aesni(accumulator, index, keys, high, block)
            block += np.uint64(_AESNI_REGISTERS)


@njit(nogil=True, cache=True)
def _combine_tile_vaes(
    accumulator: Any, begin: Any, end: Any, keys: Any, negative: Any, table: Any, high: Any, block: Any
) -> None:
    """Whole strides, from the cipher block numbered `high`, `block` on."""
    per_stride = _VAES_STRIDE_BYTES // np.int64(accumulator.itemsize)
    group, blocks = np.uint64(GROUP_BLOCKS), np.uint64(_VAES_BLOCKS)
    _turn_to_group(keys, table, high, block)  # type: ignore[call-arg]
    _turn_to_group(keys, table, high, block + group)
    # The turn to the next group is made a whole group before it is needed, so that no stride waits for it.
    if negative == 0:
        for index in range(begin, end, per_stride):
            if block % group == 0:
                _turn_to_group(keys, table, high, block + group)
            _add_vaes(accumulator, index, keys, table, block)
            block += blocks
    else:
        for index in range(begin, end, per_stride):
            if block % group == 0:
                _turn_to_group(keys, table, high, block + group)
            _subtract_vaes(accumulator, index, keys, table, block)
            block += blocks


@njit(nogil=True, cache=True)
def _combine_words(
    accumulator: Any, begin: Any, end: Any, keys: Any, negative: Any, skip: Any, high: Any, low: Any
) -> None:
    """The elements that fill no stride, one by one."""
    lane_bytes = np.int64(accumulator.itemsize)
    for index in range(begin, end):
        position = (skip + index) * lane_bytes
        block = low + np.uint64(position // BLOCK_BYTES)
        half: Any = _keystream_half(keys, high, block, position % BLOCK_BYTES // 8)  # type: ignore[call-arg]
        word = accumulator.dtype.type(half >> np.uint64(8 * (position % 8)))
        if negative == 0:
            accumulator[index] += word
        else:
            accumulator[index] -= word
