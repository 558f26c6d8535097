"""The coordinator's stores, the same claims on SQLite and on PostgreSQL."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from fl_core.errors import LocalProtocolError, NotFound, StorageError
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState
from fl_core.rounds.plan import ClientId, JobId, RosterEntry
from fl_core.rounds.report import SiteEvaluation
from services.coordinator.database import upgrade_database
from services.coordinator.job_store import JobStore
from services.coordinator.records import (
    AttemptKey,
    JobRecord,
    JobStatus,
    ModelRecord,
    Opening,
    SessionFacts,
    SiteBytes,
    Step,
)
from services.coordinator.round_store import RoundStore
from services.coordinator.tables import Base
from services.keyserver.journal import UnmaskJournal
from services.runtime.database import Database, current_revision, open_database

JOB = JobId("job-1")
SITES = ("anna", "bert", "carl")
RECRUITING, EXCHANGING, UPLOADING = RoundState.RECRUITING, RoundState.EXCHANGING, RoundState.UPLOADING
UNMASKING, APPLYING, COMMITTED = RoundState.UNMASKING, RoundState.APPLYING, RoundState.COMMITTED


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await upgrade_database(database_url)
    opened = open_database(database_url)
    yield opened
    await opened.close()


@pytest.mark.parametrize("store", [JobStore, RoundStore, UnmaskJournal])
def test_a_caller_that_goes_away_cuts_no_transaction_of_a_store_in_two(store: type) -> None:
    methods = [method for _, method in inspect.getmembers(store, inspect.isfunction)]
    transactions = [
        method for method in methods if re.search(r"\.(transaction|writing)\(\)", inspect.getsource(method))
    ]
    assert transactions
    assert all(hasattr(method, "__wrapped__") for method in transactions)


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
async def rounds(database: Database, jobs: JobStore) -> RoundStore:
    await jobs.add(job(JOB), model(1))
    return RoundStore(database)


def job(job_id: str, at: float = 100.0) -> JobRecord:
    return JobRecord(JobId(job_id), "digits", '{"name": "digits"}', "operator/olga", at)


def model(version: int, job_id: str = JOB) -> ModelRecord:
    digest = sha256(f"{job_id}{version}".encode()).digest()
    return ModelRecord(JobId(job_id), version, digest, f"models/{version}.safetensors", 12, 100.0 + version)


def opening(tag: bytes = b"s") -> Opening:
    roster = tuple(RosterEntry(ClientId(name), sha256(name.encode()).digest()) for name in SITES)
    return Opening(sha256(tag).digest()[:16], roster)


async def reach_applying(rounds: RoundStore, tag: bytes = b"s") -> AttemptKey:
    key = await rounds.open(JOB, 10.0)
    await rounds.bind(key, [opening(tag)], EXCHANGING, 11.0)
    await step(rounds, key, EXCHANGING, UPLOADING, 13.0)
    await step(rounds, key, UPLOADING, UNMASKING, 16.0, SessionFacts((0, 2)))
    await step(rounds, key, UNMASKING, APPLYING, 20.0, SessionFacts((0, 2), 30, b"d" * 32))
    return key


async def step(
    rounds: RoundStore,
    key: AttemptKey,
    before: RoundState,
    after: RoundState,
    now: float,
    facts: SessionFacts | None = None,
) -> None:
    """The only session of an attempt takes a step, and the attempt with it."""
    await rounds.advance(key, 1, Step(before, after), Step(before, after), now, facts)


async def commit_round(rounds: RoundStore, version: int) -> AttemptKey:
    key = await reach_applying(rounds, f"round {version}".encode())
    await rounds.commit(key, model(version), 30, b"d" * 32, 25.0)
    await rounds.close(key, {}, {}, (), 25.0)
    return key


async def test_the_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    async with database.engine.connect() as connection:
        found = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
        )
    assert found == []


async def test_an_upgrade_of_an_up_to_date_database_changes_nothing(database_url: str, rounds: RoundStore) -> None:
    await rounds.open(JOB, 1.0)
    assert await upgrade_database(database_url) == await current_revision(database_url)
    assert await rounds.current(JOB, 2.0) is not None


async def test_a_job_comes_back_as_it_was_stored(jobs: JobStore) -> None:
    stored = job("job-7")
    await jobs.add(stored, model(1, "job-7"))
    assert await jobs.job("job-7") == stored
    assert await jobs.model("job-7") == model(1, "job-7")


async def test_a_job_is_not_stored_twice_nor_without_its_model(jobs: JobStore) -> None:
    await jobs.add(job("job-7"), model(1, "job-7"))
    with pytest.raises(StorageError):
        await jobs.add(job("job-7"), model(1, "job-7"))
    with pytest.raises(StorageError):
        await jobs.add(job("job-8"), model(2, "job-8"))
    assert [stored.job_id for stored in await jobs.jobs()] == ["job-7"]


async def test_unknown_jobs_and_models_are_not_found(jobs: JobStore, rounds: RoundStore) -> None:
    for lookup in (jobs.job("nobody"), jobs.model("nobody"), jobs.model(JOB, 9), rounds.open(JobId("nobody"), 1.0)):
        with pytest.raises(NotFound):
            await lookup


async def test_jobs_wait_in_the_order_in_which_they_came_and_ended_ones_do_not(jobs: JobStore) -> None:
    for name, at in (("late", 3.0), ("early", 1.0), ("ended", 2.0)):
        await jobs.add(job(name, at), model(1, name))
    await jobs.set_status(JobId("ended"), JobStatus.CANCELLED, 4.0, "by the operator")
    assert [waiting.job_id for waiting in await jobs.unfinished()] == ["early", "late"]
    assert (await jobs.job("ended")).ended_at == 4.0


async def test_an_ended_job_stays_as_it_is(jobs: JobStore, rounds: RoundStore) -> None:
    await jobs.set_status(JOB, JobStatus.COMPLETED, 4.0)
    with pytest.raises(LocalProtocolError):
        await jobs.set_status(JOB, JobStatus.RUNNING, 5.0)
    assert (await jobs.job(JOB)).status is JobStatus.COMPLETED


async def test_attempts_count_within_a_round_and_rounds_count_commits(rounds: RoundStore) -> None:
    first = await rounds.open(JOB, 1.0)
    await rounds.abandon(first, AbandonReason.TOO_FEW_SITES, 2.0)
    second = await reach_applying(rounds)
    await rounds.commit(second, model(2), 30, b"d" * 32, 25.0)
    third = await rounds.open(JOB, 30.0)
    assert [(key.round_id, key.attempt) for key in (first, second, third)] == [(1, 1), (1, 2), (2, 1)]


async def test_a_job_has_one_open_attempt(rounds: RoundStore) -> None:
    await rounds.open(JOB, 1.0)
    with pytest.raises(LocalProtocolError):
        await rounds.open(JOB, 2.0)


async def test_two_drivers_cannot_both_open_an_attempt(rounds: RoundStore) -> None:
    outcomes = await asyncio.gather(*(rounds.open(JOB, 1.0) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, AttemptKey) for outcome in outcomes) == 1


async def test_a_step_from_another_state_is_refused_and_changes_nothing(rounds: RoundStore) -> None:
    key = await rounds.open(JOB, 1.0)
    before = await rounds.current(JOB, 5.0)
    with pytest.raises(LocalProtocolError):
        await step(rounds, key, UPLOADING, UNMASKING, 2.0)
    with pytest.raises(LocalProtocolError):
        await rounds.commit(key, model(2), 1, b"d" * 32, 2.0)
    assert await rounds.current(JOB, 5.0) == before


async def test_a_commit_stores_model_job_and_attempt_together(jobs: JobStore, rounds: RoundStore) -> None:
    await commit_round(rounds, 2)
    stored = await jobs.job(JOB)
    assert (stored.rounds_committed, stored.model_version) == (1, 2)
    assert await jobs.model(JOB) == model(2)


@pytest.mark.parametrize("version", [1, 3])
async def test_a_commit_out_of_the_chain_is_refused_and_changes_nothing(
    jobs: JobStore, rounds: RoundStore, version: int
) -> None:
    key = await reach_applying(rounds)
    with pytest.raises((StorageError, LocalProtocolError)):
        await rounds.commit(key, model(version), 30, b"d" * 32, 25.0)
    report = await rounds.current(JOB, 26.0)
    assert report is not None
    assert report.state is APPLYING
    assert (await jobs.job(JOB)).model_version == 1
    assert [stored.version for stored in await jobs.models(JOB)] == [1]


async def test_the_versions_form_one_chain(jobs: JobStore, rounds: RoundStore, database: Database) -> None:
    for version in (2, 3, 4):
        await commit_round(rounds, version)
    chain = await jobs.models(JOB)
    assert [(stored.version, stored.parent_version) for stored in chain] == [(1, None), (2, 1), (3, 2), (4, 3)]
    with pytest.raises(StorageError):
        async with database.transaction() as session:
            await session.execute(text("DELETE FROM models WHERE version = 2"))


async def test_a_committed_attempt_is_not_abandoned_any_more(rounds: RoundStore) -> None:
    key = await reach_applying(rounds)
    await rounds.commit(key, model(2), 30, b"d" * 32, 25.0)
    with pytest.raises(LocalProtocolError):
        await rounds.abandon(key, AbandonReason.CANCELLED, 26.0)


async def test_a_report_tells_the_whole_attempt(rounds: RoundStore) -> None:
    key = await reach_applying(rounds)
    await rounds.record_dropout(key, 1, DropoutReason.UPLOAD_TRUNCATED, UPLOADING)
    await rounds.record_dropout(key, 1, DropoutReason.DISCONNECTED, UNMASKING)
    await rounds.commit(key, model(2), 30, b"d" * 32, 25.0)
    measured = SiteEvaluation(ClientId("anna"), 0.5, 10, {"accuracy": 0.9})
    await rounds.close(key, {0: SiteBytes(7, 8)}, {"loss": 0.5}, [measured], 30.0)
    (report,) = await rounds.reports(JOB)
    assert (report.state, report.model_version, report.total_weight) == (COMMITTED, 2, 30)
    assert report.invited == SITES
    assert report.survivors == ("anna", "carl")
    assert [(drop.client_id, drop.reason, drop.phase) for drop in report.dropouts] == [
        ("bert", DropoutReason.UPLOAD_TRUNCATED, UPLOADING)
    ]
    assert report.phase_seconds == {
        "recruiting": 1.0,
        "exchanging": 2.0,
        "uploading": 3.0,
        "unmasking": 4.0,
        "applying": 5.0,
    }
    assert report.round_seconds == 15.0
    assert (report.bytes_up["anna"], report.bytes_down["anna"], report.bytes_up["bert"]) == (7, 8, 0)
    assert report.evaluations == (measured,)
    assert report.aggregate_sha256 == b"d" * 32


async def test_a_report_is_closed_once_and_only_after_the_end(rounds: RoundStore) -> None:
    key = await rounds.open(JOB, 1.0)
    with pytest.raises(LocalProtocolError):
        await rounds.close(key, {}, {}, (), 2.0)
    await rounds.abandon(key, AbandonReason.DEADLINE, 2.0, "too slow")
    await rounds.close(key, {}, {}, (), 3.0)
    with pytest.raises(LocalProtocolError):
        await rounds.close(key, {}, {}, (), 4.0)


async def test_reports_come_in_order_and_from_where_the_reader_stopped(rounds: RoundStore) -> None:
    key = await rounds.open(JOB, 1.0)
    await rounds.abandon(key, AbandonReason.DEADLINE, 2.0)
    await rounds.close(key, {}, {}, (), 3.0)
    await commit_round(rounds, 2)
    await commit_round(rounds, 3)
    everything = [(report.round_id, report.attempt) for report in await rounds.reports(JOB)]
    assert everything == [(1, 1), (1, 2), (2, 1)]
    assert [report.round_id for report in await rounds.reports(JOB, after=(1, 1))] == [1, 2]
    assert await rounds.reports(JOB, after=(2, 1)) == []


async def test_a_restart_abandons_what_was_open_and_keeps_what_was_committed(
    jobs: JobStore, rounds: RoundStore
) -> None:
    committed = await reach_applying(rounds)
    await rounds.commit(committed, model(2), 30, b"d" * 32, 25.0)
    interrupted = await rounds.open(JOB, 30.0)
    await rounds.bind(interrupted, [opening(b"other")], EXCHANGING, 31.0)
    sessions = await rounds.abandon_open(AbandonReason.SERVICE_RESTARTED, 40.0)
    assert sessions == [opening(b"other").session_id]
    first, second = await rounds.reports(JOB)
    assert first.state is COMMITTED
    assert (second.state, second.abandon_reason) == (RoundState.ABANDONED, AbandonReason.SERVICE_RESTARTED)
    assert await rounds.abandon_open(AbandonReason.SERVICE_RESTARTED, 41.0) == []
    assert (await rounds.open(JOB, 50.0)).attempt == 2


async def test_a_session_belongs_to_one_attempt(rounds: RoundStore) -> None:
    first = await rounds.open(JOB, 1.0)
    await rounds.bind(first, [opening()], EXCHANGING, 2.0)
    await rounds.abandon(first, AbandonReason.DEADLINE, 3.0)
    second = await rounds.open(JOB, 4.0)
    with pytest.raises(StorageError):
        await rounds.bind(second, [opening()], EXCHANGING, 5.0)
    report = await rounds.current(JOB, 6.0)
    assert report is not None


def test_only_the_first_version_has_no_parent() -> None:
    assert model(1).parent_version is None
    assert replace(model(1), version=5).parent_version == 4
