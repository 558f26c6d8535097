"""Chunked streams: what was written is read, and anything else than the whole of it is refused."""

import hashlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.codec.tensors import TensorManifest, TensorSpec, manifest_of
from fl_core.errors import CodecError, LocalProtocolError, StreamError
from fl_core.rounds.plan import MAX_CHUNK_BYTES
from fl_core.wire.chunks import (
    ChunkReader,
    ChunkWriter,
    TensorReader,
    model_digest,
    stream_parts,
    tensor_bytes,
    tensor_writer,
    upload_chunk_bytes,
)
from fl_core.wire.v1.tensors_pb2 import Chunk, StreamHeader, StreamTrailer

DATA = bytes(range(100))


def parts_of(data: bytes, chunk_bytes: int = 32) -> tuple[StreamHeader, list[Chunk], StreamTrailer]:
    writer = ChunkWriter(data, chunk_bytes=chunk_bytes)
    return writer.header, list(writer.chunks()), writer.trailer


def read(header: StreamHeader, chunks: list[Chunk], trailer: StreamTrailer, **limits: Any) -> bytes:
    reader = ChunkReader(header, **{"max_bytes": 1 << 20, **limits})
    data = b"".join(reader.feed(chunk) for chunk in chunks)
    assert reader.finish(trailer) == hashlib.sha256(data).digest()
    reader.end()
    return data


@given(st.binary(max_size=300), st.integers(1, 70))
def test_what_was_written_is_read(data: bytes, chunk_bytes: int) -> None:
    header, chunks, trailer = parts_of(data, chunk_bytes)
    assert all(len(chunk.data) == chunk_bytes for chunk in chunks[:-1])
    assert read(header, chunks, trailer) == data


@given(st.lists(st.binary(max_size=90), max_size=8), st.integers(1, 70))
def test_buffers_of_any_lengths_give_the_same_stream_as_one(buffers: list[bytes], chunk_bytes: int) -> None:
    whole = b"".join(buffers)
    writer = ChunkWriter(iter(buffers), chunk_bytes=chunk_bytes, total_bytes=len(whole))
    assert [part.SerializeToString() for part in stream_parts(writer)] == [
        part.SerializeToString() for part in stream_parts(ChunkWriter(whole, chunk_bytes=chunk_bytes))
    ]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_buffer_can_be_written(kind: Callable[[bytes], Any]) -> None:
    writer = ChunkWriter(kind(DATA), chunk_bytes=32)
    assert b"".join(chunk.data for chunk in writer.chunks()) == DATA
    assert writer.sha256 == hashlib.sha256(DATA).digest()


def test_every_single_loss_swap_repetition_and_flipped_byte_is_refused() -> None:
    header, chunks, trailer = parts_of(DATA)
    flipped = [Chunk(index=c.index, data=bytes([c.data[0] ^ 1]) + c.data[1:]) for c in chunks]
    broken = [chunks[:i] + chunks[i + 1 :] for i in range(4)]
    broken += [[*chunks[:i], chunks[i], *chunks[i:]] for i in range(4)]
    broken += [[*chunks[:i], chunks[i + 1], chunks[i], *chunks[i + 2 :]] for i in range(3)]
    broken += [[*chunks[:i], flipped[i], *chunks[i + 1 :]] for i in range(4)]
    broken += [[*chunks[:3], Chunk(index=3, data=chunks[3].data[:-1])], [*chunks, Chunk(index=4, data=b"")]]
    for wrong in broken:
        with pytest.raises(StreamError):
            read(header, wrong, trailer)


@pytest.mark.parametrize(
    "trailer",
    [
        StreamTrailer(),
        StreamTrailer(chunk_count=4),
        StreamTrailer(chunk_count=4, sha256=b"x" * 32),
        StreamTrailer(chunk_count=3, sha256=hashlib.sha256(DATA).digest()),
        StreamTrailer(chunk_count=4, sha256=hashlib.sha256(DATA).digest()[:31]),
    ],
)
def test_a_trailer_that_proves_something_else_is_refused(trailer: StreamTrailer) -> None:
    header, chunks, _ = parts_of(DATA)
    with pytest.raises(StreamError):
        read(header, chunks, trailer)


@pytest.mark.parametrize("taken", range(5))
def test_a_stream_that_ends_without_its_trailer_is_truncated(taken: int) -> None:
    header, chunks, _ = parts_of(DATA)
    reader = ChunkReader(header, max_bytes=100)
    for chunk in chunks[:taken]:
        reader.feed(chunk)
    with pytest.raises(StreamError, match=r"truncated.*send it again"):
        reader.end()


def test_a_refused_chunk_changes_nothing() -> None:
    header, chunks, trailer = parts_of(DATA)
    reader = ChunkReader(header, max_bytes=100)
    reader.feed(chunks[0])
    for wrong in (chunks[0], chunks[2], Chunk(index=1, data=b"short"), Chunk(index=1, data=bytes(33))):
        with pytest.raises(StreamError):
            reader.feed(wrong)
    with pytest.raises(StreamError, match="truncated"):
        reader.finish(trailer)
    assert b"".join(reader.feed(chunk) for chunk in chunks[1:]) == DATA[32:]
    reader.finish(trailer)


