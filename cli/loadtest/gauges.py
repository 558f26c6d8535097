"""What the services cost the machine: CPU seconds and peak memory, as the kernel counts them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, since it began.

    Args:
        cpu_seconds: user and system time of all its threads.
        peak_rss_bytes: most memory that it ever had in use.
    """

    cpu_seconds: float
    peak_rss_bytes: int


def usage_of(pid: int) -> Usage | None:
    """What a process has used; None where the system does not say, or when the process is gone."""
    try:
        # The name of the program is in parentheses and may hold spaces.
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return Usage((int(numbers[11]) + int(numbers[12])) / _TICKS_PER_S, peak * _KIB)


def usages_of(pids: Mapping[str, int]) -> dict[str, Usage]:
    """As `usage_of`, by name; those of whom nothing is known are left out."""
    found = {name: usage_of(pid) for name, pid in pids.items()}
    return {name: usage for name, usage in found.items() if usage is not None}
