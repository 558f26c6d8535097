"""A job as it is seen by somebody who follows it: its attempts in order, and where it stands."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from cli.operator import Operator
from cli.reports import JobSummary, report_to_json
from cli.round_table import round_table
from fl_core.rounds.report import RoundReport

COMPLETED = "completed"


@dataclass(slots=True)
class JobHistory:
    """What was heard of a job so far."""

    job_id: str
    summary: JobSummary | None = None
    _reports: dict[tuple[int, int], RoundReport] = field(default_factory=dict)

    def add(self, event: RoundReport | JobSummary) -> None:
        """Take in a report, the newest one of each attempt, or the status of the job."""
        if isinstance(event, JobSummary):
            self.summary = event
        else:
            self._reports[event.round_id, event.attempt] = event

    @property
    def reports(self) -> list[RoundReport]:
        """The attempts, in order."""
        return [report for _, report in sorted(self._reports.items())]

    @property
    def failure(self) -> str:
        """How the job ended, if it did not complete; empty otherwise."""
        if self.summary is None or not self.summary.ended or self.summary.status == COMPLETED:
            return ""
        return f"{self.summary.status}: {self.summary.detail}" if self.summary.detail else self.summary.status

    def render(self) -> RenderableType:
        """The rounds as a table, and where the job stands."""
        return Group(round_table(self.reports), Text(self._standing(), style="bold"))

    def to_json(self) -> dict[str, object]:
        """All of it for `json.dumps`."""
        job = None if self.summary is None else self.summary.to_json()
        return {"job_id": self.job_id, "job": job, "rounds": [report_to_json(report) for report in self.reports]}

    def _standing(self) -> str:
        if self.summary is None:
            return f"{self.job_id}: waiting for the coordinator"
        job = self.summary
        rounds = f"{job.rounds_committed} of {job.rounds_planned} rounds"
        line = f"{job.job_id}: {job.status}, {rounds}, model version {job.model_version}"
        return f"{line}; {job.detail}" if job.detail else line


async def follow_job(
    operator: Operator,
    history: JobHistory,
    screen: Console,
    *,
    heard: Callable[[RoundReport | JobSummary], None] = lambda _event: None,
) -> None:
    """Fill `history` until the job ends, with a live table where `screen` is a terminal.

    Raises:
        PeerLost: the coordinator went away.
    """
    if not screen.is_terminal:
        async for event in operator.watch(history.job_id):
            history.add(event)
            heard(event)
        return
    # Whoever called prints the final table on stdout; the live one goes away.
    with Live(console=screen, refresh_per_second=8, transient=True, get_renderable=history.render):
        async for event in operator.watch(history.job_id):
            history.add(event)
            heard(event)
