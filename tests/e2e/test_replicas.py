"""Two coordinators on one PostgreSQL: one drives, the other takes over, and the former writes nothing any more."""

import asyncio
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, running_fleet
from postgres_server import create_database
from test_several_sessions import PHASES, Held, until_shared

from cli.operator import Operator, OperatorConfig
from fl_core.errors import ConfigError, NotLeading
from fl_core.rounds.machine import AbandonReason, RoundState
from fl_core.rounds.report import RoundReport
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire.v1 import coordinator_pb2

pytestmark = pytest.mark.e2e

SITES = ("anna", "bert", "carl", "dora")
LEASE_S = 2.0
PATIENCE_S = 120.0
PATIENT = {"min_seconds": 10.0, "max_seconds": 60.0}
"""A site takes up to 30 s until it notices that a coordinator, whose connections stay open, is silent."""


@pytest.fixture
async def fleet(
    federation: Any, tmp_path: Path, free_port: Callable[[], int], postgres_server: str
) -> AsyncIterator[Fleet]:
    """One aggregator, one key server, and the coordinators coord-1 and coord-2 as processes."""
    database = await create_database(postgres_server, f"replicas_{secrets.token_hex(8)}")
    async with running_fleet(federation, tmp_path, free_port) as running:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        await running.start_fleet(aggregators=1, keyservers=1, coordinators=addresses)
        for number, address in enumerate(addresses, 1):
            shared = {"database_url": database, "blob_url": str(tmp_path / "blobs"), "lease_s": LEASE_S}
            settings = running.coordinator_settings(listen=address, **shared)
            running.start_process(Role.COORDINATOR, f"coord-{number}", settings)
        await running.until_ready()
        yield running


async def test_a_leader_that_was_stopped_is_followed_by_the_other_and_writes_nothing_when_it_goes_on(
    fleet: Fleet,
) -> None:
    gate = threading.Event()
    former = await fleet.until_led()
    former_id = fleet.id_of(former)
    for client_id in SITES:
        fleet.join(client_id, Held(gate=gate))
    job_id = await fleet.submit(2, phases=dict.fromkeys(PHASES, PATIENT))
    await until_shared(fleet)
    fleet.signal(former_id, signal.SIGSTOP)
    await fleet.until_led(not_by=former)
    gate.set()
    first, *others = await fleet.watch(job_id, PATIENCE_S)
    fleet.signal(former_id, signal.SIGCONT)
    # Only now the former leader hears of its uploads, and would go on with the attempt that was taken from it.
    await fleet.until_logged(former_id, "leadership_lost")
    assert (first.state, first.abandon_reason) == (RoundState.ABANDONED, AbandonReason.SERVICE_RESTARTED)
    assert [(report.round_id, report.state) for report in others] == [
        (1, RoundState.COMMITTED),
        (2, RoundState.COMMITTED),
    ]
    for report in others:
        assert len(report.survivors) == len(SITES)
        fleet.exact_sessions(report)
    assert await fleet.watch(job_id) == [first, *others]
    assert not (await fleet.coordinator_status(former)).leading
    assert "round_committed" not in fleet.log_of(former_id)


async def test_a_replica_that_does_not_lead_names_the_one_that_does_and_answers_what_it_can(fleet: Fleet) -> None:
    leader = await fleet.until_led()
    (other,) = set(fleet.addresses[Role.COORDINATOR].split(",")) - {leader}
    status = await fleet.coordinator_status(other)
    assert (status.leading, status.leader) == (False, leader)
    fleet.leader = other
    stub = fleet.stub(Role.COORDINATOR, fleet.federation.credentials(Role.SITE, "anna"))
    with pytest.raises(NotLeading) as refused, rpc_errors():
        await anext(aiter(stub.WatchRounds(coordinator_pb2.WatchRoundsRequest(), timeout=30)))
    assert refused.value.expected == leader


async def test_a_leader_that_ends_in_order_is_followed_at_once(fleet: Fleet) -> None:
    leader = await fleet.until_led()
    fleet.signal(fleet.id_of(leader), signal.SIGTERM)
    await fleet.until_led(not_by=leader)
    for client_id in SITES:
        fleet.join(client_id)
    (report,) = await fleet.watch(await fleet.submit(1))
    assert report.state is RoundState.COMMITTED
    fleet.exact_sessions(report)


async def test_an_operator_follows_a_job_past_a_leader_that_is_killed(fleet: Fleet) -> None:
    gate = threading.Event()
    leader = await fleet.until_led()
    for client_id in SITES:
        fleet.join(client_id, Held(gate=gate))
    job_id = await fleet.submit(1)
    files = fleet.federation.issue(Role.OPERATOR, "olga")
    config = OperatorConfig(fleet.addresses[Role.COORDINATOR], files.certificate, files.key, files.ca)
    async with Operator.connect(config) as operator, asyncio.timeout(PATIENCE_S):
        following = asyncio.create_task(collect(operator, job_id))
        await until_shared(fleet)
        fleet.signal(fleet.id_of(leader), signal.SIGKILL)
        gate.set()
        reports = await following
    assert [(report.attempt, report.abandon_reason, report.detail, report.dropouts) for report in reports] == [
        (1, AbandonReason.SERVICE_RESTARTED, "the coordinator was restarted", ()),
        # The sites are back before the phase of the next attempt is over.
        (2, None, "", ()),
    ]


async def collect(operator: Operator, job_id: str) -> list[RoundReport]:
    return [event async for event in operator.watch(job_id) if isinstance(event, RoundReport)]


async def test_sqlite_takes_one_coordinator_and_says_so(
    federation: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    async with running_fleet(federation, tmp_path, free_port) as fleet:
        fleet.addresses |= {Role.COORDINATOR: "127.0.0.1:0", Role.AGGREGATOR: "x:1", Role.KEYSERVER: "y:1"}
        shared = {"database_url": f"sqlite:///{tmp_path / 'one.db'}"}
        await fleet.serve_coordinator(**shared)
        second = fleet.start_process(Role.COORDINATOR, "coord-2", fleet.coordinator_settings(**shared))
        with pytest.raises(ConfigError, match="SQLite takes one"):
            await fleet.until_ready()
        assert second.popen.returncode == 2
