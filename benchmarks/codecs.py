"""The codec's kernels on one core, beside numpy, torch and memcpy; and what each codec costs in bytes and accuracy.

The plot of the trade-off is written to `codecs.png` in the folder where the benchmark runs, or where `TACIT_PLOT` says.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Figure
from benchmarks.stopwatch import best_by_turns, best_in_a_row, one_core
from fl_core.codec import kernels_numpy
from fl_core.codec.indices import decode_places, encode_places
from fl_core.codec.largest import largest_places
from fl_core.codec.packing import pack, packed_bytes, unpack
from fl_core.codec.plain_payload import read_payload, write_payload
from fl_core.codec.presets import PRESETS
from fl_core.codec.rotation import rotate, unrotate
from fl_core.codec.spec import CodecSpec, Levels, Selection
from fl_core.codec.tensors import FloatVector, TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto.mask_engine import best_engine
from fl_core.crypto.mask_prg import RingVector, lane_dtype

LENGTH = 1 << 20
TURNS, IN_A_ROW = 7, 5
WEIGHT = 10
CLIP = 3.0
ROUNDS = 20
KEY = bytes(16)
Work = Callable[[], object]


def measure(*, quick: bool = False) -> list[Figure]:
    """Millions of parameters per second, milliseconds, bytes and accuracies."""
    length, turns = (1 << 18, 2) if quick else (LENGTH, TURNS)
    torch.set_num_threads(1)
    best_engine()
    with one_core():
        figures = [
            *_quantising(length, turns),
            *_rotating(length, turns),
            *_selecting(length, turns),
            *_packing(length, turns),
            *_plain_forms(length, turns),
        ]
    return [*figures, *_trade_off(quick)]


def _times(works: Mapping[str, Work], turns: int) -> dict[str, float]:
    return best_by_turns({name: partial(best_in_a_row, work, IN_A_ROW) for name, work in works.items()}, turns)


def _speeds(name: str, length: int, seconds: Mapping[str, float]) -> list[Figure]:
    """The first of the works beside each of the others."""
    ours, *others = seconds
    speed = {work: length / 1e6 / taken for work, taken in seconds.items()}
    return [Figure(f"{name}_against_{other}", speed[ours], "Mparameters/s", baseline=speed[other]) for other in others]


def _codec(length: int, spec: CodecSpec) -> UpdateCodec:
    return UpdateCodec(spec, TensorManifest((TensorSpec("model", "float32", (length,)),)), WEIGHT)


def _update(length: int) -> FloatVector:
    return np.random.default_rng(1).standard_normal(length, np.float32)


def _quantising(length: int, turns: int) -> list[Figure]:
    """Clip, quantise, pack; unpack, decode: whole calls of the codec beside the same steps in numpy and torch."""
    update, other = _update(length), np.empty(length, np.float32)
    theirs = torch.from_numpy(update)
    figures: list[Figure] = []
    for bits in (16, 8):
        codec = _codec(length, CodecSpec(CLIP, bits, bits))
        packed = pack(codec.encode(update, WEIGHT, os.urandom), bits).tobytes()
        seconds = _times(
            {
                "ours": partial(_encode, codec, update),
                "numpy": partial(_encode_in_numpy, update, bits),
                "torch": partial(_encode_in_torch, theirs, bits),
                "memcpy": partial(np.copyto, other, update),
            },
            turns,
        )
        figures += _speeds(f"encode_{bits}_bits", length, seconds)
        seconds = _times(
            {
                "ours": partial(_decode, codec, packed),
                "numpy": partial(_decode_in_numpy, packed, length, bits),
                "memcpy": partial(np.copyto, other, update),
            },
            turns,
        )
        figures += _speeds(f"decode_{bits}_bits", length, seconds)
    return figures


def _encode(codec: UpdateCodec, update: FloatVector) -> object:
    return pack(codec.encode(update, WEIGHT, os.urandom), codec.spec.ring_bits)


def _decode(codec: UpdateCodec, packed: bytes) -> object:
    return codec.decode_sum(unpack(packed, codec.length, codec.spec.ring_bits), 1)


def _encode_in_numpy(update: FloatVector, bits: int) -> object:
    """The steps of ours, in float32: check, clip, weigh, round stochastically, pack."""
    if not np.isfinite(update).all():
        raise ValueError("not finite")
    top, weight = np.float32((1 << bits) - 1), np.float32(1.0)
    clipped = np.clip(update, -CLIP, CLIP) * weight
    level = (clipped + np.float32(CLIP)) * (top / np.float32(2 * CLIP))
    coins = np.random.default_rng().random(len(update), np.float32)
    levels = np.minimum(np.floor(level + coins), top)
    return levels.astype(np.uint16 if bits > 8 else np.uint8).tobytes()


def _decode_in_numpy(packed: bytes, length: int, bits: int) -> object:
    levels = np.frombuffer(packed, np.uint16 if bits > 8 else np.uint8)[-length:]
    return levels.astype(np.float32) * np.float32(2 * CLIP / ((1 << bits) - 1)) - np.float32(CLIP)


def _encode_in_torch(update: torch.Tensor, bits: int) -> object:
    """Deterministic rounding, which is less than what ours does: torch has no stochastic one."""
    kind = torch.qint8 if bits == 8 else torch.qint32
    return torch.quantize_per_tensor(update.clamp(-CLIP, CLIP), 2 * CLIP / ((1 << bits) - 1), 0, kind)


def _rotating(length: int, turns: int) -> list[Figure]:
    update, other = _update(length), np.empty(length, np.float32)
    rotated = rotate(update, KEY)
    seconds = _times(
        {
            "rotate": lambda: rotate(update, KEY),
            "unrotate": lambda: unrotate(rotated, KEY, length),
            "numpy": lambda: _hadamard_in_numpy(update),
            "memcpy": lambda: np.copyto(other, update),
        },
        turns,
    )
    return [
        Figure("rotate_1m", 1e3 * seconds["rotate"], "ms", baseline=1e3 * seconds["numpy"]),
        Figure("rotate_1m_against_memcpy", 1e3 * seconds["rotate"], "ms", baseline=1e3 * seconds["memcpy"]),
        Figure("unrotate_1m", 1e3 * seconds["unrotate"], "ms", baseline=1e3 * seconds["numpy"]),
    ]


def _hadamard_in_numpy(update: FloatVector) -> FloatVector:
    turned = update.copy()
    kernels_hadamard_in_numpy(turned)
    return turned


def kernels_hadamard_in_numpy(vector: FloatVector) -> None:
    """The definition of the rotation, over blocks of 2**16."""
    from fl_core.codec.kernels_hadamard_numpy import hadamard

    hadamard(vector, min(1 << 16, len(vector)))


def _selecting(length: int, turns: int) -> list[Figure]:
    update, count = _update(length), length // 100
    theirs = torch.from_numpy(update)
    seconds = _times(
        {
            "ours": lambda: largest_places(update, count),
            "torch": lambda: torch.topk(theirs.abs(), count, sorted=False),
            "numpy": lambda: np.argpartition(np.abs(update), length - count),
        },
        turns,
    )
    places = largest_places(update, count)
    code = encode_places(places, length)
    coding = _times(
        {"encode": lambda: encode_places(places, length), "decode": lambda: decode_places(code, count, length)}, turns
    )
    return [
        *_speeds("top_1_percent", length, seconds),
        Figure("places_encode", count / 1e6 / coding["encode"], "Mplaces/s"),
        Figure("places_decode", count / 1e6 / coding["decode"], "Mplaces/s"),
        Figure("places_bytes_each", len(code) / count, "B", baseline=4.0),
    ]


def _packing(length: int, turns: int) -> list[Figure]:
    figures: list[Figure] = []
    for bits in (1, 4, 12, 20):
        drawn = np.random.default_rng(1).integers(0, 1 << bits, length, dtype=np.uint32)
        vector: RingVector = drawn.astype(lane_dtype(bits))
        packed = pack(vector, bits)
        out = np.empty(packed_bytes(length, bits), np.uint8)
        seconds = _times(
            {
                "pack": partial(pack, vector, bits),
                "unpack": partial(unpack, packed, length, bits),
                "packbits": partial(kernels_numpy.pack, vector, bits, out),
            },
            turns,
        )
        speed = {name: length / 1e6 / taken for name, taken in seconds.items()}
        figures += [
            Figure(f"pack_{bits}_bits", speed["pack"], "Mparameters/s", baseline=speed["packbits"]),
            Figure(f"unpack_{bits}_bits", speed["unpack"], "Mparameters/s"),
        ]
    return figures


def _plain_forms(length: int, turns: int) -> list[Figure]:
    specs = {
        "zstd": CodecSpec(100 * CLIP, 8, 8),
        "top": CodecSpec(CLIP, 8, 8, selection=Selection.TOP, density=0.01),
        "sign": CodecSpec(CLIP, 8, 8, rotation=True, levels=Levels.SIGN),
    }
    figures: list[Figure] = []
    for name, spec in specs.items():
        codec = _codec(length, spec)
        upload = codec.encode(_update(length), WEIGHT, os.urandom)
        payload = write_payload(spec, WEIGHT, upload)
        seconds = _times(
            {
                "write": partial(write_payload, spec, WEIGHT, upload),
                "read": partial(read_payload, spec, length, WEIGHT, payload),
            },
            turns,
        )
        figures += [
            Figure(f"plain_{name}_write", length / 1e6 / seconds["write"], "Mparameters/s"),
            Figure(f"plain_{name}_read", length / 1e6 / seconds["read"], "Mparameters/s"),
            Figure(f"plain_{name}_bytes", payload.nbytes, "B", baseline=4.0 * length),
        ]
    return figures


def _trade_off(quick: bool) -> list[Figure]:
    from benchmarks.codec_rounds import FLOAT, TASKS, Outcome, run

    figures: list[Figure] = []
    drawn: dict[str, list[Outcome]] = {}
    for task in TASKS[:1] if quick else TASKS:
        outcomes = [run(task, codec, _rounds(codec, quick)) for codec in (FLOAT, *_shown(quick))]
        exact = outcomes[0]
        for outcome in outcomes:
            name = f"{task.name}_{outcome.codec}"
            accuracy = 100 * outcome.accuracies[-1]
            figures += [
                Figure(f"{name}_accuracy", accuracy, "%", baseline=100 * exact.accuracies[-1]),
                Figure(f"{name}_bytes_up", outcome.bytes_up, "B", baseline=exact.bytes_up),
            ]
        drawn[task.name] = outcomes
    from benchmarks.codec_plot import draw

    path = draw(drawn, Path(os.environ.get("TACIT_PLOT", "codecs.png")))
    print(f"plot: {path}", file=sys.stderr)
    return figures


def _rounds(codec: str, quick: bool) -> int:
    rounds = 1 if quick else ROUNDS
    is_sparse = codec in PRESETS and PRESETS[codec].settings.get("density", 1) != 1
    return 2 * rounds if is_sparse else rounds


def _shown(quick: bool) -> Sequence[str]:
    return ("int8",) if quick else tuple(PRESETS)
