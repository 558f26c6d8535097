"""Reads what a page says: its tables, its fenced blocks, its headings and its links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page: its headings and its rows, without the marks of code."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, heading: str) -> dict[str, str]:
        """A column by the first one."""
        place = self.headings.index(heading)
        return {row[0]: row[place] for row in self.rows}


def tables_of(page: str) -> list[Table]:
    """Every table of a page, in order."""
    found: list[Table] = []
    lines: list[list[str]] = []
    for line in [*_FENCE.sub("", page).splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
        elif lines:
            found.append(Table(tuple(lines[0]), tuple(tuple(row) for row in lines[2:])))
            lines = []
    return found


def table_of(page: str, first_heading: str) -> Table:
    """The table whose first column has this heading.

    Raises:
        AssertionError: there is none, or more than one.
    """
    (table,) = (table for table in tables_of(page) if table.headings[0] == first_heading)
    return table


def section_of(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one.

    Raises:
        AssertionError: there is no such heading.
    """
    parts = re.split(rf"^#+ {re.escape(heading)}$", page, maxsplit=1, flags=re.MULTILINE)
    assert len(parts) == 2, heading
    return re.split(r"^#+ ", parts[1], maxsplit=1, flags=re.MULTILINE)[0]


def yaml_blocks_of(page: str) -> list[str]:
    """The YAML blocks of a page."""
    return re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def links_of(page: str) -> list[str]:
    """Targets of all links and pictures, outside of code."""
    return _LINK.findall(_SPAN.sub("", _FENCE.sub("", page)))


def anchors_of(page: str) -> set[str]:
    """The names by which headings can be linked to, as GitHub makes them."""
    headings = (heading.replace("`", "").lower() for heading in _HEADING.findall(_FENCE.sub("", page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
