"""Children of a command end with it, also when it has no time to stop them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cli.processes import ChildProcess, stop_all

PARENT = """
import sys, time
from pathlib import Path
from cli.processes import ChildProcess
child = ChildProcess.start("child", [sys.executable, "-c", "import time; time.sleep(60)"], Path(sys.argv[1]))
print(child.popen.pid, flush=True)
time.sleep(60)
"""


def until_gone(pid: int) -> bool:
    """Whether a process ends within a while; one that nobody has collected has ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="a parent-death signal is Linux's")
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.Process(child).is_running()
        parent.kill()
    assert until_gone(child)


def test_a_child_keeps_its_own_process_id_and_arguments(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getpid(), *sys.argv[1:], flush=True)"
    child = ChildProcess.start("child", [sys.executable, "-c", program, "one two"], tmp_path / "log", piped=True)
    assert child.popen.stdout is not None
    assert child.popen.stdout.readline().split() == [str(child.popen.pid), "one", "two"]
    stop_all([child])


@pytest.mark.skipif(sys.platform != "linux", reason="a parent-death signal is Linux's")
def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    stranger = os.getppid()
    command = [sys.executable, "-I", "-S", "cli/tether.py", str(stranger), sys.executable, "-c", "print('ran')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "")


def test_stop_kills_a_child_that_does_not_listen(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    child = ChildProcess.start("child", [sys.executable, "-c", deaf], tmp_path / "log", piped=True)
    assert child.popen.stdout is not None
    child.popen.stdout.readline()
    stop_all([child], grace_s=0.1)
    assert child.popen.returncode == -signal.SIGKILL
