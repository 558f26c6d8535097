"""One run of a load test: a federation, its sites, the job, and the check of every sum."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli.following import JobHistory
from cli.loadtest.assignment import Assignment
from cli.loadtest.federation import Federation
from cli.loadtest.gauges import usages_of
from cli.loadtest.hosts import Event, SiteHosts
from cli.loadtest.made_up import initial_model
from cli.loadtest.options import MAX_WEIGHT, LoadOptions
from cli.loadtest.result import LoadResult, SettledRound
from cli.loadtest.schedule import schedule_of
from cli.operator import Operator
from cli.output import say
from cli.reports import JobSummary, is_committed
from fl_core.codec.packing import pack
from fl_core.crypto.mask_prg import lane_dtype
from fl_core.rounds.job import job_from_mapping
from fl_core.rounds.report import RoundReport


def run_load_test(options: LoadOptions, federation: AbstractContextManager[Federation]) -> LoadResult:
    """Start everything, run the job, stop everything.

    Raises:
        ConfigError: a process ended by itself.
        PeerLost: something is not there in time.
    """
    say("starting the services")
    with federation as running:
        say(f"making the certificates of {options.sites} sites")
        assignments = write_assignments(options, running)
        return asyncio.run(_Run(options, running).drive(assignments))


def write_assignments(options: LoadOptions, federation: Federation) -> list[Path]:
    """The sites' certificates, and who is in which process; one file for each."""
    schedule = schedule_of(options)
    configs = {name: federation.add_site(name, options.aggregation.site_policy) for name in options.client_ids}
    paths = []
    for number in range(options.processes):
        names = options.client_ids[number :: options.processes]
        folder = options.workdir / f"process-{number + 1}"
        assignment = Assignment(
            folder=folder,
            sites={name: configs[name] for name in names},
            schedule={name: schedule[name] for name in names},
            cohort=options.sites,
            parameters=options.parameters,
            codec=options.codec,
            max_weight=MAX_WEIGHT,
            seed=options.seed + number,
            shaping=options.shaping,
        )
        paths.append(assignment.write(folder / "assignment.json"))
    return paths


@dataclass(frozen=True, slots=True)
class _Run:
    options: LoadOptions
    federation: Federation

    async def drive(self, assignments: Sequence[Path]) -> LoadResult:
        options = self.options
        async with SiteHosts(assignments) as hosts, Operator.connect(self.federation.operator()) as operator:
            say(f"connecting {options.sites} sites in {options.processes} processes")
            await hosts.connect()
            before, sites_before = usages_of(self.federation.pids), hosts.cpu_seconds()
            began = time.monotonic()
            job_id = await operator.submit(job_from_mapping(options.job()), initial_model(options.parameters))
            say(f"running {options.rounds} rounds, {options.vanishing} sites vanish in each")
            history = JobHistory(job_id)
            rounds = [settled async for settled in self._rounds(operator, history, hosts)]
            seconds = time.monotonic() - began
            sites_after = hosts.cpu_seconds()
            return LoadResult(
                options=options,
                rounds=rounds,
                wall_seconds=seconds,
                before=before,
                after=usages_of(self.federation.pids),
                site_cpu_seconds=None if sites_before is None or sites_after is None else sites_after - sites_before,
                detail=history.failure,
            )

    async def _rounds(self, operator: Operator, history: JobHistory, hosts: SiteHosts) -> AsyncIterator[SettledRound]:
        async for event in operator.watch(history.job_id):
            history.add(event)
            if isinstance(event, JobSummary) or not event.state.is_final:
                continue
            parts = await hosts.settle(event.round_id, event.attempt, event.survivors)
            say(_in_words(event))
            traffic = {client_id: counts for part in parts for client_id, counts in part["bytes"].items()}
            exact = is_exact(event, parts) if is_committed(event) else None
            yield SettledRound(event, exact, traffic)


def is_exact(report: RoundReport, parts: Sequence[Event]) -> bool:
    """Whether the aggregate of a committed round is the plain sum of what its survivors encoded.

    Args:
        report: of the round.
        parts: what each process says: whether it has the updates of all its survivors, the file of their sum, and the
            ring that they are summed in.
    """
    sums = [np.load(part["sum"], allow_pickle=False) for part in parts if part["sum"] is not None]
    if not sums or not all(part["complete"] for part in parts):
        return False
    ring_bits = max(part["ring_bits"] for part in parts)
    total = sum(sums[1:], start=sums[0]) & np.uint64((1 << ring_bits) - 1)
    packed = pack(total.astype(lane_dtype(ring_bits)), ring_bits)
    return hashlib.sha256(packed.data).digest() == report.aggregate_sha256


def _in_words(report: RoundReport) -> str:
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report.phase_seconds.items())
    outcome = report.state.value if report.abandon_reason is None else report.abandon_reason.value
    return (
        f"round {report.round_id}, attempt {report.attempt}: {outcome}, {len(report.survivors)} of"
        f" {len(report.invited)} survived, {report.round_seconds:.2f} s ({phases})"
    )
