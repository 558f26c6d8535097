"""Several sessions of one attempt, and the lease of the replica that drives the rounds.

Revision: coordinator_sessions, after coordinator_0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "coordinator_sessions"
down_revision = "coordinator_0001"
branch_labels = None
depends_on = None

# An attempt had one session until now; where its sites uploaded was not kept.
_TAKE_OVER = """
    INSERT INTO sessions (
        job_id, round_id, attempt, number, session_id, aggregator, keyserver,
        state, abandon_reason, detail, total_weight, aggregate_sha256
    )
    SELECT
        job_id, round_id, attempt, 1, session_id, '', '',
        state, abandon_reason, detail, total_weight, aggregate_sha256
    FROM attempts WHERE session_id IS NOT NULL
"""


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column("address", sa.String(length=256), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "sessions",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("session_id", sa.LargeBinary(), nullable=False),
        sa.Column("aggregator", sa.String(length=256), nullable=False),
        sa.Column("keyserver", sa.String(length=256), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("abandon_reason", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("total_weight", sa.BigInteger(), nullable=True),
        sa.Column("aggregate_sha256", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id", "round_id", "attempt"],
            ["attempts.job_id", "attempts.round_id", "attempts.attempt"],
            name=op.f("fk_sessions_attempts"),
        ),
        sa.PrimaryKeyConstraint("job_id", "round_id", "attempt", "number", name=op.f("pk_sessions")),
        sa.UniqueConstraint("session_id", name=op.f("uq_sessions_session_id")),
    )
    op.execute(_TAKE_OVER)
    with op.batch_alter_table("participants") as batch_op:
        batch_op.add_column(sa.Column("session_number", sa.BigInteger(), nullable=False, server_default="1"))
    with op.batch_alter_table("participants") as batch_op:
        batch_op.alter_column("session_number", server_default=None)
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_attempts_session_id"), type_="unique")
        batch_op.drop_column("session_id")


def downgrade() -> None:
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.add_column(sa.Column("session_id", sa.LargeBinary(), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("uq_attempts_session_id"), ["session_id"])
    op.execute(
        "UPDATE attempts SET session_id = (SELECT session_id FROM sessions WHERE sessions.job_id = attempts.job_id"
        " AND sessions.round_id = attempts.round_id AND sessions.attempt = attempts.attempt AND sessions.number = 1)"
    )
    with op.batch_alter_table("participants") as batch_op:
        batch_op.drop_column("session_number")
    op.drop_table("sessions")
    op.drop_table("leases")