def test_nothing_may_follow_a_trailer() -> None:
    header, chunks, trailer = parts_of(DATA)
    reader = ChunkReader(header, max_bytes=100)
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish(trailer)
    with pytest.raises(StreamError, match="two trailers"):
        reader.finish(trailer)
    with pytest.raises(StreamError, match="after the end"):
        reader.feed(chunks[0])


@pytest.mark.parametrize(
    ("header", "limits", "words"),
    [
        (StreamHeader(total_bytes=101, chunk_bytes=8), {"max_bytes": 100}, "too large.*100.*101"),
        (StreamHeader(total_bytes=2**64 - 1, chunk_bytes=8), {"max_bytes": 2**62}, "too large"),
        (StreamHeader(total_bytes=2**60, chunk_bytes=1), {"max_bytes": 2**62}, "too many chunks"),
        (StreamHeader(total_bytes=9, chunk_bytes=8), {"expected_bytes": 10}, "wrong size.*10.*9"),
        (StreamHeader(total_bytes=9, chunk_bytes=0), {}, "chunk_bytes"),
        (StreamHeader(total_bytes=9, chunk_bytes=MAX_CHUNK_BYTES + 1), {}, "chunk_bytes"),
        (StreamHeader(total_bytes=9, chunk_bytes=16), {"expected_chunk_bytes": 8}, "wrong size.*8.*16"),
        (StreamHeader(total_bytes=9, chunk_bytes=7), {"chunk_bytes": (8, 16)}, "chunk_bytes.*8 to 16.*7"),
        (StreamHeader(total_bytes=9, chunk_bytes=17), {"chunk_bytes": (8, 16)}, "chunk_bytes.*8 to 16.*17"),
        (StreamHeader(), {}, "chunk_bytes"),
    ],
)
def test_a_header_that_announces_something_else_is_refused_before_any_byte(
    header: StreamHeader, limits: dict[str, Any], words: str
) -> None:
    with pytest.raises(StreamError, match=words):
        ChunkReader(header, **{"max_bytes": 1000, **limits})


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=20)), max_size=6),
    st.integers(0, 6),
    st.binary(max_size=40),
)
def test_whatever_a_peer_sends_ends_in_bytes_or_a_stream_error(
    total: int, size: int, chunks: list[tuple[int, bytes]], count: int, digest: bytes
) -> None:
    try:
        reader = ChunkReader(StreamHeader(total_bytes=total % 64, chunk_bytes=size % 16), max_bytes=1000)
        for index, data in chunks:
            reader.feed(Chunk(index=index, data=data))
        reader.finish(StreamTrailer(chunk_count=count, sha256=digest))
    except StreamError:
        return
    assert digest == hashlib.sha256(b"".join(data for _, data in chunks)).digest()


def test_a_writer_that_is_used_wrongly_says_so() -> None:
    with pytest.raises(LocalProtocolError, match="total_bytes"):
        ChunkWriter(iter([b"ab"]))
    with pytest.raises(LocalProtocolError, match="chunk_bytes"):
        ChunkWriter(b"ab", chunk_bytes=MAX_CHUNK_BYTES + 1)
    with pytest.raises(LocalProtocolError, match="shorter"):
        list(ChunkWriter(iter([b"ab"]), total_bytes=3).chunks())
    with pytest.raises(LocalProtocolError, match="longer"):
        list(ChunkWriter(iter([b"ab"]), total_bytes=1).chunks())
    with pytest.raises(LocalProtocolError, match="not at its end"):
        _ = ChunkWriter(b"ab").trailer


TENSORS = {
    "flag": np.array([True, False, True]),
    "odd": np.arange(5, dtype=np.int8),
    "wide": np.arange(6, dtype=np.float64).reshape(2, 3),
    "scalar": np.array(7, dtype=np.int64),
    "none": np.zeros((0, 4), np.float32),
    "half": np.array([[1.5]], np.float16),
}


@pytest.mark.parametrize("chunk_bytes", [1, 7, 8, 64, 4096])
def test_a_model_comes_back_as_it_was(chunk_bytes: int) -> None:
    manifest = manifest_of(TENSORS)
    writer = tensor_writer(TENSORS, manifest, chunk_bytes=chunk_bytes)
    reader = TensorReader(manifest, writer.header, max_bytes=1000)
    for chunk in writer.chunks():
        reader.feed(chunk)
    back = reader.finish(writer.trailer)
    reader.end()
    assert list(back) == list(TENSORS)
    for name, array in TENSORS.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert reader.model_digest == model_digest(TENSORS, manifest)


def test_tensors_travel_row_major_and_little_endian_whatever_their_layout() -> None:
    plain = {"w": np.arange(6, dtype=np.int32).reshape(2, 3)}
    manifest = manifest_of(plain)
    for other in (np.asfortranarray(plain["w"]), plain["w"].astype(">i4"), np.repeat(plain["w"], 2, axis=1)[:, ::2]):
        assert b"".join(tensor_bytes({"w": other}, manifest)) == np.arange(6, dtype="<i4").tobytes()


