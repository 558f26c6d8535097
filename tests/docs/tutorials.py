"""Reads the blocks of a tutorial and does what they say: files are written, commands run in terminals.

A block is fenced by three backticks. `bash` blocks run one after another in one shell, as a reader would paste them;
`bash terminal=NAME until=TEXT` runs in a terminal of its own, and the tutorial goes on once TEXT appears there.
`python` and `yaml` blocks are files, named by their first line (`# path`). `sh` and `text` blocks are for readers.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# ([\w./-]+)\n")
_DONE = "tutorial-block-done"
FILES = ("python", "yaml")
FOR_READERS = ("sh", "text")
STOP_S = 10.0
POLL_S = 0.2


class TutorialFailed(AssertionError):
    """A block did not do what the page says."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Args:
        language: after the fence.
        options: `name=value` after the language.
        text: what stands inside.
    """

    language: str
    options: dict[str, str]
    text: str


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        TutorialFailed: a block is of a kind that is neither run nor for readers.
    """
    blocks = []
    for language, options, text in _BLOCK.findall(page):
        if language not in ("bash", *FILES, *FOR_READERS):
            raise TutorialFailed(f"a block of language {language!r} is neither run nor for readers")
        blocks.append(Block(language, dict(option.split("=", 1) for option in options.split()), text))
    return blocks


def run_tutorial(page: str, folder: Path, *, timeout_s: float) -> None:
    """Do what a page says, in `folder`. Everything that it started has ended afterwards.

    Raises:
        TutorialFailed: a command fails, a terminal does not say what it should, or time runs out.
    """
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        shell = stack.enter_context(Terminal.open("shell", folder))
        for block in blocks_of(page):
            if block.language in FILES:
                write_file(block, folder)
            elif "terminal" in block.options:
                terminal = stack.enter_context(Terminal.open(block.options["terminal"], folder))
                terminal.send(block.text)
                terminal.wait_for(block.options["until"], deadline)
            elif block.language == "bash":
                shell.run(block.text, deadline)


def write_file(block: Block, folder: Path) -> None:
    """Write a block into the file that its first line names.

    Raises:
        TutorialFailed: the first line names none.
    """
    name = _FILE_NAME.match(block.text)
    if name is None:
        raise TutorialFailed(f"a {block.language} block names no file: {block.text.splitlines()[0]!r}")
    (folder / name[1]).write_text(block.text)


@dataclass(slots=True)
class Terminal:
    """A shell that stops at the first command that fails. Made by `Terminal.open`."""

    name: str
    folder: Path
    process: "subprocess.Popen[str]"
    lines: "queue.Queue[str]" = field(default_factory=queue.Queue)
    said: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls, name: str, folder: Path) -> "Iterator[Terminal]":
        """A shell in `folder` while the block runs; then it and all that it started are ended."""
        bin_folder = Path(sys.executable).parent
        process = subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail"],
            cwd=folder,
            env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        terminal = cls(name, folder, process)
        reader = threading.Thread(target=terminal._read, daemon=True)
        reader.start()
        try:
            yield terminal
        finally:
            terminal._end()
            reader.join(STOP_S)

    def send(self, commands: str) -> None:
        """Type commands. They get no input of their own."""
        assert self.process.stdin is not None
        # A shell that ended because a command failed is noticed by whoever waits for its words.
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{{\n{commands}\n}} </dev/null\n")
            self.process.stdin.flush()

    def run(self, commands: str, deadline: float) -> None:
        """Type commands and wait until they are done.

        Raises:
            TutorialFailed: one fails, or time runs out.
        """
        self.send(commands)
        self.send(f"echo {_DONE}")
        self.wait_for(_DONE, deadline)

    def wait_for(self, text: str, deadline: float) -> None:
        """Read on until a line holds `text`.

        Raises:
            TutorialFailed: the shell ends before, or time runs out.
        """
        while time.monotonic() < deadline:
            # What runs in the background keeps the pipe open when the shell has ended.
            has_ended = self.process.poll() is not None
            try:
                self.said.append(self.lines.get(timeout=POLL_S))
            except queue.Empty:
                if has_ended:
                    raise self._failed(f"ended before {text!r}") from None
                continue
            if text in self.said[-1]:
                return
        raise self._failed(f"is not at {text!r} in time")

    def _failed(self, what: str) -> TutorialFailed:
        parts = [f"terminal {self.name} {what}; it said:", "".join(self.said[-30:])]
        # What runs in the background says there why it ended.
        for log in sorted(self.folder.glob("*.log")):
            parts += [f"{log.name} ends with:", log.read_text()[-600:]]
        return TutorialFailed("\n".join(parts))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self._await_group(STOP_S if number == signal.SIGTERM else 0.0)
            except ProcessLookupError:
                break
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def _await_group(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.process.poll()
            os.killpg(self.process.pid, 0)
            time.sleep(0.05)
