"""The end of a load test for people: what a round cost everybody."""

from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.loadtest.metering import TrafficPhase
from cli.loadtest.result import LoadResult, percentile
from cli.output import bytes_text, seconds_text
from cli.round_table import round_table


def render(result: LoadResult) -> RenderableType:
    """The table of the rounds, what a site sends, what a service takes, and the claims."""
    reports = [settled.report for settled in result.rounds]
    return Group(round_table(reports), Text(), _traffic(result), Text(), _services(result), Text(), _facts(result))


def _facts(result: LoadResult) -> Table:
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column()
    seconds = result.round_seconds
    outcome = f"{len(result.committed)} of {result.options.rounds}"
    facts.add_row("rounds committed", outcome if not result.detail else f"{outcome}; {result.detail}")
    if seconds:
        facts.add_row(
            "seconds of a round",
            f"{seconds_text(median(seconds))} median, {seconds_text(percentile(seconds, 0.95))} of 95% at most",
        )
    if result.site_cpu_seconds is not None:
        facts.add_row("CPU seconds of all sites", seconds_text(result.site_cpu_seconds))
    facts.add_row("aggregates per second", f"{result.aggregates_per_second:.2f}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in result.dropouts_by_reason.items())
    facts.add_row("drop-outs by reason", reasons or "none")
    facts.add_row("aggregates", _exactness(result))
    return facts


def _exactness(result: LoadResult) -> Text:
    if result.aggregate_exact is None:
        return Text("there was none", style="yellow")
    if not result.aggregate_exact:
        return Text("WRONG: a sum differs from the plain sum of its survivors' updates", style="bold red")
    return Text("exact: each bit for bit the plain sum of its survivors' updates", style="green")


def _traffic(result: LoadResult) -> Table:
    table = Table(box=None, pad_edge=False, title="message bytes of a survivor, median", title_justify="left")
    table.add_column("")
    for phase in TrafficPhase:
        table.add_column(phase.value, justify="right")
    table.add_column("together", justify="right", style="bold")
    for direction in ("up", "down"):
        counts = [result.bytes_median(direction, phase) for phase in TrafficPhase]
        table.add_row(direction, *map(bytes_text, counts), bytes_text(result.bytes_median(direction)))
    return table


def _services(result: LoadResult) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("service", "CPU s", "peak memory", "at the start"):
        table.add_column(name, justify="left" if name == "service" else "right")
    for name, usage in result.after.items():
        started = bytes_text(result.before[name].peak_rss_bytes) if name in result.before else ""
        cpu = result.server_cpu_seconds.get(name, usage.cpu_seconds)
        table.add_row(name, seconds_text(cpu), bytes_text(usage.peak_rss_bytes), started)
    return table
