"""Alembic migrations of the coordinator's database. A revision is never changed once it was released."""
