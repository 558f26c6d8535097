"""Settings of the coordinator."""

from pathlib import Path

from pydantic import Field, field_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from fl_core.errors import ConfigError
from services.runtime.settings import ServiceSettings, split_address

DRIVERS = ("sqlite+aiosqlite", "postgresql+asyncpg")


class CoordinatorSettings(ServiceSettings):
    """What the coordinator needs beside the settings of every service.

    Args:
        database_url: SQLAlchemy URL of an async driver; `coordinator.db` in the state folder when empty.
        blob_url: folder or fsspec URL for models; `blobs` in the state folder when empty.
        aggregator: host:port of the aggregator, as sites reach it too.
        keyserver: host:port of the key server, as sites reach it too.
        presence_grace_s: a site whose stream breaks counts as present for this long.
        heartbeat_s: a silent stream to a site carries a heartbeat this often.
        service_patience_s: how long a service may be out of reach before an attempt is given up.
        evaluation_timeout_s: how long sites may take to evaluate a model.
        concurrent_jobs: jobs that run at the same time; the others wait in the order in which they came.
        max_model_bytes: largest model that a job may bring.
    """

    database_url: str = ""
    blob_url: str = ""
    aggregator: str
    keyserver: str
    presence_grace_s: float = Field(default=1.0, ge=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    service_patience_s: float = Field(default=10.0, gt=0)
    evaluation_timeout_s: float = Field(default=600.0, gt=0)
    concurrent_jobs: int = Field(default=1, ge=1)
    max_model_bytes: int = Field(default=1 << 36, ge=1)

    @field_validator("aggregator", "keyserver")
    @classmethod
    def _check_service(cls, address: str) -> str:
        split_address(address)
        return address

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, url: str) -> str:
        return url and check_database_url(url)

    @property
    def database(self) -> str:
        """The database, wherever it was said to be."""
        return self.database_url or f"sqlite+aiosqlite:///{(self.state_dir / 'coordinator.db').resolve()}"

    @property
    def blobs(self) -> str:
        """The blob store, wherever it was said to be."""
        return self.blob_url or str(Path(self.state_dir / "blobs").resolve())


def check_database_url(url: str) -> str:
    """Give back a database URL with the async driver of its kind; `sqlite:` and `postgresql:` are filled in.

    Raises:
        ConfigError: the URL cannot be read, or is of another database or driver.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The parser's own message quotes the URL, which may hold a password.
        raise ConfigError("the database URL cannot be read", expected="dialect://user@host/name") from None
    filled = {"sqlite": DRIVERS[0], "postgresql": DRIVERS[1], "postgres": DRIVERS[1]}.get(parsed.drivername)
    driver = filled or parsed.drivername
    if driver not in DRIVERS:
        raise ConfigError("the database is of a kind that is not supported", expected=" | ".join(DRIVERS), got=driver)
    return parsed.set(drivername=driver).render_as_string(hide_password=False)
