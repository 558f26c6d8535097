"""The download of a model: whole, or as a difference to what is here, which the digest proves or the whole replaces."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client_sdk.download import ModelDownload, ModelReference
from fl_core.codec.lossy_difference import DifferenceWriter
from fl_core.codec.model_difference import encode_difference
from fl_core.codec.tensors import Tensors, manifest_of
from fl_core.errors import PeerLost, StreamError
from fl_core.transport.retry import retry
from fl_core.wire.chunks import SMALLEST_CHUNK_BYTES, ChunkWriter, model_digest, model_digest_of, tensor_bytes
from fl_core.wire.convert import manifest_to_proto
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.going_on import rest_of

FIRST: Tensors = {"w": np.arange(1000, dtype=np.float32), "n": np.array([7], np.int64)}
SECOND: Tensors = {"w": np.arange(1000, dtype=np.float32) + np.float32(0.5), "n": np.array([8], np.int64)}
MANIFEST = manifest_of(FIRST)
DRAW = np.random.default_rng(1)


def bytes_of(tensors: Tensors) -> bytes:
    return b"".join(tensor_bytes(tensors, MANIFEST))


class Call:
    def __init__(self, parts: list[pb.GetParametersResponse]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[pb.GetParametersResponse]:
        for part in self._parts:
            yield part

    def cancel(self) -> None:
        pass


class Coordinator:
    """Answers with the difference when it is asked for one, and counts what it sent."""

    def __init__(self, spoil: str = "") -> None:
        self.spoil = spoil
        self.sent: list[str] = []

    def GetParameters(self, request: pb.GetParametersRequest, timeout: float) -> Any:  # noqa: N802
        tensors = SECOND if request.model_version == 2 else FIRST
        base = b""
        content = bytes_of(tensors)
        if request.accepts_difference and request.have_digest == model_digest(FIRST, MANIFEST):
            base = bytes(32) if self.spoil == "base" else request.have_digest
            before = bytes_of(SECOND if self.spoil == "content" else FIRST)
            content = encode_difference(content, before, MANIFEST)
            content = b"nonsense" if self.spoil == "code" else content
        self.sent.append("difference" if base else "whole")
        writer = ChunkWriter(content)
        header = pb.ModelHeader(
            job_id="j",
            model_version=request.model_version,
            manifest=manifest_to_proto(MANIFEST),
            stream=writer.header,
            base_digest=base,
        )
        chunks = [pb.GetParametersResponse(chunk=chunk) for chunk in writer.chunks()]
        return Call(
            [pb.GetParametersResponse(header=header), *chunks, pb.GetParametersResponse(trailer=writer.trailer)]
        )


def reference(version: int) -> ModelReference:
    tensors = SECOND if version == 2 else FIRST
    return ModelReference("j", version, model_digest(tensors, MANIFEST), MANIFEST)


@pytest.mark.parametrize("spoil", ["", "base", "code", "content"])
async def test_the_next_version_comes_as_a_difference_or_whole_when_that_is_wrong(spoil: str) -> None:
    coordinator, download = Coordinator(spoil), ModelDownload()
    first = await download.get(coordinator, reference(1), 5.0)  # type: ignore[arg-type]
    assert bytes_of(first.tensors) == bytes_of(FIRST)
    second = await download.get(coordinator, reference(2), 5.0)  # type: ignore[arg-type]
    assert bytes_of(second.tensors) == bytes_of(SECOND)
    assert coordinator.sent == (["whole", "difference", "whole"] if spoil else ["whole", "difference"])


async def test_a_site_that_has_nothing_gets_the_whole_model() -> None:
    coordinator = Coordinator()
    await ModelDownload().get(coordinator, reference(2), 5.0)  # type: ignore[arg-type]
    assert coordinator.sent == ["whole"]


async def test_a_whole_model_of_another_digest_is_refused() -> None:
    wrong = ModelReference("j", 2, bytes(32), MANIFEST)
    with pytest.raises(StreamError, match="not the one that was announced"):
        await ModelDownload().get(Coordinator(), wrong, 5.0)  # type: ignore[arg-type]


class LossyCoordinator:
    """Sends version 3 to a site with version 1 as the two differences that made it, spoilt or not."""

    def __init__(self, spoil: str = "") -> None:
        self.spoil = spoil
        self.sent: list[str] = []
        self.versions = [bytes_of(FIRST)]
        self.codes: list[bytes] = []
        for step in (1, 2):
            writer = DifferenceWriter(8)
            before = np.frombuffer(self.versions[-1], np.float32, 1000)
            made = writer.round(before, before + DRAW.standard_normal(1000).astype(np.float32))
            counts = np.array([7 + step], np.int64).tobytes()
            writer.copy(self.versions[-1][4000:], counts)
            self.versions.append(made.tobytes() + counts)
            self.codes.append(writer.finish())

    def reference(self, version: int) -> ModelReference:
        digest = model_digest_of(MANIFEST, hashlib.sha256(self.versions[version - 1]).digest())
        return ModelReference("j", version, digest, MANIFEST)

    def GetParameters(self, request: pb.GetParametersRequest, timeout: float) -> Any:  # noqa: N802
        base, steps, content = b"", [], self.versions[request.model_version - 1]
        if request.accepts_difference and request.model_version == 3:
            base, codes = request.have_digest, list(self.codes)
            match self.spoil:
                case "truncated":
                    codes[1] = codes[1][:-1]
                case "padded":
                    codes[1] += b"\0"
                case "order":
                    codes.reverse()
                case "missing":
                    codes.pop()
                case "many":
                    codes = codes[:1] * 9
            steps, content = [len(code) for code in codes], b"".join(codes)
            steps = [*steps, 1] if self.spoil == "lengths" else steps
        self.sent.append("difference" if base else "whole")
        writer = ChunkWriter(content)
        header = pb.ModelHeader(
            job_id="j",
            model_version=request.model_version,
            manifest=manifest_to_proto(MANIFEST),
            stream=writer.header,
            base_digest=base,
            step_bytes=steps,
        )
        chunks = [pb.GetParametersResponse(chunk=chunk) for chunk in writer.chunks()]
        return Call(
            [pb.GetParametersResponse(header=header), *chunks, pb.GetParametersResponse(trailer=writer.trailer)]
        )


@pytest.mark.parametrize("spoil", ["", "truncated", "padded", "order", "missing", "many", "lengths"])
async def test_the_differences_of_missed_versions_make_the_model_or_it_comes_whole(spoil: str) -> None:
    coordinator, download = LossyCoordinator(spoil), ModelDownload()
    await download.get(coordinator, coordinator.reference(1), 5.0)  # type: ignore[arg-type]
    third = await download.get(coordinator, coordinator.reference(3), 5.0)  # type: ignore[arg-type]
    assert bytes_of(third.tensors) == coordinator.versions[2]
    assert coordinator.sent == (["whole", "difference", "whole"] if spoil else ["whole", "difference"])


class BreakingCoordinator(Coordinator):
    """Each stream breaks after `pieces` chunks of 4 KiB or less, and the next one goes on as it is asked to."""

    def __init__(self, pieces: int, spoil: str = "") -> None:
        super().__init__(spoil)
        self.pieces = pieces
        self.first_bytes: list[int] = []
        self.passed_bytes = 0
        self.changes_mind = False

    def GetParameters(self, request: pb.GetParametersRequest, timeout: float) -> Any:  # noqa: N802
        if self.changes_mind:
            request.accepts_difference = not request.accepts_difference
        whole = super().GetParameters(request, timeout)
        self.first_bytes.append(request.first_byte)
        return BreakingCall(self, rest_of(whole.__aiter__(), request.first_byte, SMALLEST_CHUNK_BYTES))


class BreakingCall:
    def __init__(self, coordinator: BreakingCoordinator, parts: AsyncIterator[pb.GetParametersResponse]) -> None:
        self._coordinator = coordinator
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[pb.GetParametersResponse]:
        left = self._coordinator.pieces
        async for part in self._parts:
            if part.WhichOneof("part") != "header":
                if not left:
                    raise PeerLost("the connection broke")
                left -= 1
                self._coordinator.passed_bytes += len(part.chunk.data)
            yield part

    def cancel(self) -> None:
        pass


LONG: Tensors = {"w": DRAW.standard_normal(9000).astype(np.float32)}
LONG_AFTER: Tensors = {"w": DRAW.standard_normal(9000).astype(np.float32)}


@pytest.fixture
def long_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FIRST", LONG), ("SECOND", LONG_AFTER), ("MANIFEST", manifest_of(LONG))):
        monkeypatch.setattr(sys.modules[__name__], name, value)


async def until_it_is_here(download: ModelDownload, coordinator: Any, wanted: ModelReference) -> Tensors:
    model = await retry(
        lambda: download.get(coordinator, wanted, 5.0), deadline_s=20.0, sleep=lambda _: asyncio.sleep(0)
    )
    return model.tensors


@pytest.mark.usefixtures("long_models")
@pytest.mark.parametrize("version", [1, 2])
async def test_a_download_that_breaks_goes_on_from_the_byte_that_arrived(version: int) -> None:
    download = ModelDownload()
    if version == 2:
        await download.get(Coordinator(), reference(1), 5.0)  # type: ignore[arg-type]
    coordinator = BreakingCoordinator(pieces=2)
    tensors = await until_it_is_here(download, coordinator, reference(version))
    assert bytes_of(tensors) == bytes_of(SECOND if version == 2 else FIRST)
    assert coordinator.sent == ["difference" if version == 2 else "whole"] * len(coordinator.sent)
    assert coordinator.first_bytes == [
        2 * SMALLEST_CHUNK_BYTES * number for number in range(len(coordinator.first_bytes))
    ]
    # No byte came twice.
    assert len(coordinator.first_bytes) >= 4
    assert coordinator.passed_bytes <= 36_000


@pytest.mark.usefixtures("long_models")
async def test_the_rest_of_another_model_is_refused_and_the_next_try_begins_anew() -> None:
    coordinator, download = BreakingCoordinator(pieces=2), ModelDownload()
    with pytest.raises(PeerLost):
        await download.get(coordinator, reference(1), 5.0)  # type: ignore[arg-type]
    coordinator.pieces = 100
    lying: Any = lambda request, timeout: BreakingCoordinator.GetParameters(  # noqa: E731
        coordinator, pb.GetParametersRequest(job_id="j", model_version=1, first_byte=request.first_byte - 4), timeout
    )
    with pytest.raises(StreamError):
        await download.get(SimpleNamespace(GetParameters=lying), reference(1), 5.0)  # type: ignore[arg-type]
    assert bytes_of((await download.get(coordinator, reference(1), 5.0)).tensors) == bytes_of(FIRST)  # type: ignore[arg-type]
    assert coordinator.first_bytes[-1] == 0


@pytest.mark.usefixtures("long_models")
async def test_a_coordinator_that_sends_another_kind_of_stream_makes_the_site_begin_anew() -> None:
    coordinator, download = BreakingCoordinator(pieces=2), ModelDownload()
    await download.get(Coordinator(), reference(1), 5.0)  # type: ignore[arg-type]
    with pytest.raises(PeerLost):
        await download.get(coordinator, reference(2), 5.0)  # type: ignore[arg-type]
    coordinator.pieces, coordinator.changes_mind = 100, True
    tensors = await until_it_is_here(download, coordinator, reference(2))
    assert bytes_of(tensors) == bytes_of(SECOND)
    assert coordinator.first_bytes[-1] == 0
    assert coordinator.sent == ["difference", "whole", "whole"]
