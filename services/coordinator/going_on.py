"""The rest of a stream of which a site has the beginning, cut into chunks that get through its link."""

from collections.abc import AsyncGenerator, AsyncIterator

from fl_core.errors import StreamError
from fl_core.rounds.plan import MAX_CHUNK_BYTES
from fl_core.wire.chunks import SMALLEST_CHUNK_BYTES, chunk_count
from fl_core.wire.v1 import coordinator_pb2 as pb
from fl_core.wire.v1 import tensors_pb2


async def rest_of(
    parts: AsyncIterator[pb.GetParametersResponse], first_byte: int, chunk_bytes: int
) -> AsyncGenerator[pb.GetParametersResponse, None]:
    """Header, the chunks from a byte on, and trailer, of a stream from its beginning; which is not changed.

    Args:
        parts: the whole stream.
        first_byte: the first one that is sent; bytes before it are left out, and still in the digest.
        chunk_bytes: of the chunks that are sent; as they come when it is 0.

    Raises:
        StreamError: there is no such byte, or chunks of this size are not sent.
    """
    if chunk_bytes and not SMALLEST_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
        raise StreamError(
            "chunk_bytes is out of range", expected=f"{SMALLEST_CHUNK_BYTES} to {MAX_CHUNK_BYTES}", got=chunk_bytes
        )
    held, position = bytearray(), 0
    total_bytes = size = count = 0
    async for part in parts:
        match part.WhichOneof("part"):
            case "header":
                stream = part.header.stream
                total_bytes, size = stream.total_bytes, chunk_bytes or stream.chunk_bytes
                _check_first(first_byte, total_bytes)
                yield _with_chunks_of(part.header, size)
            case "chunk":
                data = part.chunk.data
                held += memoryview(data)[max(0, first_byte - position) :]
                position += len(data)
                while len(held) >= size or (held and position == total_bytes):
                    yield _chunk(count, bytes(held[:size]))
                    del held[:size]
                    count += 1
            case _:
                assert count == chunk_count(total_bytes - first_byte, size)
                trailer = tensors_pb2.StreamTrailer(chunk_count=count, sha256=part.trailer.sha256)
                yield pb.GetParametersResponse(trailer=trailer)


def _check_first(first_byte: int, total_bytes: int) -> None:
    if first_byte > total_bytes:
        raise StreamError(
            "a stream cannot go on there",
            expected=f"byte {total_bytes} or before it",
            got=f"byte {first_byte}",
            fix="begin anew",
        )


def _with_chunks_of(header: pb.ModelHeader, size: int) -> pb.GetParametersResponse:
    changed = pb.ModelHeader()
    changed.CopyFrom(header)
    changed.stream.chunk_bytes = size
    return pb.GetParametersResponse(header=changed)


def _chunk(index: int, data: bytes) -> pb.GetParametersResponse:
    return pb.GetParametersResponse(chunk=tensors_pb2.Chunk(index=index, data=data))
