"""Runs the migrations of the key server's database; Alembic loads this file."""

from services.keyserver.tables import Base
from services.runtime.database import run_migrations

run_migrations(Base.metadata)
