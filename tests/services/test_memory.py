"""What a service holds after a crowd has gone."""

import platform
import subprocess
import sys

import pytest

from services.runtime.memory import keep_memory, tune_memory

MIB = 1 << 20

# Blocks of 1.5 MiB, freed but for the last one, below which glibc by itself gives nothing back once it has seen a
# larger block go.
CROWD = """
from pathlib import Path
from services.runtime.memory import keep_memory, tune_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert {tuning}
larger = bytearray(2 << 20)
del larger
before = resident()
blocks = [bytes([1]) * (3 << 19) for _ in range(40)]
held = blocks[-1]
blocks.clear()
print(resident() - before)
"""


def _held_after_a_crowd(tuning: str) -> int:
    script = [sys.executable, "-c", CROWD.format(tuning=tuning)]
    return int(subprocess.run(script, capture_output=True, check=True, text=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_service_gives_the_memory_of_a_crowd_back() -> None:
    assert _held_after_a_crowd("tune_memory()") < 8 * MIB
    assert _held_after_a_crowd("True") > 40 * MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_process_that_is_there_for_speed_keeps_it() -> None:
    assert _held_after_a_crowd("keep_memory()") > 40 * MIB


def test_where_there_is_no_glibc_nothing_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.memory._glibc", lambda: None)

    assert not tune_memory()
    assert not keep_memory()
