"""Named tensors and the flat vector that stands for them, by manifest."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from fl_core.crypto import labels
from fl_core.errors import CodecError

FloatVector = npt.NDArray[np.float32]
"""(d,) float32, model units."""

Tensors = Mapping[str, npt.NDArray[np.generic]]

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
MAX_TENSORS = 65_536
MAX_RANK = 16
MAX_NAME_BYTES = 512
MAX_ELEMENTS = 1 << 33
"""Elements of a whole model: far above what a site can train, far below where sizes stop fitting 64 bits."""

_EXACT_IN_FLOAT32 = frozenset({"float16", "float32", "int8", "int16", "uint8", "bool"})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (a name of `DTYPES`) and shape of one tensor.

    Raises:
        CodecError: the name is empty or too long, the dtype unknown, or the shape out of range.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name.isascii():
            _check_text(self.name)
        if not 0 < len(self.name.encode()) <= MAX_NAME_BYTES:
            raise CodecError(
                "a tensor's name is out of range", expected=f"1 to {MAX_NAME_BYTES} bytes", got=len(self.name)
            )
        if self.dtype not in DTYPES:
            raise CodecError(f"tensor {self.name!r} has an unknown dtype", expected=" | ".join(DTYPES), got=self.dtype)
        if len(self.shape) > MAX_RANK or any(side < 0 for side in self.shape):
            raise CodecError(
                f"tensor {self.name!r} has an impossible shape",
                expected=f"up to {MAX_RANK} sides >= 0",
                got=self.shape[: MAX_RANK + 1],
            )

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class TensorManifest:
    """The order and form of the tensors of a model. Their elements, in this order, are the flat vector.

    Raises:
        CodecError: no tensor, too many tensors or elements, or a name that stands twice.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.tensors) <= MAX_TENSORS:
            raise CodecError(
                "a model has an impossible number of tensors", expected=f"1 to {MAX_TENSORS}", got=len(self.tensors)
            )
        names = [spec.name for spec in self.tensors]
        if len(set(names)) != len(names):
            twice, _ = Counter(names).most_common(1)[0]
            raise CodecError("a tensor's name stands twice in the manifest", expected="distinct names", got=twice)
        if self.size > MAX_ELEMENTS:
            raise CodecError("a model has too many elements", expected=f"up to {MAX_ELEMENTS}", got=self.size)

    @property
    def size(self) -> int:
        """Coordinates of the flat vector."""
        return sum(spec.size for spec in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, one after the other without padding."""
        return sum(spec.nbytes for spec in self.tensors)

    def places(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each tensor with its place in the flat vector."""
        start = 0
        for spec in self.tensors:
            yield spec, slice(start, start + spec.size)
            start += spec.size

    def name_at(self, coordinate: int) -> str:
        """Name of the tensor that holds this coordinate of the flat vector.

        Raises:
            CodecError: the flat vector has no such coordinate.
        """
        for spec, place in self.places():
            if place.start <= coordinate < place.stop:
                return spec.name
        raise CodecError("a coordinate lies outside the model", expected=f"0 to {self.size - 1}", got=coordinate)

    def digest(self) -> bytes:
        """32 bytes that stand for names, dtypes, shapes and order."""
        fields: list[labels.Field] = []
        for spec in self.tensors:
            fields += [spec.name, spec.dtype, len(spec.shape), *spec.shape]
        return labels.digest_fields(labels.MANIFEST, *fields)


def manifest_of(tensors: Tensors) -> TensorManifest:
    """Describe named tensors, in the order in which the mapping gives them.

    Raises:
        CodecError: no tensor, a dtype that is not carried, or an impossible name.
    """
    return TensorManifest(
        tuple(
            TensorSpec(name, np.asarray(array).dtype.name, np.asarray(array).shape) for name, array in tensors.items()
        )
    )


def check_tensors(tensors: Tensors, manifest: TensorManifest) -> None:
    """Check that tensors have exactly the names, dtypes and shapes of the manifest, in any order.

    Raises:
        CodecError: a tensor is missing, unknown, or of another dtype or shape.
    """
    wanted = {spec.name for spec in manifest.tensors}
    for name in tensors:
        if name not in wanted:
            raise CodecError(f"tensor {name!r} is not in the manifest", fix="return the tensors of the global model")
    for spec in manifest.tensors:
        _check_tensor(spec, tensors)


def flatten(tensors: Tensors, manifest: TensorManifest) -> FloatVector:
    """Lay the elements of all tensors one after the other, as the manifest orders them.

    Integers beyond 2**24 and float64 are rounded to float32; `difference` and `add_update` do not have this loss.

    Returns:
        (d,) float32.

    Raises:
        CodecError: the tensors do not fit the manifest, or an element is NaN, infinite or beyond float32.
    """
    check_tensors(tensors, manifest)
    vector = np.empty(manifest.size, np.float32)
    for spec, place in manifest.places():
        with np.errstate(over="ignore"):
            vector[place] = np.asarray(tensors[spec.name]).reshape(-1)
        _check_finite(spec, vector[place])
    return vector


def unflatten(vector: FloatVector, manifest: TensorManifest) -> dict[str, npt.NDArray[np.generic]]:
    """Cut a flat vector into named tensors of their own dtypes; integers and booleans are rounded and clamped.

    Args:
        vector: (d,) float32.
        manifest: names, dtypes and shapes.

    Returns:
        New arrays by name, in the order of the manifest.

    Raises:
        CodecError: the vector has another length, or an element is NaN, infinite or beyond the dtype's floats.
    """
    check_length(vector, manifest)
    return {spec.name: _cast(spec, vector[place]).reshape(spec.shape) for spec, place in manifest.places()}


def difference(after: Tensors, before: Tensors, manifest: TensorManifest) -> FloatVector:
    """Flatten `after - before`: the update of one site.

    Returns:
        (d,) float32, model units.

    Raises:
        CodecError: the tensors do not fit the manifest, or a difference is NaN, infinite or beyond float32.
    """
    check_tensors(after, manifest)
    check_tensors(before, manifest)
    update = np.empty(manifest.size, np.float32)
    for spec, place in manifest.places():
        width = _width(spec)
        with np.errstate(over="ignore", invalid="ignore"):
            update[place] = np.subtract(
                np.asarray(after[spec.name]).reshape(-1),
                np.asarray(before[spec.name]).reshape(-1),
                dtype=width,
                casting="unsafe",
            )
        _check_finite(spec, update[place])
    return update


def add_update(
    tensors: Tensors, update: npt.NDArray[np.floating], manifest: TensorManifest
) -> dict[str, npt.NDArray[np.generic]]:
    """Add a flat update to named tensors, each in the precision of its dtype; where the update is 0 nothing changes.

    Args:
        tensors: the model.
        update: (d,) floats, model units.
        manifest: names, dtypes and shapes of the model.

    Returns:
        New arrays by name, in the order of the manifest.

    Raises:
        CodecError: the parts do not fit together, or an element of the result is NaN or infinite.
    """
    check_tensors(tensors, manifest)
    check_length(update, manifest)
    result: dict[str, npt.NDArray[np.generic]] = {}
    for spec, place in manifest.places():
        before = np.asarray(tensors[spec.name])
        if spec.dtype in ("int64", "float64", "int32") and not np.any(update[place]):
            # int64 does not fit float64 either; an untouched counter stays what it is.
            _check_finite(spec, before)
            result[spec.name] = before.copy()
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add(before.reshape(-1), update[place], dtype=_width(spec), casting="unsafe")
        result[spec.name] = _cast(spec, total).reshape(spec.shape)
    return result


def check_length(vector: npt.NDArray[np.generic], manifest: TensorManifest) -> None:
    """Check that a vector is flat and as long as the model.

    Raises:
        CodecError: it is not.
    """
    if vector.shape != (manifest.size,):
        raise CodecError("a flat vector does not fit the model", expected=f"shape ({manifest.size},)", got=vector.shape)


def _check_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CodecError("a tensor's name is no text", expected="Unicode without lone surrogates") from error


def _check_tensor(spec: TensorSpec, tensors: Tensors) -> None:
    if spec.name not in tensors:
        raise CodecError(f"tensor {spec.name!r} is missing", fix="return all tensors of the global model")
    array = np.asarray(tensors[spec.name])
    if array.dtype.name != spec.dtype:
        raise CodecError(
            f"tensor {spec.name!r} has the wrong dtype",
            expected=spec.dtype,
            got=array.dtype.name,
            fix="return each tensor of the global model in its dtype",
        )
    if array.shape != spec.shape:
        raise CodecError(
            f"tensor {spec.name!r} has the wrong shape",
            expected=spec.shape,
            got=array.shape,
            fix="return each tensor of the global model in its shape",
        )


def _check_finite(spec: TensorSpec, elements: npt.NDArray[np.generic]) -> None:
    if elements.dtype.kind == "f" and not np.isfinite(elements).all():
        where = int(np.flatnonzero(~np.isfinite(elements))[0])
        raise CodecError(
            f"tensor {spec.name!r} holds a NaN or infinite element",
            expected=f"finite {spec.dtype}",
            got=f"{elements.reshape(-1)[where]} at element {where}",
            fix="lower the learning rate or look at the data",
        )


def _width(spec: TensorSpec) -> type[np.float32] | type[np.float64]:
    return np.float32 if spec.dtype in _EXACT_IN_FLOAT32 else np.float64


def _cast(spec: TensorSpec, elements: npt.NDArray[np.floating]) -> npt.NDArray[np.generic]:
    """Copy into the dtype of `spec`; elements that are no longer finite are refused."""
    _check_finite(spec, elements)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return elements >= 0.5
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = elements.astype(dtype)
        _check_finite(spec, cast)
        return cast
    return _round_into(np.dtype(spec.dtype), elements)


def _round_into(
    dtype: np.dtype[np.signedinteger | np.unsignedinteger], elements: npt.NDArray[np.floating]
) -> npt.NDArray[np.generic]:
    # The largest int64 is no float64, so the clamp is done on integers that stand beside the cast.
    limits = np.iinfo(dtype)
    rounded = np.rint(elements.astype(np.float64))
    low, high = rounded <= float(limits.min), rounded >= float(limits.max)
    cast = np.where(low | high, 0.0, rounded).astype(dtype)
    cast[low], cast[high] = limits.min, limits.max
    return cast
