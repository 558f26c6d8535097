"""Reads the Dockerfile, and rehearses its steps in a folder: `python -m tests.deploy.image [FOLDER]`.

The rehearsal makes the virtual environment of the image from nothing, as its RUN lines say, and runs its entry point.
It takes minutes and asks the package index for everything that the image holds.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDS_AN_IMAGE = ("groupadd",)
"""Commands that change the system itself, which a rehearsal must not."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the Dockerfile, continuation lines joined."""

    name: str
    words: str


def instructions() -> list[Instruction]:
    """The Dockerfile, without its comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def arguments_of(name: str) -> list[str]:
    """What every instruction of a name says, in order."""
    return [each.words for each in instructions() if each.name == name]


def copied_sources() -> Iterator[str]:
    """Files and folders that are copied from the repository into the image."""
    for words in arguments_of("COPY"):
        if not words.startswith("--from"):
            yield from shlex.split(words)[:-1]


def defaults() -> dict[str, str]:
    """Build arguments by name."""
    pairs = (words.partition("=") for words in arguments_of("ARG"))
    return {name: value for name, equals, value in pairs if equals}


class Rehearsal:
    """The image as a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._here = folder
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        self._environment = {**environment, **defaults()}

    def build(self) -> None:
        """Take every step.

        Raises:
            subprocess.CalledProcessError: one failed.
        """
        for instruction in instructions():
            match instruction.name:
                case "WORKDIR":
                    self._here = self._inside(instruction.words)
                    self._here.mkdir(parents=True, exist_ok=True)
                case "COPY" if not instruction.words.startswith("--from"):
                    self._copy(shlex.split(instruction.words))
                case "RUN" if not instruction.words.startswith(NEEDS_AN_IMAGE):
                    self._run(instruction.words)
                case "ENV":
                    self._set(instruction.words)

    def start(self, *arguments: str) -> str:
        """Run the entry point with arguments; gives what it prints."""
        entry = arguments_of("ENTRYPOINT")[-1]
        program, *fixed = words_of(entry)
        found = shutil.which(program, path=self._environment["PATH"])
        assert found is not None, f"{program} is not in the image"
        return self._output([found, *fixed, *arguments])

    def start_module(self, *arguments: str) -> str:
        """Run a module with the interpreter of the image; gives what it prints."""
        return self._output([str(self.folder / "opt/tacit/bin/python"), "-m", *arguments])

    def _output(self, command: list[str]) -> str:
        done = subprocess.run(
            command, env=self._environment, cwd=self._here, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def _inside(self, path: str) -> Path:
        return self.folder / path.lstrip("/") if path.startswith("/") else self._here / path

    def _copy(self, words: list[str]) -> None:
        *sources, target = words
        for source in sources:
            place = self._inside(target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, place)

    def _run(self, line: str) -> None:
        moved = re.sub(r"(?<![\w./])/(opt|src|pki|enrolment|var)(?=[/\s]|$)", rf"{self.folder}/\1", line)
        if os.geteuid() != 0:
            moved = moved.replace("-o 10001 -g 10001", "")
        sys.stdout.write(f"RUN {moved}\n")
        sys.stdout.flush()
        subprocess.run(["bash", "-euc", moved], env=self._environment, cwd=self._here, check=True)

    def _set(self, words: str) -> None:
        for pair in shlex.split(words):
            name, _, value = pair.partition("=")
            value = re.sub(r"(?<![\w.])/(opt|var)/", rf"{self.folder}/\1/", value)
            self._environment[name] = value.replace("$PATH", self._environment["PATH"])


def words_of(text: str) -> list[str]:
    """The words of an instruction in JSON form."""
    words: list[str] = json.loads(text)
    return words


def main(arguments: list[str]) -> int:
    """Rehearse the image in a folder, a temporary one when none is named."""
    with tempfile.TemporaryDirectory(prefix="tacit-image-") as temporary:
        rehearsal = Rehearsal(Path(arguments[0] if arguments else temporary).resolve())
        rehearsal.build()
        sys.stdout.write(rehearsal.start("version"))
        for service in ("coordinator", "aggregator", "keyserver"):
            rehearsal.start_module(f"services.{service}", "--help")
        sys.stdout.write(rehearsal.start("compose-demo", "init", "--out", str(rehearsal.folder / "pki")))
    sys.stdout.write("the image's steps work\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
