"""The privacy ledgers: what was counted for each release, and what each site countersigned."""

import sqlalchemy as sa
from alembic import op

revision = "coordinator_privacy"
down_revision = "coordinator_sessions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "privacy_releases",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("session_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("client_id", sa.String(length=200), nullable=False),
        sa.Column("event_json", sa.Text(), nullable=False),
        sa.Column("reserved_at", sa.Double(), nullable=False),
        sa.Column("clip", sa.Double(), nullable=False),
        sa.Column("next_clip", sa.Double(), nullable=True),
        sa.Column("binding", sa.LargeBinary(), nullable=False),
        sa.Column("certificate_der", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "round_id", "attempt"],
            ["attempts.job_id", "attempts.round_id", "attempts.attempt"],
            name=op.f("fk_privacy_releases_attempts"),
        ),
        sa.PrimaryKeyConstraint(
            "job_id", "round_id", "attempt", "session_id", "client_id", name=op.f("pk_privacy_releases")
        ),
    )


def downgrade() -> None:
    op.drop_table("privacy_releases")
