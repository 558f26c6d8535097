"""Start a program that ends when its parent does: `python -I -S cli/tether.py PARENT_PID PROGRAM [ARGUMENT ...]`.

Linux sends SIGTERM to the program when the thread that started it is gone, also after a SIGKILL, which leaves a parent
no time to stop anything itself. The request survives the exec, so there is no process in between. Run by path and
without site packages, because it stands before every start of a child.

Source: prctl(2), PR_SET_PDEATHSIG.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Bind this process to its parent and become the program."""
    parent, program = int(arguments[0]), arguments[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # The parent may have ended before the request: then nobody would ever send the signal.
    if os.getppid() != parent:
        raise SystemExit(0)
    os.execvp(program[0], program)  # noqa: S606 - our own programs, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
