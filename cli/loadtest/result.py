"""What a load test found out: the figures of its JSON object."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from cli.loadtest.gauges import Usage
from cli.loadtest.metering import TrafficPhase
from cli.loadtest.options import LoadOptions
from cli.reports import is_committed
from cli.round_table import PHASE_TITLES
from fl_core.rounds.machine import RoundState
from fl_core.rounds.report import RoundReport

Bytes = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Message bytes by client_id, direction (up, down) and phase."""


@dataclass(frozen=True, slots=True)
class SettledRound:
    """One attempt that is over.

    Args:
        report: what the coordinator says.
        exact: the sum was the plain sum of what the survivors encoded; None when the attempt released none.
        traffic: what each site sent and received.
    """

    report: RoundReport
    exact: bool | None
    traffic: Bytes


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One run.

    Args:
        options: what was asked for.
        rounds: the attempts, in order.
        wall_seconds: from the submission of the job to the last report.
        before: of the services, by name, when the job was submitted; empty when they are not ours.
        after: the same at the end.
        site_cpu_seconds: of all sites together, meanwhile; None where the system does not say.
        detail: why the job ended early; empty otherwise.
    """

    options: LoadOptions
    rounds: Sequence[SettledRound]
    wall_seconds: float
    before: Mapping[str, Usage]
    after: Mapping[str, Usage]
    site_cpu_seconds: float | None = None
    detail: str = ""

    @property
    def committed(self) -> list[SettledRound]:
        """The rounds that made a new model."""
        return [settled for settled in self.rounds if is_committed(settled.report)]

    @property
    def round_seconds(self) -> list[float]:
        """Of each committed round, from the beginning of its attempt to its end."""
        return [settled.report.round_seconds for settled in self.committed]

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Median over the committed rounds, by phase."""
        reports = [settled.report for settled in self.committed]
        phases = [phase for phase in PHASE_TITLES if any(phase in report.phase_seconds for report in reports)]
        return {phase.value: median(_seconds_in(report, phase) for report in reports) for phase in phases}

    @property
    def aggregates_per_second(self) -> float:
        """Committed rounds by the time that all attempts took together."""
        return len(self.committed) / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def dropouts_by_reason(self) -> dict[str, int]:
        """In all attempts, as the coordinator counts them."""
        reasons = Counter(dropout.reason.value for settled in self.rounds for dropout in settled.report.dropouts)
        return dict(reasons.most_common())

    @property
    def aggregate_exact(self) -> bool | None:
        """Every aggregate was exact; None when there was none."""
        return all(settled.exact for settled in self.committed) if self.committed else None

    @property
    def server_cpu_seconds(self) -> dict[str, float]:
        """By service, while the job ran."""
        return {
            name: usage.cpu_seconds - self.before[name].cpu_seconds
            for name, usage in self.after.items()
            if name in self.before
        }

    @property
    def succeeded(self) -> bool:
        """Every round was committed, and every aggregate was exact."""
        return len(self.committed) == self.options.rounds and self.aggregate_exact is True

    def bytes_median(self, direction: str, phase: TrafficPhase | None = None) -> int:
        """Message bytes of one survivor in one committed round: the median over both.

        Args:
            direction: `up` or `down`.
            phase: one of them; all together when None.
        """
        counts = [
            sum(count for name, count in settled.traffic[client_id][direction].items() if phase in (None, name))
            for settled in self.committed
            for client_id in settled.report.survivors
            if client_id in settled.traffic
        ]
        return round(median(counts)) if counts else 0

    def to_json(self) -> dict[str, object]:
        """The object that `tacit loadtest --json` prints."""
        seconds = self.round_seconds
        options = self.options
        return {
            "sites": options.sites,
            "parameters": options.parameters,
            "rounds": options.rounds,
            "codec": options.codec,
            "ring_bits": options.codec_spec.ring_bits,
            "aggregation": options.aggregation.value,
            "dropout": options.dropout,
            "processes": options.processes,
            "seed": options.seed,
            "rate_limit_mbit": options.shaping.rate_mbit,
            "latency_ms": options.shaping.latency_ms,
            "round_seconds_median": round(median(seconds), 4) if seconds else None,
            "round_seconds_p95": round(percentile(seconds, 0.95), 4) if seconds else None,
            "round_seconds": [round(value, 4) for value in seconds],
            "phase_seconds": {name: round(value, 4) for name, value in self.phase_seconds.items()},
            "aggregates_per_second": round(self.aggregates_per_second, 4),
            "bytes_up_per_site_median": self.bytes_median("up"),
            "bytes_down_per_site_median": self.bytes_median("down"),
            "bytes_up_by_phase": {phase.value: self.bytes_median("up", phase) for phase in TrafficPhase},
            "bytes_down_by_phase": {phase.value: self.bytes_median("down", phase) for phase in TrafficPhase},
            "committed_rounds": len(self.committed),
            "dropouts_by_reason": self.dropouts_by_reason,
            "server_cpu_seconds": {name: round(value, 2) for name, value in self.server_cpu_seconds.items()},
            "site_cpu_seconds": None if self.site_cpu_seconds is None else round(self.site_cpu_seconds, 2),
            "server_peak_rss_bytes": {name: usage.peak_rss_bytes for name, usage in self.after.items()},
            "server_start_rss_bytes": {name: usage.peak_rss_bytes for name, usage in self.before.items()},
            "aggregate_exact": self.aggregate_exact,
            "detail": self.detail,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _seconds_in(report: RoundReport, phase: RoundState) -> float:
    return report.phase_seconds.get(phase, 0.0)
