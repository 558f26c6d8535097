"""The released model in fewer bits: rounded as it is stored, what was rounded away kept beside it for the next one."""

import numpy as np
import numpy.typing as npt

from fl_core.codec.model_format import ModelFormat, round_to_format
from fl_core.codec.tensors import FloatVector, TensorManifest, manifest_of
from fl_core.errors import NotFound
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord

_REST = "rest"
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

    @classmethod
    async def of(
        cls, models: ModelStore, base: ModelRecord, manifest: TensorManifest, form: ModelFormat
    ) -> "ReleasedModel":
        """For the version after `base`.

        Raises:
            StorageError: what is stored cannot be read.
        """
        try:
            rest = np.array((await models.load(_name(base.blob_name)))[_REST], np.float32)
        except NotFound:
            rest = np.zeros(manifest.size, np.float32)
        return cls(form, rest)

    def take(self, elements: npt.NDArray[np.generic], place: slice) -> npt.NDArray[np.generic]:
        """Round a part of the model; what are no 32-bit floats stays as it is.

        Args:
            elements: (n,) of the new version.
            place: where they are in the flat vector.

        Raises:
            CodecError: a parameter does not fit the format.
        """
        if elements.dtype != np.float32:
            return elements
        wanted: FloatVector = elements.astype(np.float32) + self._rest[place]
        rounded = round_to_format(wanted, self._form)
        self._rest[place] = wanted - rounded
        return rounded

    async def store(self, models: ModelStore, blob_name: str) -> None:
        """Keep the rest beside the model that it is of."""
        tensors = {_REST: self._rest}
        await models.store(_name(blob_name), manifest_of(tensors), tensors)


def _name(blob_name: str) -> str:
    return f"{blob_name.removesuffix(_SUFFIX)}-rest{_SUFFIX}"
