"""kill -9 of each service in each phase: the job finishes, nothing is lost, nobody trains twice or unmasks twice.

The default suite kills each service once, where it hurts most; `TACIT_KILL_MATRIX=1` runs the whole matrix.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from battered_federation import BatteredFederation, battered_federation

from cli.cluster import SERVICES
from fl_core.rounds.machine import AbandonReason

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SITES = 4
PHASES = ("invited", "training", "keys_shared", "uploading", "uploaded", "unmasked", "reporting", "applying")
"""The step at which all sites stand when a service is killed. While a sum is reported or applied they are done."""

SHORT = (("coordinator", "applying"), ("aggregator", "uploading"), ("keyserver", "unmasked"))
WHOLE = tuple((service, phase) for phase in PHASES for service in SERVICES)
CASES = WHOLE if os.environ.get("TACIT_KILL_MATRIX") else SHORT


OUTAGE_S = 180.0 if os.environ.get("TACIT_KILL_MATRIX") else 3.0
"""How long every service is away at once."""


async def kill_in_round(federation: BatteredFederation, service: str, phase: str, round_id: int) -> None:
    """Kill a service while a round stands still in a phase, and start it again."""
    if phase in PHASES[:6]:
        await federation.until_step(phase, round_id, SITES)
        await federation.kill_service(service)
    elif phase == "reporting":
        await federation.until_step("unmasked", round_id, SITES)
        # Nobody listens to the sum, so whoever hands it over is killed with it in hand.
        federation.signal_service("coordinator", signal.SIGSTOP)
        federation.open(round_id)
        await federation.until_step("revealed", round_id, SITES)
        await asyncio.sleep(1.0)
        await federation.kill_service(service)
        if service != "coordinator":
            federation.signal_service("coordinator", signal.SIGCONT)
    else:
        await federation.until_step("revealed", round_id)
        await federation.kill_service(service)
    await federation.start_service(service)
    federation.open(round_id)


async def test_a_job_outlives_the_death_of_each_service_in_each_phase(tmp_path: Path) -> None:
    async with battered_federation(tmp_path, SITES) as federation:
        for round_id, (_, phase) in enumerate(CASES, start=1):
            if phase != "applying":
                federation.shut("unmasked" if phase == "reporting" else phase, round_id)
        job_id = await federation.submit(rounds=len(CASES) + 1, cohort={"min": SITES, "max": SITES})
        for round_id, (service, phase) in enumerate(CASES, start=1):
            await kill_in_round(federation, service, phase, round_id)
            reports = await federation.until_committed(job_id, round_id)
            print(service, phase, [r.abandon_reason for r in reports if r.round_id == round_id], flush=True)
        reports = await federation.until_committed(job_id, len(CASES) + 1)
        assert federation.check_exact(reports) == len(CASES) + 1
        federation.check_chain()
        federation.check_unmasked_once()
        await federation.check_no_orphans(job_id)
        # What a site trained served every attempt at its round.
        assert set(federation.trainings().values()) == {1}
        reasons = {report.abandon_reason for report in reports} - {None}
        assert reasons <= {AbandonReason.SERVICE_RESTARTED, AbandonReason.TOO_FEW_UPLOADS}
    federation.check_files()


async def test_sites_and_their_job_outlive_the_absence_of_every_service(tmp_path: Path) -> None:
    async with battered_federation(tmp_path, SITES) as federation:
        federation.shut("training", 1)
        job_id = await federation.submit(rounds=2, cohort={"min": SITES, "max": SITES}, max_attempts=1)
        await federation.until_step("training", 1, SITES)
        for service in SERVICES:
            await federation.kill_service(service)
        await asyncio.sleep(OUTAGE_S)
        federation.open(1)
        for service in SERVICES:
            federation.cluster.start_service(service)
        reports = await federation.until_committed(job_id, 2)
        assert federation.check_exact(reports) == 2
        assert all(process.alive for process in federation.sites.values())
        assert set(federation.trainings().values()) == {1}
        federation.check_chain()
    federation.check_files()


async def test_a_site_that_was_killed_after_its_training_does_not_train_again(tmp_path: Path) -> None:
    async with battered_federation(tmp_path, SITES) as federation:
        federation.shut("uploading", 1)
        job_id = await federation.submit(rounds=1, cohort={"min": SITES, "max": SITES})
        await federation.until_step("uploading", 1, SITES)
        spooled = tmp_path / "sites" / "site-2" / "state" / "trained.sealed"
        await federation.until(spooled.exists, "the update of site-2 on its disk")
        await federation.kill_site("site-2")
        # Without the aggregator the attempt is lost, and the next one needs every site.
        await federation.kill_service("aggregator")
        federation.start_site("site-2")
        await federation.start_service("aggregator")
        federation.open(1)
        reports = await federation.until_committed(job_id, 1)
        federation.check_exact(reports)
        assert "site-2" in reports[-1].survivors
        assert federation.trainings() == {(f"site-{number}", 1): 1 for number in range(1, SITES + 1)}
        # Gone with the round that it was for.
        await federation.until(lambda: not spooled.exists(), "the end of the spooled update")
    federation.check_files()