def test_a_model_digest_stands_for_names_shapes_and_bytes() -> None:
    base = {"w": np.arange(6, dtype=np.float32)}
    others = [
        {"v": base["w"]},
        {"w": base["w"].reshape(2, 3)},
        {"w": base["w"].view(np.int32)},
        {"w": base["w"] + np.float32(1e-6)},
    ]
    digests = {model_digest(tensors, manifest_of(tensors)) for tensors in (base, *others)}
    assert len(digests) == 5


def test_a_model_of_another_size_is_refused_before_any_byte() -> None:
    manifest = manifest_of(TENSORS)
    header = StreamHeader(total_bytes=manifest.nbytes + 1, chunk_bytes=8)
    with pytest.raises(StreamError, match="wrong size"):
        TensorReader(manifest, header, max_bytes=1000)
    with pytest.raises(StreamError, match="too large"):
        TensorReader(manifest, StreamHeader(total_bytes=manifest.nbytes, chunk_bytes=8), max_bytes=5)


def test_a_boolean_that_is_neither_zero_nor_one_is_refused() -> None:
    manifest = TensorManifest((TensorSpec("flag", "bool", (2,)),))
    writer = ChunkWriter(bytes([1, 2]), chunk_bytes=8)
    reader = TensorReader(manifest, writer.header, max_bytes=10)
    for chunk in writer.chunks():
        reader.feed(chunk)
    with pytest.raises(CodecError, match="'flag'"):
        reader.finish(writer.trailer)


def test_the_digest_of_half_a_model_is_not_given() -> None:
    manifest = manifest_of(TENSORS)
    writer = tensor_writer(TENSORS, manifest)
    with pytest.raises(LocalProtocolError):
        _ = TensorReader(manifest, writer.header, max_bytes=1000).model_digest


def test_a_model_passes_with_the_memory_of_one_model() -> None:
    tensors = {f"w{place}": np.ones(1 << 20, np.float32) for place in range(6)}
    manifest = manifest_of(tensors)
    tracemalloc.start()
    writer = tensor_writer(tensors, manifest)
    reader = TensorReader(manifest, writer.header, max_bytes=1 << 30)
    for chunk in writer.chunks():
        reader.feed(chunk)
    reader.finish(writer.trailer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * manifest.nbytes


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_stream_that_broke_any_number_of_times_gives_the_same_bytes(data: bytes, draw: st.DataObject) -> None:
    header, chunks, trailer = parts_of(data, 7)
    reader, got = ChunkReader(header, max_bytes=200), b""
    stop = draw.draw(st.integers(0, len(chunks)))
    got += b"".join(reader.feed(chunk) for chunk in chunks[:stop])
    while draw.draw(st.booleans()):
        first_byte, size = draw.draw(st.integers(0, len(got))), draw.draw(st.integers(1, 9))
        header, chunks, trailer = parts_of(data[first_byte:], size)
        reader.resume(StreamHeader(total_bytes=len(data), chunk_bytes=size), first_byte)
        stop = draw.draw(st.integers(0, len(chunks)))
        got += b"".join(reader.feed(chunk) for chunk in chunks[:stop])
        assert reader.received_bytes == len(got)
    got += b"".join(reader.feed(chunk) for chunk in chunks[stop:])
    assert got == data
    digest = hashlib.sha256(data).digest()
    assert reader.finish(StreamTrailer(chunk_count=trailer.chunk_count, sha256=digest)) == digest


@pytest.mark.parametrize("first_byte", [65, 2**64 - 1])
def test_a_stream_cannot_go_on_beyond_what_came(first_byte: int) -> None:
    header, chunks, trailer = parts_of(DATA)
    reader = ChunkReader(header, max_bytes=100)
    reader.feed(chunks[0])
    reader.feed(chunks[1])
    with pytest.raises(StreamError, match="cannot go on there"):
        reader.resume(header, first_byte)
    assert b"".join(reader.feed(chunk) for chunk in chunks[2:]) == DATA[64:]
    reader.finish(trailer)


def test_a_stream_goes_on_in_chunks_of_the_sizes_that_were_right_at_its_beginning() -> None:
    header, chunks, _ = parts_of(DATA)
    reader = ChunkReader(header, max_bytes=100, chunk_bytes=upload_chunk_bytes(32))
    reader.feed(chunks[0])
    for size in (16, 64):
        with pytest.raises(StreamError, match=f"chunk_bytes is out of range: expected 32 to 32, got {size}"):
            reader.resume(StreamHeader(total_bytes=len(DATA), chunk_bytes=size), 32)
    assert (upload_chunk_bytes(1 << 18), upload_chunk_bytes(512)) == ((4096, 1 << 18), (512, 512))


def test_a_stream_of_another_length_cannot_go_on() -> None:
    header, chunks, _ = parts_of(DATA)
    reader = ChunkReader(header, max_bytes=100)
    reader.feed(chunks[0])
    with pytest.raises(StreamError, match="wrong size"):
        reader.resume(StreamHeader(total_bytes=len(DATA) - 1, chunk_bytes=8), 0)
