"""docs/codecs.md says every preset, and the bytes that the code gives."""

import pytest
from pages import DOCS, table_of

from fl_core.codec.packing import packed_bytes
from fl_core.codec.plain_payload import largest_payload
from fl_core.codec.presets import PRESETS
from fl_core.rounds.job import JobSpec, read_codec
from fl_core.rounds.planner import choose_codec

TABLE = table_of((DOCS / "codecs.md").read_text(), "preset")
SIZE = 1_000_000


def test_every_preset_stands_in_the_table_and_no_other() -> None:
    assert [row[0] for row in TABLE.rows] == list(PRESETS)
    for name, preset in PRESETS.items():
        assert TABLE.column("for")[name] == preset.purpose
        assert (TABLE.column("under masks")[name] == "yes") == preset.is_maskable


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sites", [10, 100])
def test_the_bytes_are_those_of_the_code(name: str, sites: int) -> None:
    max_weight = JobSpec("x", 1).max_weight
    codec = choose_codec(read_codec(name), sites, 1.0)
    masked = packed_bytes(codec.length(SIZE, max_weight), codec.ring_bits)
    expected = masked if PRESETS[name].is_maskable else largest_payload(codec, SIZE, max_weight)
    assert int(TABLE.column(f"{sites} sites")[name].replace(",", "")) == expected
