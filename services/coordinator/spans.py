"""The span that a round asks of the next one, kept as a small blob beside the model version that the round made."""

import numpy as np

from fl_core.codec.span import MARGIN_FIRST, Span, next_span
from fl_core.codec.tensors import manifest_of
from fl_core.codec.update_codec import SumDecoder
from fl_core.errors import NotFound
from services.coordinator.models import ModelStore
from services.coordinator.records import ModelRecord

_SPAN = "span"
_SUFFIX = ".safetensors"


async def load_span(models: ModelStore, base: ModelRecord) -> Span | None:
    """The span for a round that trains from a version; None when no round with an adaptive codec made it.

    Raises:
        StorageError: what is stored is no span.
        CodecError: it is out of range.
    """
    try:
        tensors = await models.load(_name(base.blob_name))
    except NotFound:
        return None
    width, margin = (float(number) for number in np.asarray(tensors[_SPAN]).reshape(-1))
    return Span(width, margin)


async def store_span(models: ModelStore, blob_name: str, decoder: SumDecoder, before: Span | None) -> None:
    """Keep what the sum of an adaptive codec asks for, beside the model that it made.

    Args:
        models: where blobs are.
        blob_name: of the model that the sum made.
        decoder: of the sum.
        before: of the round whose sum it is.
    """
    spec, header = decoder.codec.spec, decoder.header
    margin = MARGIN_FIRST if before is None else before.margin
    span = next_span(header.reach, header.clamped, decoder.survivors, spec.clip, margin)
    tensors = {_SPAN: np.array([span.width, span.margin])}
    await models.store(_name(blob_name), manifest_of(tensors), tensors)


def _name(blob_name: str) -> str:
    return f"{blob_name.removesuffix(_SUFFIX)}-span{_SUFFIX}"
