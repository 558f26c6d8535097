"""The form of every benchmark: named figures, a baseline where there is a side-by-side, and facts of the machine."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from cli.machine import processor_name

PACKAGES = ("grpcio", "numpy", "numba", "cryptography")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Args:
        name: stable, listed in benchmarks/README.md.
        value: what was measured.
        unit: of value and baseline.
        baseline: what it is compared with, where there is a side-by-side.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None

    @property
    def ratio(self) -> float | None:
        """value / baseline."""
        return self.value / self.baseline if self.baseline else None

    def to_json(self) -> dict[str, object]:
        """The figure for `json.dumps`."""
        return {**{name: _short(value) for name, value in asdict(self).items()}, "ratio": _short(self.ratio)}


def machine_facts() -> dict[str, object]:
    """What somebody needs to know to compare figures; nothing that names the machine."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def _short(value: object) -> object:
    """Six significant digits are more than any measurement here has."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
