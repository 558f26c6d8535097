"""What somebody who watches the demo sees: live on a terminal, line by line anywhere else. All of it on stderr."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from cli.demo.events import EventKind, SiteEvent
from cli.output import percent_text, seconds_text
from cli.reports import dropouts_in_words, is_committed, words
from cli.round_table import round_table
from fl_core.rounds.report import RoundReport

_LOOKS = {
    EventKind.CONNECTED: ("connected", "dim"),
    EventKind.INVITED: ("invited", "cyan"),
    EventKind.TRAINING: ("training", "cyan"),
    EventKind.TRAINED: ("trained", "blue"),
    EventKind.KEYS_SHARED: ("keys shared", "blue"),
    EventKind.UPLOADING: ("uploading", "magenta"),
    EventKind.UPLOADED: ("uploaded", "magenta"),
    EventKind.REVEALED: ("done", "green"),
    EventKind.LEFT: ("left", "yellow"),
    EventKind.HALTED: ("killed", "bold red"),
}
_STARTING = ("starting", "dim")
_PER_LINE = 5


@dataclass(slots=True)
class DemoView:
    """The state of a run, told by its methods.

    Args:
        screen: where it goes.
        client_ids: the sites, in order.
    """

    screen: Console
    client_ids: Sequence[str]
    accuracy: dict[int, float] = field(default_factory=dict)
    _reports: list[RoundReport] = field(default_factory=list)
    _sites: dict[str, EventKind] = field(default_factory=dict)
    _spinner: Spinner = field(default_factory=lambda: Spinner("dots"))
    _live: Live | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show progress while the block runs."""
        if not self.screen.is_terminal:
            yield
            return
        with Live(
            console=self.screen, refresh_per_second=10, transient=True, get_renderable=self._render
        ) as self._live:
            yield

    def step(self, text: str) -> None:
        """Something else is being done now."""
        self._spinner.update(text=text)
        if self._live is None:
            self.screen.print(text, soft_wrap=True)

    def site_event(self, client_id: str, event: SiteEvent) -> None:
        """A site told something; called from threads."""
        self._sites[client_id] = event.kind
        if event.kind is EventKind.HALTED:
            self.note(f"  killed {client_id} in round {event.round_id}: {event.detail}", "red")

    def round_ended(self, report: RoundReport, accuracy: float | None) -> None:
        """An attempt was committed or abandoned."""
        self._reports.append(report)
        if accuracy is not None:
            self.accuracy[report.model_version] = accuracy
        if self._live is None:
            self.screen.print(_line(report, accuracy), soft_wrap=True)

    def note(self, text: str, style: str = "") -> None:
        """Something that stays on the screen."""
        self.screen.print(Text(text, style=style), soft_wrap=True)

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = [self._spinner, *self._site_lines()]
        if self._reports:
            lines += [Text(), round_table(self._reports, self.accuracy)]
        return Group(*lines)

    def _site_lines(self) -> list[Text]:
        cells = [self._site_cell(client_id) for client_id in self.client_ids]
        return [Text("  ").join(cells[start : start + _PER_LINE]) for start in range(0, len(cells), _PER_LINE)]

    def _site_cell(self, client_id: str) -> Text:
        kind = self._sites.get(client_id)
        label, style = _STARTING if kind is None else _LOOKS[kind]
        return Text.assemble((f"{client_id} ", ""), (f"{label:11}", style))


def _line(report: RoundReport, accuracy: float | None) -> str:
    if not is_committed(report):
        reason = words(report.abandon_reason or report.state)
        return f"  round {report.round_id}, attempt {report.attempt} abandoned: {reason}"
    lost = f" ({dropouts_in_words(report)})".replace("\n", ", ") if report.dropouts else ""
    return (
        f"  round {report.round_id}: {len(report.survivors)} of {len(report.invited)} survived{lost}, "
        f"accuracy {percent_text(accuracy)}, {seconds_text(report.round_seconds)} s"
    )


def killed_in_words(killed: Mapping[str, str]) -> str:
    """Who was killed, and where."""
    return ", ".join(f"{client_id} {phase}" for client_id, phase in sorted(killed.items())) or "nobody"
