"""The rest of a model's stream: from any byte, in any size of chunk, the same bytes and the same proof."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from fl_core.errors import StreamError
from fl_core.wire.chunks import SMALLEST_CHUNK_BYTES, ChunkReader, ChunkWriter
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.going_on import rest_of

CONTENT = np.random.default_rng(4).bytes(50_001)


async def whole(chunk_bytes: int = 16_384) -> AsyncIterator[pb.GetParametersResponse]:
    writer = ChunkWriter(CONTENT, chunk_bytes=chunk_bytes)
    yield pb.GetParametersResponse(header=pb.ModelHeader(stream=writer.header))
    for chunk in writer.chunks():
        yield pb.GetParametersResponse(chunk=chunk)
    yield pb.GetParametersResponse(trailer=writer.trailer)


@pytest.mark.parametrize("first_byte", [0, 1, 16_383, 16_384, 20_000, 50_000, 50_001])
@pytest.mark.parametrize("chunk_bytes", [0, 4096, 5000, 1 << 20])
async def test_the_beginning_and_the_rest_are_the_whole_and_prove_it(first_byte: int, chunk_bytes: int) -> None:
    parts = [part async for part in rest_of(whole(), first_byte, chunk_bytes)]
    header = parts[0].header.stream
    reader = ChunkReader(ChunkWriter(CONTENT).header, max_bytes=len(CONTENT))
    if first_byte:
        beginning = ChunkWriter(CONTENT, chunk_bytes=first_byte)
        reader = ChunkReader(beginning.header, max_bytes=len(CONTENT))
        reader.feed(next(iter(beginning.chunks())))
    reader.resume(header, first_byte)
    got = b"".join(reader.feed(part.chunk) for part in parts[1:-1])
    assert got == CONTENT[first_byte:]
    reader.finish(parts[-1].trailer)


@pytest.mark.parametrize(
    ("first_byte", "chunk_bytes"),
    [(50_002, 0), (1 << 63, 0), (0, 1), (0, SMALLEST_CHUNK_BYTES - 1), (0, (1 << 20) + 1)],
)
async def test_a_byte_that_is_not_there_and_a_size_that_is_not_sent_are_refused(
    first_byte: int, chunk_bytes: int
) -> None:
    with pytest.raises(StreamError):
        _ = [part async for part in rest_of(whole(), first_byte, chunk_bytes)]
