"""Codecs by name. A job says `codec: int8`, or names a preset and changes some of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Preset:
    """A codec that has a name.

    Args:
        settings: of the job's `codec`, by key.
        is_maskable: whether it works under masks.
        purpose: one line for people.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    is_maskable: bool = True
    purpose: str = ""


def _preset(purpose: str, *, is_maskable: bool = True, **settings: Setting) -> Preset:
    return Preset(MappingProxyType(settings), is_maskable, purpose)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "exact32": _preset("as fine as a ring of 32 bits allows", ring_bits=32),
        "int16": _preset("five eighths of the bytes of floats, no visible loss", bits=16),
        "int8": _preset("three eighths of the bytes of floats", bits=8, adaptive=True),
        "int8-rotated": _preset("for updates with a few large coordinates", bits=8, rotation=True, adaptive=True),
        "int4-rotated": _preset("a quarter of the bytes of floats", bits=4, rotation=True, adaptive=True),
        "sparse-10pct-int8": _preset(
            "a tenth of the coordinates each round, in blocks",
            bits=8,
            selection="blocks",
            density=0.1,
            rotation=True,
            feedback=0.5,
            adaptive=True,
        ),
        "sparse-1pct-int8": _preset(
            "a hundredth of the coordinates each round, of a rotated update",
            bits=8,
            selection="random",
            density=0.01,
            rotation=True,
            feedback=0.3,
            adaptive=True,
        ),
        "top-1pct-int8": _preset(
            "each site's own largest hundredth; plain only",
            is_maskable=False,
            bits=8,
            selection="top",
            density=0.01,
            feedback=0.9,
            adaptive=True,
        ),
        "one-bit": _preset(
            "a bit for each coordinate; plain only",
            is_maskable=False,
            bits=16,
            rotation=True,
            levels="sign",
            adaptive=True,
        ),
    }
)
"""Every codec that has a name."""
