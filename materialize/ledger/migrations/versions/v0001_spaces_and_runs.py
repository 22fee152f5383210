"""Spaces, runs and finished partitions.

A ledger that was made before its revisions were numbered has these tables already, or all but the
youngest: what is there is left as it is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TABLES = sa.MetaData()
sa.Table(
    "spaces",
    _TABLES,
    sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("encoder_version", sa.String(12), nullable=False, unique=True),
    sa.Column("artifact_url", sa.String(), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("facts", sa.JSON(), nullable=False),
)
sa.Table(
    "runs",
    _TABLES,
    sa.Column("run_id", sa.String(16), primary_key=True),
    sa.Column("view", sa.String(200), nullable=False),
    sa.Column("space", sa.Integer(), sa.ForeignKey("spaces.number"), nullable=True),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("plan", sa.JSON(), nullable=False),
    sa.Column("counts", sa.JSON(), nullable=False),
    sa.Column("error", sa.String(), nullable=True),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
    sa.UniqueConstraint("view", "key"),
)
sa.Table(
    "partitions",
    _TABLES,
    sa.Column("run_id", sa.String(16), sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("counts", sa.JSON(), nullable=False),
    sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
)


def upgrade() -> None:
    """Make the tables that are not there."""
    _TABLES.create_all(op.get_bind(), checkfirst=True)
