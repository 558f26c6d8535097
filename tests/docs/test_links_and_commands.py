"""Every relative link of a Markdown file leads somewhere, and every `tacit` command that one shows exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer.main
from pages import ROOT, anchors_of, links_of

from cli.main import app

PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
SHELL = re.compile(r"^```(?:bash|sh)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:^|[ (=])(tacit [a-z][^;&|>)]*)")


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file or to no heading."""
    broken = []
    for link in links_of(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (page.parent / place) if place else page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    return broken


def commands_of(text: str) -> Iterator[str]:
    """The `tacit` commands in the shell blocks and code spans of a page."""
    lines = [line for block in SHELL.findall(text) for line in block.splitlines()]
    spans = SPAN.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in [*lines, *(span for span in spans if span.startswith("tacit "))]:
        yield from COMMAND.findall(line)


def check_command(line: str) -> None:
    """Check that a command and its options exist.

    Raises:
        AssertionError: one does not.
    """
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        for name in words.pop(0).split("|"):
            found = command.commands.get(name)
            assert found is not None, f"there is no command {name!r} in {line!r}"
        command = found
    options = {name for entry in command.params for name in (*entry.opts, *entry.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word in {*options, "--help"}, f"there is no option {word!r} in {line!r}"


def test_there_are_pages() -> None:
    assert {"README.md", "CHANGELOG.md", "docs/quickstart.md", "docs/operations.md", "docs/jobs.md"} <= set(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    for line in commands_of(page.read_text()):
        check_command(line)


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A `heading`, here\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#a-heading-here) [b](gone.md) ![c](there.md#no-such) [d](https://x.org) `[e](x.md)`\n")
    assert broken_links(page) == ["gone.md", "there.md#no-such"]


@pytest.mark.parametrize("line", ["tacit fly", "tacit pki shwo", "tacit train JOB.yaml --jsn", "tacit db upgrade -x"])
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    (found,) = commands_of(f"Then `{line}`.")
    with pytest.raises(AssertionError, match="there is no"):
        check_command(found)
