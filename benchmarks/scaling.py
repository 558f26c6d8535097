"""What one site and one parameter cost each service, and what a crowd of sites needs by calculation from that.

A session has a fixed size, however many sites a round has, so that the work of a round is that of its sessions added
up. Two models in one session of that size give the cost of a site and that of a site's parameter; the load test takes
the figures over real mTLS, from processes of their own.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure
from cli.loadtest.federation import local_federation
from cli.loadtest.options import LoadOptions
from cli.loadtest.result import LoadResult
from cli.loadtest.run import run_load_test
from fl_core.errors import BadAggregate

SERVICES = ("coordinator", "aggregator", "keyserver")
SESSION = 100
ROUNDS = 2
SMALL, LARGE = 10_000, 500_000
CROWDS = (1_000, 100_000, 1_000_000)
MODEL = 587_392
"""Parameters of the model in the calculation: the one of the load test's own figures."""
ROUND_S = 600.0
"""Seconds that a round of the calculation may take the services, beside training."""

MILLION = 1e6
GIGABIT = 1e9


@dataclass(frozen=True, slots=True)
class Cost:
    """What one site costs in one round.

    Args:
        fixed: whatever the model, in some unit.
        each: for each parameter, in the same unit.
    """

    fixed: float
    each: float

    @classmethod
    def through(cls, small: float, large: float, *, at: tuple[int, int]) -> "Cost":
        """The line through two measurements; noise makes neither part negative.

        Args:
            small: measured with `at[0]` parameters.
            large: measured with `at[1]` parameters.
            at: parameters of the two models, the smaller one first.
        """
        each = max(0.0, (large - small) / (at[1] - at[0]))
        return cls(max(0.0, small - each * at[0]), each)

    def of(self, parameters: int) -> float:
        """One site's cost with a model of so many parameters."""
        return self.fixed + self.each * parameters


def measure(*, quick: bool) -> list[Figure]:
    """The figures; `quick` takes a small session and two small models."""
    session, small, large = (6, 1_000, 20_000) if quick else (SESSION, SMALL, LARGE)
    rounds = 1 if quick else ROUNDS
    few = _run(max(3, session // 5), small, rounds)
    runs = [_run(session, parameters, rounds) for parameters in (small, large)]
    at = (small, large)
    cpu = {name: Cost.through(*(_cpu_per_site(run, name) for run in runs), at=at) for name in SERVICES}
    traffic = {way: Cost.through(*(float(run.bytes_median(way)) for run in runs), at=at) for way in ("up", "down")}
    memory = _memory_per_site(few, runs[0])
    return [*_costs(cpu, traffic, memory), *_needs(cpu, traffic, memory)]


def _run(sites: int, parameters: int, rounds: int) -> LoadResult:
    with tempfile.TemporaryDirectory(prefix="tacit-scaling-") as folder:
        workdir = Path(folder)
        options = LoadOptions(workdir=workdir, sites=sites, parameters=parameters, rounds=rounds, codec="int16")
        result = run_load_test(options, local_federation(workdir))
    if not result.succeeded:
        raise BadAggregate("a benchmark round was not committed exactly", got=result.detail or "an attempt that failed")
    return result


def _cpu_per_site(run: LoadResult, service: str) -> float:
    return run.server_cpu_seconds[service] / (run.options.rounds * run.options.sites)


def _memory_per_site(few: LoadResult, many: LoadResult) -> float:
    """Bytes of the coordinator for one more site that is connected and waits."""
    grown = many.before["coordinator"].peak_rss_bytes - few.before["coordinator"].peak_rss_bytes
    return max(1.0, grown / (many.options.sites - few.options.sites))


def _costs(cpu: Mapping[str, Cost], traffic: Mapping[str, Cost], memory: float) -> list[Figure]:
    figures = []
    for name, cost in cpu.items():
        figures.append(Figure(f"{name}_cpu_per_site", max(cost.fixed, 1e-9), "s"))
        figures.append(Figure(f"{name}_cpu_per_site_and_million_parameters", max(cost.each * MILLION, 1e-9), "s"))
    for way, cost in traffic.items():
        figures.append(Figure(f"bytes_{way}_per_site", max(cost.fixed, 1e-9), "bytes"))
        figures.append(Figure(f"bytes_{way}_per_site_and_parameter", cost.each, "bytes"))
    return [*figures, Figure("coordinator_memory_per_site", memory, "bytes")]


def _needs(cpu: Mapping[str, Cost], traffic: Mapping[str, Cost], memory: float) -> list[Figure]:
    """Cores and lines for a round of a crowd in `ROUND_S` seconds, with the model of `MODEL` parameters."""
    figures = []
    for crowd in CROWDS:
        for name, cost in cpu.items():
            cores = crowd * cost.of(MODEL) / ROUND_S
            figures.append(Figure(f"{name}_cores_for_{crowd}_sites", max(cores, 1e-9), "cores"))
        for way, cost in traffic.items():
            gigabits = 8 * crowd * cost.of(MODEL) / ROUND_S / GIGABIT
            figures.append(Figure(f"gigabit_{way}_for_{crowd}_sites", gigabits, "Gbit/s"))
        figures.append(Figure(f"coordinator_memory_for_{crowd}_sites", crowd * memory, "bytes"))
    return figures
