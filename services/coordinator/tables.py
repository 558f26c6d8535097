"""The tables of the coordinator. What the database can hold true by itself, it does: keys, chains, open attempts."""

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.runtime.leases import lease_table

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
_COMMITTED = text("state = 'committed'")
_OPEN = text("state NOT IN ('committed', 'abandoned')")
_ATTEMPT = ["attempts.job_id", "attempts.round_id", "attempts.attempt"]

Scalars = dict[str, float]


class Base(DeclarativeBase):
    """All tables of the coordinator. Times are seconds since the epoch."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {Scalars: JSON, float: Double, bytes: LargeBinary}  # noqa: RUF012


class JobRow(Base):
    """A job, as it was submitted, and how far it has come."""

    __tablename__ = "jobs"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    spec_json: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), index=True)
    detail: Mapped[str] = mapped_column(Text, default="")
    submitted_by: Mapped[str] = mapped_column(String(200))
    submitted_at: Mapped[float]
    ended_at: Mapped[float | None]
    rounds_committed: Mapped[int] = mapped_column(BigInteger, default=0)
    model_version: Mapped[int] = mapped_column(BigInteger)


class ModelRow(Base):
    """One version of a job's model. Every version but the first has the one before it as parent: one chain."""

    __tablename__ = "models"
    __table_args__ = (
        CheckConstraint(
            "(version = 1 AND parent_version IS NULL) OR (version > 1 AND parent_version = version - 1)", name="chain"
        ),
        CheckConstraint("length(model_digest) = 32", name="digest"),
        ForeignKeyConstraint(["job_id", "parent_version"], ["models.job_id", "models.version"]),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    parent_version: Mapped[int | None] = mapped_column(BigInteger)
    model_digest: Mapped[bytes]
    blob_name: Mapped[str] = mapped_column(String(512))
    optimizer_blob: Mapped[str | None] = mapped_column(String(512))
    total_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float]


class OfAttempt:
    """The columns by which a row belongs to one attempt."""

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    round_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(BigInteger, primary_key=True)


class AttemptRow(OfAttempt, Base):
    """One attempt at one round. A job has one open attempt at most, and a round one committed attempt at most."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("uq_attempts_open", "job_id", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index(
            "uq_attempts_committed",
            "job_id",
            "round_id",
            unique=True,
            sqlite_where=_COMMITTED,
            postgresql_where=_COMMITTED,
        ),
        ForeignKeyConstraint(["job_id"], ["jobs.job_id"]),
        ForeignKeyConstraint(["job_id", "model_version"], ["models.job_id", "models.version"]),
    )

    state: Mapped[str] = mapped_column(String(16))
    abandon_reason: Mapped[str | None] = mapped_column(String(32))
    is_excused: Mapped[bool] = mapped_column(default=False)
    detail: Mapped[str] = mapped_column(Text, default="")
    model_version: Mapped[int] = mapped_column(BigInteger)
    total_weight: Mapped[int | None] = mapped_column(BigInteger)
    aggregate_sha256: Mapped[bytes | None]
    metrics: Mapped[Scalars] = mapped_column(default=dict)
    closed_at: Mapped[float | None]


class TransitionRow(OfAttempt, Base):
    """One step of an attempt, in the order in which it was taken."""

    __tablename__ = "transitions"
    __table_args__ = (ForeignKeyConstraint(["job_id", "round_id", "attempt"], _ATTEMPT),)

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    entered_at: Mapped[float]


class SessionRow(OfAttempt, Base):
    """One session of an attempt: a part of the cohort, at one aggregator and one key server. Numbers count from 1."""

    __tablename__ = "sessions"
    __table_args__ = (ForeignKeyConstraint(["job_id", "round_id", "attempt"], _ATTEMPT),)

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    session_id: Mapped[bytes] = mapped_column(unique=True)
    aggregator: Mapped[str] = mapped_column(String(256))
    keyserver: Mapped[str] = mapped_column(String(256), default="")
    state: Mapped[str] = mapped_column(String(16))
    abandon_reason: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text, default="")
    total_weight: Mapped[int | None] = mapped_column(BigInteger)
    aggregate_sha256: Mapped[bytes | None]


class ParticipantRow(OfAttempt, Base):
    """A site that was invited to an attempt, at its place among all of them, and what became of it."""

    __tablename__ = "participants"
    __table_args__ = (ForeignKeyConstraint(["job_id", "round_id", "attempt"], _ATTEMPT),)

    position: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    client_id: Mapped[str] = mapped_column(String(200))
    certificate_sha256: Mapped[bytes]
    session_number: Mapped[int] = mapped_column(BigInteger, default=1)
    survived: Mapped[bool] = mapped_column(default=False)
    dropout_reason: Mapped[str | None] = mapped_column(String(32))
    dropout_phase: Mapped[str | None] = mapped_column(String(16))
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)


class PrivacyRow(OfAttempt, Base):
    """What a release was counted with: in the ledger of the job, whose client_id is empty, or in that of a site."""

    __tablename__ = "privacy_releases"
    __table_args__ = (ForeignKeyConstraint(["job_id", "round_id", "attempt"], _ATTEMPT),)

    session_id: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    client_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    event_json: Mapped[str] = mapped_column(Text)
    reserved_at: Mapped[float]
    clip: Mapped[float]
    next_clip: Mapped[float | None]
    binding: Mapped[bytes]
    certificate_der: Mapped[bytes]
    signature: Mapped[bytes]


class EvaluationRow(OfAttempt, Base):
    """What one site measured of the model that one attempt committed."""

    __tablename__ = "evaluations"
    __table_args__ = (ForeignKeyConstraint(["job_id", "round_id", "attempt"], _ATTEMPT),)

    client_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    loss: Mapped[float]
    num_samples: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[Scalars] = mapped_column(default=dict)


LEASES = lease_table(Base.metadata)
"""Which replica drives the rounds."""
