"""Sessions that were unmasked."""

import sqlalchemy as sa
from alembic import op

revision = "keyserver_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "keyserver_unmasked_sessions",
        sa.Column("session_id", sa.LargeBinary(16), nullable=False),
        sa.Column("job_id", sa.String(200), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("survivors_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("session_id"),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("keyserver_unmasked_sessions")
