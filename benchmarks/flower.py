"""Flower's secure aggregation beside ours, in an interpreter of its own: its pins and ours do not fit together."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fl_core.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "benchmarks" / "flower_peer.py"
INTERPRETER = ROOT / ".venv-bench" / "bin" / "python"
VARIABLE = "TACIT_BENCH_PYTHON"


@dataclass(frozen=True, slots=True)
class Flower:
    """A running `flower_peer`."""

    process: "subprocess.Popen[str]" = field(repr=False)

    def seconds(self, task: str, **arguments: int) -> float:
        """CPU seconds of one run of one of Flower's functions; the names are those of `flower_peer.TASKS`.

        Raises:
            ConfigError: the program ended.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise ConfigError("Flower's program has no pipes")
        self.process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise ConfigError("Flower's program ended", fix=f"run {INTERPRETER} {PROGRAM} by hand")
        return float(json.loads(answer)["seconds"])


@contextmanager
def flower() -> Iterator[Flower | None]:
    """Flower for the time of the block, or None and a note on stderr where it is not installed."""
    interpreter = Path(os.environ.get(VARIABLE, INTERPRETER))
    if not interpreter.exists():
        sys.stderr.write("note: the rows of Flower are left out; `make bench-setup` installs it beside Tacit\n")
        yield None
        return
    command = [str(interpreter), str(PROGRAM)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield Flower(process)
        finally:
            process.terminate()
