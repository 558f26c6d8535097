"""Runs the migrations of the coordinator's database; Alembic loads this file."""

from services.coordinator.tables import Base
from services.runtime.database import run_migrations

run_migrations(Base.metadata)
