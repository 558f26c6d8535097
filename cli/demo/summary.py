"""The end of a demo run for people: the table of its rounds and what it shows."""

from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.demo.private import budget_in_words, cost_in_words
from cli.demo.result import DemoResult
from cli.demo.view import killed_in_words
from cli.output import bytes_text, percent_text, seconds_text
from cli.round_table import round_table


def render(result: DemoResult) -> RenderableType:
    """The table of the rounds, and below it the claims with their figures."""
    table = round_table(list(result.rounds), result.accuracy_by_version)
    return Group(table, Text(), _facts(result))


def _facts(result: DemoResult) -> Table:
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column()
    for name, value in _rows(result):
        facts.add_row(name, value)
    return facts


def _rows(result: DemoResult) -> list[tuple[str, Text | str]]:
    outcome = f"{len(result.committed)} of {result.planned_rounds}"
    rows: list[tuple[str, Text | str]] = [
        ("rounds committed", outcome if not result.detail else f"{outcome}; {result.detail}"),
        ("killed with SIGKILL", killed_in_words(result.killed)),
        ("aggregate", _exactness(result)),
        ("accuracy", _accuracy(result)),
        *_privacy(result),
        ("aggregation", _aggregation(result)),
        (
            "bytes per site and round",
            f"{bytes_text(result.bytes_up_per_site)} up, {bytes_text(result.bytes_down_per_site)} down at most",
        ),
    ]
    return rows


def _privacy(result: DemoResult) -> list[tuple[str, Text | str]]:
    if result.privacy is None:
        return []
    words = cost_in_words(result.privacy, result.sites)
    return [("privacy", budget_in_words(result.privacy)), ("what it costs", words)]


def _exactness(result: DemoResult) -> Text:
    if result.privacy is not None and result.privacy["mechanism"] == "central":
        return Text("not compared: the key server's noise is in every sum", style="yellow")
    if result.aggregate_exact is None:
        return Text("not checked: the sites recorded nothing", style="yellow")
    if not result.aggregate_exact:
        return Text("WRONG: a sum differs from the plain sum of its survivors' updates", style="bold red")
    rounds = len(result.committed)
    claim = f"exact: in {rounds} of {rounds} rounds bit for bit the plain sum of the survivors' updates"
    return Text(claim, style="green")


def _accuracy(result: DemoResult) -> str:
    federated = result.accuracy_federated[-1] if result.committed else None
    centralised = result.accuracy_centralised[-1] if result.accuracy_centralised else None
    text = f"{percent_text(federated)} federated, {percent_text(centralised)} centralised"
    if federated is None or centralised is None:
        return text
    return f"{text} ({100 * (federated - centralised):+.1f} points)"


def _aggregation(result: DemoResult) -> str:
    if not result.aggregation_seconds:
        return "-"
    middle, most = median(result.aggregation_seconds), max(result.aggregation_seconds)
    return f"{seconds_text(middle)} s of a round without training (median; {seconds_text(most)} s at most)"
