"""Consumers, the default space, bridges, erasures, and who changed what."""

from __future__ import annotations

from datetime import datetime, timezone

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables; each space that is there gets a transition into the state it has."""
    op.create_table(
        "bridges",
        sa.Column("version", sa.String(12), primary_key=True),
        sa.Column("source", sa.Integer(), sa.ForeignKey("spaces.number"), nullable=False),
        sa.Column("target", sa.Integer(), sa.ForeignKey("spaces.number"), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "consumers",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("space", sa.Integer(), sa.ForeignKey("spaces.number"), nullable=False),
        sa.Column("bridge", sa.String(12), sa.ForeignKey("bridges.version"), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "consumer_moves",
        sa.Column("consumer", sa.String(200), primary_key=True),
        sa.Column("revision", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("space", sa.Integer(), sa.ForeignKey("spaces.number"), nullable=False),
        sa.Column("bridge", sa.String(12), sa.ForeignKey("bridges.version"), nullable=True),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "default_moves",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("space", sa.Integer(), sa.ForeignKey("spaces.number"), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    transitions = op.create_table(
        "transitions",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("before", sa.String(200), nullable=True),
        sa.Column("after", sa.String(200), nullable=True),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_transitions_subject_name", "transitions", ["subject", "name"])
    op.create_table(
        "erasures",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("user_digest", sa.String(128), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    spaces = sa.table("spaces", sa.column("number"), sa.column("state"))
    found = op.get_bind().execute(sa.select(spaces).order_by(spaces.c.number)).all()
    op.bulk_insert(
        transitions,
        [
            {
                "subject": "space",
                "name": str(space.number),
                "before": None,
                "after": space.state,
                "who": "palate ledger upgrade",
                "why": "as it was when the ledger was upgraded",
                "forced": False,
                "at": datetime.now(timezone.utc),
            }
            for space in found
        ],
    )
