"""How a vector is cut into blocks that are rotated: sizes only."""

from fl_core.errors import CodecError

HAND = 16
"""Coordinates that are dealt to a block together: a cache line of float32."""

LARGEST_BLOCK = 1 << 16
"""Coordinates that are rotated together: 256 KiB, which the second-level cache holds."""

PADDING = 32
"""At most one coordinate of so many is padding, where a block of more than sixteen is used."""


def rotation_block(length: int) -> int:
    """Coordinates of a block: the largest power of two, 16 to 2**16, that pads a vector of `length` by 1/32 at most.

    Raises:
        CodecError: the length is negative.
    """
    if length < 0:
        raise CodecError("a vector has an impossible length", expected=">= 0", got=length)
    block = LARGEST_BLOCK
    while block > HAND and -length % block > length // PADDING:
        block //= 2
    return block


def padded_length(length: int) -> int:
    """Coordinates of a rotated vector of `length` coordinates.

    Raises:
        CodecError: the length is negative.
    """
    return length + -length % rotation_block(length)
