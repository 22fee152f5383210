"""The ledger's tables at the newest revision; `migrations` says how an older one gets there."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

__all__ = [
    "VERSION",
    "Base",
    "BridgeRow",
    "ConsumerMoveRow",
    "ConsumerRow",
    "DefaultMoveRow",
    "ErasureRow",
    "PartitionRow",
    "RunRow",
    "SpaceRow",
    "TransitionRow",
]

VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, as Alembic makes it; not in ``Base``, which holds what migrations make."""


class Utc(TypeDecorator[datetime]):
    """A moment with its time zone; SQLite drops the zone, so it is written as UTC and added."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC, for the database."""
        return None if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware moment in UTC, from the database."""
        if value is None:
            return None
        return (
            value.astimezone(timezone.utc) if value.tzinfo else value.replace(tzinfo=timezone.utc)
        )


class Base(DeclarativeBase):
    """Base of all tables that the migrations make."""


class SpaceRow(Base):
    """A space; its state is one of `states`."""

    __tablename__ = "spaces"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    encoder_version: Mapped[str] = mapped_column(String(12), unique=True)
    artifact_url: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(Utc)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)


class RunRow(Base):
    """A materialisation of one view."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("view", "key"),)

    run_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    view: Mapped[str] = mapped_column(String(200))
    space: Mapped[int | None] = mapped_column(ForeignKey("spaces.number"))
    key: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    counts: Mapped[dict[str, Any]] = mapped_column(JSON)
    error: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(Utc)
    finished_at: Mapped[datetime | None] = mapped_column(Utc)


class PartitionRow(Base):
    """A partition of an unfinished run that is done; the run's commit removes it."""

    __tablename__ = "partitions"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    counts: Mapped[dict[str, Any]] = mapped_column(JSON)
    finished_at: Mapped[datetime] = mapped_column(Utc)


class BridgeRow(Base):
    """A map from one space's vectors into another's."""

    __tablename__ = "bridges"

    version: Mapped[str] = mapped_column(String(12), primary_key=True)
    source: Mapped[int] = mapped_column(ForeignKey("spaces.number"))
    target: Mapped[int] = mapped_column(ForeignKey("spaces.number"))
    url: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Utc)


class ConsumerRow(Base):
    """A consumer with its pin of this moment, so that a pin is one row away."""

    __tablename__ = "consumers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    space: Mapped[int] = mapped_column(ForeignKey("spaces.number"))
    bridge: Mapped[str | None] = mapped_column(ForeignKey("bridges.version"))
    revision: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(Utc)
    moved_at: Mapped[datetime] = mapped_column(Utc)


class ConsumerMoveRow(Base):
    """A pin that a consumer has or had; it outlives the consumer.

    A name that comes back goes on counting its revisions, so no reader takes the new consumer's
    revision for the old one's.
    """

    __tablename__ = "consumer_moves"

    consumer: Mapped[str] = mapped_column(String(200), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    space: Mapped[int] = mapped_column(ForeignKey("spaces.number"))
    bridge: Mapped[str | None] = mapped_column(ForeignKey("bridges.version"))
    previous: Mapped[int | None]
    """Revision whose pin a roll back from here returns to."""
    at: Mapped[datetime] = mapped_column(Utc)


class DefaultMoveRow(Base):
    """A space that is or was the default; the highest number is the default of this moment."""

    __tablename__ = "default_moves"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    space: Mapped[int] = mapped_column(ForeignKey("spaces.number"))
    previous: Mapped[int | None]
    """Number of the move that a roll back from here returns to."""
    at: Mapped[datetime] = mapped_column(Utc)


class TransitionRow(Base):
    """Who changed what, when and why."""

    __tablename__ = "transitions"
    __table_args__ = (Index("ix_transitions_subject_name", "subject", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    before: Mapped[str | None] = mapped_column(String(200))
    after: Mapped[str | None] = mapped_column(String(200))
    who: Mapped[str] = mapped_column(String(200))
    why: Mapped[str]
    forced: Mapped[bool]
    at: Mapped[datetime] = mapped_column(Utc)


class ErasureRow(Base):
    """A user whose rows were erased; the digest does not tell who it was."""

    __tablename__ = "erasures"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_digest: Mapped[str] = mapped_column(String(128))
    counts: Mapped[dict[str, Any]] = mapped_column(JSON)
    who: Mapped[str] = mapped_column(String(200))
    why: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)
