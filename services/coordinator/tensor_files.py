"""Models as safetensors files: tensors in the order of their manifest, so that file and stream are the same bytes.

A file is eight bytes that say how long the header is (little-endian), the header (JSON), and the bytes of the
tensors one after the other without padding, which is how `GetParameters` and `SubmitJob` stream them too.

Source: the format of https://github.com/huggingface/safetensors.
"""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.errors import CodecError, StorageError

MAX_HEADER_BYTES = 100_000_000
"""As in the reference implementation."""

_METADATA = "__metadata__"
_NAMES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES = {short: dtype for dtype, short in _NAMES.items()}


def encode_header(manifest: TensorManifest, metadata: Mapping[str, str]) -> bytes:
    """Everything that stands in front of the bytes of the tensors; its length is a multiple of eight.

    Raises:
        CodecError: the names need more than `MAX_HEADER_BYTES`, or one of them is reserved by the format.
    """
    if any(spec.name == _METADATA for spec in manifest.tensors):
        raise CodecError(f"no tensor can be called {_METADATA}", expected="another name", fix="rename the tensor")
    entries: dict[str, object] = {_METADATA: dict(metadata)}
    start = 0
    for spec in manifest.tensors:
        end = start + spec.nbytes
        entries[spec.name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    # Spaces fill the header up, so that the tensors begin on a boundary of eight bytes.
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise CodecError("the manifest is too long", expected=f"up to {MAX_HEADER_BYTES} bytes", got=len(header))
    return struct.pack("<Q", len(header)) + header


def decode_header(read: Callable[[int], bytes]) -> TensorManifest:
    """Read what `encode_header` wrote; `read` then stands at the first byte of the first tensor.

    Args:
        read: gives that many bytes of the file, from its beginning on.

    Raises:
        StorageError: it is no safetensors file, or its tensors do not lie in the order of the header.
    """
    try:
        (length,) = struct.unpack("<Q", read(8))
        entries = json.loads(read(length)) if length <= MAX_HEADER_BYTES else None
        if not isinstance(entries, dict):
            raise ValueError("no header")
        specs = [_spec(name, entry) for name, entry in entries.items() if name != _METADATA]
        offsets = [tuple(entry["data_offsets"]) for name, entry in entries.items() if name != _METADATA]
    except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError, CodecError) as error:
        raise StorageError("a stored model cannot be read", expected="a safetensors file") from error
    start = 0
    for spec, place in zip(specs, offsets, strict=True):
        if place != (start, start + spec.nbytes):
            raise StorageError(f"tensor {spec.name!r} of a stored model lies elsewhere", expected=start, got=place)
        start += spec.nbytes
    return TensorManifest(tuple(specs))


def _spec(name: str, entry: Any) -> TensorSpec:
    return TensorSpec(name, _DTYPES[entry["dtype"]], tuple(int(side) for side in entry["shape"]))
