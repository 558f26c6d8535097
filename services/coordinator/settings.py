"""Settings of the coordinator."""

from pathlib import Path

from pydantic import Field, field_validator

from services.runtime.database import database_url, sqlite_url, with_password
from services.runtime.settings import Addresses, ServiceSettings


class CoordinatorSettings(ServiceSettings):
    """What the coordinator needs beside the settings of every service.

    Args:
        database_url: `sqlite:///path` or `postgresql://user:password@host/name`; `coordinator.db` in the state
            folder when empty.
        database_password_file: a file that holds the password of `database_url`, instead of the URL itself.
        blob_url: folder or fsspec URL for models; `blobs` in the state folder when empty.
        aggregator: host:port of each aggregator, as sites reach it too; sessions are spread over them.
        keyserver: host:port of each key server, as sites reach it too.
        lease_s: with several replicas, seconds after which another one takes over from one that is lost.
        presence_grace_s: a site whose stream breaks counts as present for this long.
        heartbeat_s: a silent stream to a site carries a heartbeat this often.
        service_patience_s: how long a service may be out of reach before an attempt is given up.
        evaluation_timeout_s: how long sites may take to evaluate a model.
        concurrent_jobs: jobs that run at the same time; the others wait in the order in which they came.
        concurrent_downloads: models that are sent at the same time; the others wait.
        model_memory_bytes: newest models that stay in memory, together, while sites download them; a larger one is
            read from the blob store for each download.
        streams_per_caller: streams of one kind that one party may hold open at once.
        memory_budget_bytes: sums that are kept in memory until they are applied; those beyond it go to disk.
        max_model_bytes: largest model that a job may bring.
    """

    database_url: str = ""
    database_password_file: Path | None = None
    blob_url: str = ""
    aggregator: Addresses
    keyserver: Addresses
    lease_s: float = Field(default=10.0, ge=1)
    presence_grace_s: float = Field(default=1.0, ge=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    service_patience_s: float = Field(default=10.0, gt=0)
    evaluation_timeout_s: float = Field(default=600.0, gt=0)
    concurrent_jobs: int = Field(default=1, ge=1)
    concurrent_downloads: int = Field(default=64, ge=1)
    model_memory_bytes: int = Field(default=64 << 20, ge=0)
    streams_per_caller: int = Field(default=4, ge=1)
    memory_budget_bytes: int = Field(default=64 << 20, ge=0)
    max_model_bytes: int = Field(default=1 << 36, ge=1)

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, url: str) -> str:
        if url:
            database_url(url)
        return url

    @property
    def database(self) -> str:
        """The database, wherever it was said to be."""
        given = with_password(self.database_url, self.database_password_file)
        return given or sqlite_url((self.state_dir / "coordinator.db").resolve())

    @property
    def blobs(self) -> str:
        """The blob store, wherever it was said to be."""
        return self.blob_url or str(Path(self.state_dir / "blobs").resolve())
