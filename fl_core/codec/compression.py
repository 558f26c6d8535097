"""zstd for models: one frame that says its size, so that nothing from the network can swell."""

import zstandard

from fl_core.codec.packing import Buffer
from fl_core.errors import CodecError

ZSTD_LEVEL = 1


def compress(content: bytes) -> bytes:
    """One frame with the size of its content."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)


def decompress(code: Buffer, expected: int) -> bytes:
    """Read a frame of which the size is known.

    Args:
        code: one frame.
        expected: bytes that it must hold.

    Raises:
        CodecError: it is damaged, truncated or padded, or says another size.
    """
    try:
        size = zstandard.get_frame_parameters(bytes(code)).content_size
        if size != expected:
            raise CodecError("a difference has the wrong size", expected=f"{expected} bytes", got=size)
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        content = reader.decompress(bytes(code))
    except zstandard.ZstdError as error:
        raise CodecError("a difference cannot be read", expected="one zstd frame") from error
    if len(content) != expected or not reader.eof or reader.unused_data:
        raise CodecError("a difference is truncated or padded", expected=f"{expected} bytes", got=len(content))
    return content
