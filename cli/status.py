"""`tacit status`: what the services are doing."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_CONFIG, ConfigOption
from cli.output import JsonOption, console, print_json

FINISHED = "finished"

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fl_core.wire.v1 import status_pb2


def status(
    job_id: Annotated[str, typer.Argument(help="Only this job.", show_default=False)] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show the services, the connected sites and the jobs."""
    services = asyncio.run(_ask_all(config, job_id))
    if as_json:
        print_json({"services": [_service_to_json(answer) for answer in services]})
        return
    console().print(_services_table(services))
    if any(answer.jobs for answer in services):
        console().print(_jobs_table(services))


async def _ask_all(config: Path, job_id: str) -> "list[status_pb2.GetStatusResponse]":
    """Status of the coordinator that drives the rounds, and of all other services that the config knows."""
    from cli.operator import Operator, OperatorConfig, service_status
    from fl_core.transport.identity import Role

    settings = OperatorConfig.from_file(config)
    async with Operator.connect(settings) as operator:
        answers = [await operator.status(job_id)]
    roles = (Role.AGGREGATOR, Role.KEYSERVER)
    others = [(role, address) for role in roles for address in settings.addresses_of(role)]
    return answers + [await service_status(settings, role, address) for role, address in others]


def _service_to_json(answer: "status_pb2.GetStatusResponse") -> dict[str, object]:
    from cli.reports import JobSummary

    return {
        "role": answer.role,
        "service_id": answer.service_id,
        "version": answer.version,
        "uptime_seconds": answer.uptime_seconds,
        "connected_sites": list(answer.connected_sites),
        "jobs": [JobSummary.from_message(job).to_json() for job in answer.jobs],
        "sessions": [_session_to_json(session) for session in answer.sessions],
        "leading": answer.leading,
        "leader": answer.leader,
    }


def _session_to_json(session: "status_pb2.SessionStatus") -> dict[str, object]:
    return {
        "session_id": session.session_id.hex(),
        "job_id": session.job_id,
        "round_id": session.round_id,
        "attempt": session.attempt,
        "phase": session.phase,
        "counts": dict(session.counts),
    }


def _services_table(services: "list[status_pb2.GetStatusResponse]") -> "RenderableType":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("service", "id", "version", "up", "now"):
        table.add_column(title, justify="right" if title == "up" else "left")
    for answer in services:
        table.add_row(answer.role, answer.service_id, answer.version, _uptime(answer.uptime_seconds), _present(answer))
    return table


def _present(answer: "status_pb2.GetStatusResponse") -> str:
    if answer.role == "coordinator":
        sites = sorted(answer.connected_sites)
        shown = ", ".join(sites[:8]) + (", ..." if len(sites) > 8 else "")
        return f"{len(sites)} sites connected" + (f": {shown}" if sites else "")
    running = [session for session in answer.sessions if session.phase != FINISHED]
    phases = (f"round {session.round_id} of {session.job_id}: {session.phase}" for session in running)
    return "\n".join(phases) or "no open session"


def _jobs_table(services: "list[status_pb2.GetStatusResponse]") -> "RenderableType":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("job", "name", "status", "rounds", "model", "detail"):
        table.add_column(title, justify="right" if title in ("rounds", "model") else "left")
    for answer in services:
        for job in answer.jobs:
            rounds = f"{job.rounds_committed} of {job.rounds_planned}"
            table.add_row(job.job_id, job.name, job.status, rounds, f"version {job.model_version}", job.detail)
    return table


def _uptime(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
