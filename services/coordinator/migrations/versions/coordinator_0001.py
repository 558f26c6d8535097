"""Jobs, models, attempts and their history: the first schema.

Revision: coordinator_0001, after nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "coordinator_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("spec_json", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("submitted_by", sa.String(length=200), nullable=False),
        sa.Column("submitted_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("rounds_committed", sa.BigInteger(), nullable=False),
        sa.Column("model_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
    )
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_status"), ["status"], unique=False)

    op.create_table(
        "models",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("parent_version", sa.BigInteger(), nullable=True),
        sa.Column("model_digest", sa.LargeBinary(), nullable=False),
        sa.Column("blob_name", sa.String(length=512), nullable=False),
        sa.Column("optimizer_blob", sa.String(length=512), nullable=True),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "(version = 1 AND parent_version IS NULL) OR (version > 1 AND parent_version = version - 1)",
            name=op.f("ck_models_chain"),
        ),
        sa.CheckConstraint("length(model_digest) = 32", name=op.f("ck_models_digest")),
        sa.ForeignKeyConstraint(
            ["job_id", "parent_version"], ["models.job_id", "models.version"], name=op.f("fk_models_models")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_models_jobs")),
        sa.PrimaryKeyConstraint("job_id", "version", name=op.f("pk_models")),
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("session_id", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("abandon_reason", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("model_version", sa.BigInteger(), nullable=False),
        sa.Column("total_weight", sa.BigInteger(), nullable=True),
        sa.Column("aggregate_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("closed_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id", "model_version"], ["models.job_id", "models.version"], name=op.f("fk_attempts_models")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_attempts_jobs")),
        sa.PrimaryKeyConstraint("job_id", "round_id", "attempt", name=op.f("pk_attempts")),
        sa.UniqueConstraint("session_id", name=op.f("uq_attempts_session_id")),
    )
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.create_index(
            "uq_attempts_committed",
            ["job_id", "round_id"],
            unique=True,
            sqlite_where=sa.text("state = 'committed'"),
            postgresql_where=sa.text("state = 'committed'"),
        )
        batch_op.create_index(
            "uq_attempts_open",
            ["job_id"],
            unique=True,
            sqlite_where=sa.text("state NOT IN ('committed', 'abandoned')"),
            postgresql_where=sa.text("state NOT IN ('committed', 'abandoned')"),
        )

    op.create_table(
        "evaluations",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.String(length=200), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("num_samples", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "round_id", "attempt"],
            ["attempts.job_id", "attempts.round_id", "attempts.attempt"],
            name=op.f("fk_evaluations_attempts"),
        ),
        sa.PrimaryKeyConstraint("job_id", "round_id", "attempt", "client_id", name=op.f("pk_evaluations")),
    )
    op.create_table(
        "participants",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.String(length=200), nullable=False),
        sa.Column("certificate_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("survived", sa.Boolean(), nullable=False),
        sa.Column("dropout_reason", sa.String(length=32), nullable=True),
        sa.Column("dropout_phase", sa.String(length=16), nullable=True),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "round_id", "attempt"],
            ["attempts.job_id", "attempts.round_id", "attempts.attempt"],
            name=op.f("fk_participants_attempts"),
        ),
        sa.PrimaryKeyConstraint("job_id", "round_id", "attempt", "position", name=op.f("pk_participants")),
    )
    op.create_table(
        "transitions",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("entered_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "round_id", "attempt"],
            ["attempts.job_id", "attempts.round_id", "attempts.attempt"],
            name=op.f("fk_transitions_attempts"),
        ),
        sa.PrimaryKeyConstraint("job_id", "round_id", "attempt", "sequence", name=op.f("pk_transitions")),
    )


def downgrade() -> None:
    op.drop_table("transitions")
    op.drop_table("participants")
    op.drop_table("evaluations")
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.drop_index(
            "uq_attempts_open",
            sqlite_where=sa.text("state NOT IN ('committed', 'abandoned')"),
            postgresql_where=sa.text("state NOT IN ('committed', 'abandoned')"),
        )
        batch_op.drop_index(
            "uq_attempts_committed",
            sqlite_where=sa.text("state = 'committed'"),
            postgresql_where=sa.text("state = 'committed'"),
        )

    op.drop_table("attempts")
    op.drop_table("models")
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_status"))

    op.drop_table("jobs")
