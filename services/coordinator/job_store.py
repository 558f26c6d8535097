"""Jobs and the versions of their models in the database. Each method is one transaction: all of it, or nothing."""

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from fl_core.errors import LocalProtocolError, NotFound, StorageError
from fl_core.rounds.plan import MAX_COUNT, JobId
from services.coordinator.records import JobRecord, JobStatus, ModelRecord
from services.coordinator.tables import JobRow, ModelRow
from services.runtime.database import Database, undivided

_ENDED = [status.value for status in JobStatus if status.is_final]


class JobStore:
    """Jobs and the versions of their models."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @undivided
    async def add(self, job: JobRecord, model: ModelRecord) -> None:
        """Store a new job together with its first model.

        Raises:
            StorageError: the job exists, or the model is not a first version.
        """
        row = JobRow(
            job_id=job.job_id,
            name=job.name,
            spec_json=job.spec_json,
            status=job.status.value,
            detail=job.detail,
            submitted_by=job.submitted_by,
            submitted_at=job.submitted_at,
            model_version=model.version,
        )
        async with self._database.writing() as session:
            try:
                session.add(row)
                await session.flush()
                session.add(model_row(model))
                await session.flush()
            except IntegrityError as error:
                raise StorageError(
                    "the job cannot be stored", expected="a new job with the first version of its model", got=job.job_id
                ) from error

    @undivided
    async def job(self, job_id: str) -> JobRecord:
        """Look up one job.

        Raises:
            NotFound: there is none of this id.
        """
        async with self._database.transaction() as session:
            row = await session.get(JobRow, job_id)
        if row is None:
            raise NotFound("there is no such job", expected="the id of a submitted job", got=job_id)
        return _job(row)

    @undivided
    async def jobs(self) -> list[JobRecord]:
        """All jobs, in the order in which they were submitted."""
        query = select(JobRow).order_by(JobRow.submitted_at, JobRow.job_id)
        async with self._database.transaction() as session:
            return [_job(row) for row in await session.scalars(query)]

    async def unfinished(self) -> list[JobRecord]:
        """Jobs that have not ended, in the order in which they were submitted."""
        return [job for job in await self.jobs() if not job.status.is_final]

    @undivided
    async def set_status(self, job_id: JobId, status: JobStatus, now: float, detail: str = "") -> None:
        """Move a job to another status. An ended job stays as it is.

        Raises:
            LocalProtocolError: the job has ended, or there is none of this id.
        """
        change = (
            update(JobRow)
            .where(JobRow.job_id == job_id, JobRow.status.not_in(_ENDED))
            .values(status=status.value, detail=detail, ended_at=now if status.is_final else None)
            .returning(JobRow.job_id)
        )
        async with self._database.writing() as session:
            if await session.scalar(change) is None:
                raise LocalProtocolError("the job has ended", expected="a job that is queued or running", got=job_id)

    @undivided
    async def model(self, job_id: str, version: int = 0) -> ModelRecord:
        """Look up one version of a job's model, the newest when `version` is 0.

        Raises:
            NotFound: there is no such job or version.
        """
        newest = select(func.max(ModelRow.version)).where(ModelRow.job_id == job_id).scalar_subquery()
        query = select(ModelRow).where(ModelRow.job_id == job_id, ModelRow.version == (version or newest))
        row = None
        # The wire has versions that no database can hold.
        if version <= MAX_COUNT:
            async with self._database.transaction() as session:
                row = await session.scalar(query)
        if row is None:
            raise NotFound(
                "there is no such model",
                expected="a job and a committed version of its model",
                got=f"job {job_id!r}, version {version or 'newest'}",
            )
        return _model(row)

    @undivided
    async def models(self, job_id: str) -> list[ModelRecord]:
        """All versions of a job's model, oldest first."""
        query = select(ModelRow).where(ModelRow.job_id == job_id).order_by(ModelRow.version)
        async with self._database.transaction() as session:
            return [_model(row) for row in await session.scalars(query)]


def model_row(model: ModelRecord) -> ModelRow:
    """The row of a new version."""
    return ModelRow(
        job_id=model.job_id,
        version=model.version,
        parent_version=model.parent_version,
        model_digest=model.model_digest,
        blob_name=model.blob_name,
        optimizer_blob=model.optimizer_blob,
        total_bytes=model.total_bytes,
        created_at=model.created_at,
    )


def _model(row: ModelRow) -> ModelRecord:
    return ModelRecord(
        job_id=JobId(row.job_id),
        version=row.version,
        model_digest=row.model_digest,
        blob_name=row.blob_name,
        total_bytes=row.total_bytes,
        created_at=row.created_at,
        optimizer_blob=row.optimizer_blob,
    )


def _job(row: JobRow) -> JobRecord:
    return JobRecord(
        job_id=JobId(row.job_id),
        name=row.name,
        spec_json=row.spec_json,
        submitted_by=row.submitted_by,
        submitted_at=row.submitted_at,
        status=JobStatus(row.status),
        detail=row.detail,
        ended_at=row.ended_at,
        rounds_committed=row.rounds_committed,
        model_version=row.model_version,
    )
