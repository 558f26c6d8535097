"""The released model in fewer bits: rounded as it is stored, what was rounded away kept beside it for the next one.

All of it is in the blob store before the version is committed. An attempt that fails leaves blobs that no version
names, and the rest of the version before is as it was.
"""

import numpy as np
import numpy.typing as npt

from fl_core.codec.lossy_difference import DifferenceWriter
from fl_core.codec.model_format import ModelFormat, round_to_format
from fl_core.codec.tensors import FloatVector, TensorManifest, Tensors, manifest_of
from fl_core.errors import NotFound
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord
from services.runtime.offload import offload

_REST, _DIFFERENCE = "rest", "difference"
_SUFFIX = ".safetensors"


class ReleasedModel:
    """Rounds one version as its parts pass.

    Args:
        form: of the job.
        rest: (d,) float32, what the version before left over; becomes what this one leaves, in place.
    """

    def __init__(self, form: ModelFormat, rest: FloatVector) -> None:
        self._form = form
        self._rest = rest
        bits = form.difference_bits
        self._writer = None if bits is None else DifferenceWriter(bits)

    @classmethod
    async def of(
        cls, models: ModelStore, base: ModelRecord, manifest: TensorManifest, form: ModelFormat
    ) -> "ReleasedModel":
        """For the version after `base`.

        Raises:
            StorageError: what is stored cannot be read.
        """
        try:
            rest = np.array((await models.load(_name(base.blob_name, _REST)))[_REST], np.float32)
        except NotFound:
            rest = np.zeros(manifest.size, np.float32)
        return cls(form, rest)

    def take(
        self, before: npt.NDArray[np.generic], made: npt.NDArray[np.generic], place: slice
    ) -> npt.NDArray[np.generic]:
        """Round a part of the model; what are no 32-bit floats stays as it is.

        Args:
            before: (n,) of the version before.
            made: (n,) of the new version, as the optimiser gives it.
            place: where they are in the flat vector.

        Raises:
            CodecError: a parameter does not fit the format.
        """
        if made.dtype != np.float32:
            if self._writer is not None:
                self._writer.copy(before.tobytes(), made.tobytes())
            return made
        wanted: FloatVector = made.astype(np.float32) + self._rest[place]
        if self._writer is None:
            rounded = round_to_format(wanted, self._form)
        else:
            rounded = self._writer.round(before.astype(np.float32), wanted)
        self._rest[place] = wanted - rounded
        return rounded

    async def store(self, models: ModelStore, blob_name: str) -> None:
        """Keep the rest, and the difference to the version before, beside the model that they are of."""
        await _store(models, _name(blob_name, _REST), {_REST: self._rest})
        if self._writer is not None:
            code = np.frombuffer(await offload(self._writer.finish), np.uint8)
            await _store(models, _name(blob_name, _DIFFERENCE), {_DIFFERENCE: code})


async def load_difference(models: ModelStore, model: ModelRecord) -> bytes | None:
    """The code that makes a version of the one before; None when its format has none.

    Raises:
        StorageError: what is stored cannot be read.
    """
    try:
        return np.asarray((await models.load(_name(model.blob_name, _DIFFERENCE)))[_DIFFERENCE], np.uint8).tobytes()
    except NotFound:
        return None


async def _store(models: ModelStore, name: str, tensors: Tensors) -> None:
    await models.store(name, manifest_of(tensors), tensors)


def _name(blob_name: str, part: str) -> str:
    return f"{blob_name.removesuffix(_SUFFIX)}-{part}{_SUFFIX}"
