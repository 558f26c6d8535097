"""Attempts that failed only because sites were away, which are counted apart."""

import sqlalchemy as sa
from alembic import op

revision = "coordinator_absences"
down_revision = "coordinator_privacy"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.add_column(sa.Column("is_excused", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.alter_column("is_excused", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.drop_column("is_excused")
