"""What a run of the demo found out: the figures of its JSON object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cli.reports import is_committed
from cli.round_table import PHASE_TITLES
from fl_core.rounds.report import RoundReport


@dataclass(frozen=True, slots=True)
class DemoResult:
    """One run.

    Args:
        workdir: what the run left.
        sites: how many processes took part.
        killed: who was killed, and where.
        rounds: the attempts, in order, ended ones.
        planned_rounds: how many rounds were asked for.
        accuracy_by_version: on held-out digits; version 1 is the initial model.
        accuracy_centralised: the same model, data and epochs in one place, after each round's share of epochs.
        aggregate_exact: each aggregate was the plain sum of its survivors' updates; None when nothing was recorded.
        aggregation_seconds: of each committed round, what is left without the time in which some site trained.
        detail: why the job ended early; empty otherwise.
        privacy: the privacy report of a private job, see docs/privacy.md.
    """

    workdir: Path
    sites: int
    killed: Mapping[str, str]
    rounds: Sequence[RoundReport]
    planned_rounds: int
    accuracy_by_version: Mapping[int, float]
    accuracy_centralised: Sequence[float]
    aggregate_exact: bool | None
    aggregation_seconds: Sequence[float]
    detail: str = ""
    privacy: Mapping[str, object] | None = None

    @property
    def committed(self) -> list[RoundReport]:
        """The rounds that made a new model."""
        return [report for report in self.rounds if is_committed(report)]

    @property
    def accuracy_federated(self) -> list[float]:
        """On held-out digits, after each committed round."""
        return [self.accuracy_by_version[report.model_version] for report in self.committed]

    @property
    def bytes_up_per_site(self) -> int:
        """The most that one site sent in one round."""
        return max((count for report in self.committed for count in report.bytes_up.values()), default=0)

    @property
    def bytes_down_per_site(self) -> int:
        """The most that one site received in one round."""
        return max((count for report in self.committed for count in report.bytes_down.values()), default=0)

    @property
    def succeeded(self) -> bool:
        """Every round was committed, and no aggregate was wrong."""
        return len(self.committed) == self.planned_rounds and self.aggregate_exact is not False

    def to_json(self) -> dict[str, object]:
        """The object that `tacit demo --json` ends with."""
        federated = self.accuracy_federated
        return {
            "rounds": self.planned_rounds,
            "sites": self.sites,
            "killed": len(self.killed),
            "committed_rounds": len(self.committed),
            "accuracy_federated": federated[-1] if federated else None,
            "accuracy_centralised": self.accuracy_centralised[-1] if self.accuracy_centralised else None,
            "aggregate_exact": self.aggregate_exact,
            "round_seconds": [round(report.round_seconds, 3) for report in self.committed],
            "bytes_up_per_site": self.bytes_up_per_site,
            "bytes_down_per_site": self.bytes_down_per_site,
            "phase_seconds": self._mean_phase_seconds(),
            "aggregation_seconds": [round(seconds, 3) for seconds in self.aggregation_seconds],
            **self._privacy_figures(),
        }

    def _privacy_figures(self) -> dict[str, object]:
        if self.privacy is None:
            return {}
        return {"privacy": {name: self.privacy[name] for name in ("mechanism", "unit_of_privacy", "budget", "spent")}}

    def _mean_phase_seconds(self) -> dict[str, float]:
        phases = [phase for phase in PHASE_TITLES if any(phase in report.phase_seconds for report in self.committed)]
        return {
            phase.value: round(fmean(report.phase_seconds.get(phase, 0.0) for report in self.committed), 3)
            for phase in phases
        }
