"""The ledger: which spaces and runs exist. It commits last: a crash leaves no half truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    ForeignKey,
    String,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    select,
)
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from encoder.errors import LedgerConflict

__all__ = ["Ledger", "Run", "Space"]


class _Base(DeclarativeBase):
    pass


class _SpaceRow(_Base):
    __tablename__ = "spaces"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    encoder_version: Mapped[str] = mapped_column(String(12), unique=True)
    artifact_url: Mapped[str]
    state: Mapped[str] = mapped_column(String(16), default="trained")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)


class _RunRow(_Base):
    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("view", "key"),)

    run_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    view: Mapped[str] = mapped_column(String(200))
    space: Mapped[int | None] = mapped_column(ForeignKey("spaces.number"))
    key: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    counts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    error: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class _PartitionRow(_Base):
    """A partition of an unfinished run that is done; the run's commit removes it."""

    __tablename__ = "partitions"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    counts: Mapped[dict[str, Any]] = mapped_column(JSON)
    finished_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@dataclass(frozen=True)
class Space:
    """One embedding space: all vectors of one encoder version.

    ``state`` is ``trained`` until the first run of the space is committed, then ``ready``.
    """

    number: int
    encoder_version: str
    artifact_url: str
    state: str
    created_at: datetime
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One materialisation of one feature view: of a space, or (``space`` None) of a raw view.

    ``state`` is ``running``, ``failed`` or ``committed``; only a committed run's counts are facts.
    """

    run_id: str
    view: str
    space: int | None
    key: str
    state: str
    plan: Mapping[str, Any]
    counts: Mapping[str, Any]
    error: str | None
    started_at: datetime
    finished_at: datetime | None


class Ledger:
    """Spaces and runs, kept in SQL.

    Parameters
    ----------
    url : str
        SQLAlchemy URL. The tables are made on first use; a SQLite file's folder too.

    Notes
    -----
    Each method is one transaction. Two processes that register the same encoder version get the
    same space; two that register different ones get different numbers.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")  # the driver that Feast installs
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        # A job asks the ledger a few times an hour: a connection a transaction, none kept open.
        self._engine: Engine = create_engine(parsed, poolclass=NullPool)
        if parsed.get_backend_name() == "sqlite":
            event.listen(self._engine, "connect", _wait_for_writers)
        _Base.metadata.create_all(self._engine)

    def register(self, encoder_version: str, artifact_url: str, facts: Mapping[str, Any]) -> Space:
        """Return the space of an encoder version, numbered next when it is new.

        Parameters
        ----------
        encoder_version : str
            Content hash, 12 hex digits.
        artifact_url : str
            Where the artifact lies.
        facts : mapping
            JSON types; what `palate spaces show` prints (cut-off, modality version, training
            figures).

        Raises
        ------
        LedgerConflict
            Other processes took the next number ten times in a row.
        """
        for _ in range(10):
            with Session(self._engine) as session:
                row = session.scalar(
                    select(_SpaceRow).where(_SpaceRow.encoder_version == encoder_version)
                )
                if row is None:
                    last = session.scalar(
                        select(_SpaceRow.number).order_by(_SpaceRow.number.desc()).limit(1)
                    )
                    row = _SpaceRow(
                        number=(last or 0) + 1,
                        encoder_version=encoder_version,
                        artifact_url=artifact_url,
                        state="trained",
                        created_at=_now(),
                        facts=dict(facts),
                    )
                    session.add(row)
                    try:
                        session.commit()
                    except IntegrityError:
                        continue  # another process took the number, or registered this version
                return _space(row)
        raise LedgerConflict(
            f"No space number could be taken for encoder version {encoder_version!r}: other "
            "processes registered spaces at the same moment. Run the command again."
        )

    def spaces(self) -> list[Space]:
        """Return all spaces, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(_SpaceRow).order_by(_SpaceRow.number))
            return [_space(row) for row in rows]

    def space(self, number: int | None = None) -> Space:
        """Return one space; without a number, the newest.

        Raises
        ------
        LedgerConflict
            There is no such space, or none at all.
        """
        known = self.spaces()
        if not known:
            raise LedgerConflict("The ledger holds no space yet. Run `palate train` first.")
        if number is None:
            return known[-1]
        for space in known:
            if space.number == number:
                return space
        raise LedgerConflict(
            f"Unknown space {number}. Known: {', '.join(str(s.number) for s in known)}. "
            "Run `palate spaces list` to see all."
        )

    def begin_run(
        self,
        run_id: str,
        view: str,
        key: str,
        plan: Mapping[str, Any],
        *,
        space: int | None = None,
        again: bool = False,
    ) -> Run:
        """Open a run, or return the one with the same view and key to resume or skip it.

        Parameters
        ----------
        run_id : str
            16 hex digits, used when the run is new.
        view : str
            Name of the feature view.
        key : str
            Fingerprint of the inputs and options: equal keys mean equal results.
        plan : mapping
            JSON types; what the run is asked to do.
        space : int, optional
            The space whose view it is.
        again : bool
            Open the run also when it is committed; until it is committed again it counts as
            running.
        """
        with Session(self._engine) as session:
            row = self._run_row(session, view, key)
            if row is None:
                row = _RunRow(
                    run_id=run_id,
                    view=view,
                    space=space,
                    key=key,
                    state="running",
                    plan=dict(plan),
                    counts={},
                    started_at=_now(),
                )
                session.add(row)
                try:
                    session.commit()
                except IntegrityError:  # a second process opened the same run
                    session.rollback()
                    row = self._run_row(session, view, key)
                    if row is None:
                        raise
            elif row.state == "failed" or (again and row.state == "committed"):
                row.state, row.error = "running", None
                session.commit()
            return _run(row)

    def commit_run(self, run_id: str, counts: Mapping[str, Any]) -> Run:
        """Mark a run committed and its space ready, in one transaction; safe to repeat."""
        with Session(self._engine) as session:
            row = session.get_one(_RunRow, run_id)
            if row.state != "committed":
                row.state, row.counts, row.finished_at = "committed", dict(counts), _now()
                row.error = None
                if row.space is not None:
                    session.get_one(_SpaceRow, row.space).state = "ready"
                session.execute(delete(_PartitionRow).where(_PartitionRow.run_id == run_id))
                session.commit()
            return _run(row)

    def fail_run(self, run_id: str, error: str) -> None:
        """Record why a run failed; a committed run stays committed."""
        with Session(self._engine) as session:
            row = session.get_one(_RunRow, run_id)
            if row.state != "committed":
                row.state, row.error, row.finished_at = "failed", error, _now()
                session.commit()

    def partition_done(self, run_id: str, number: int, counts: Mapping[str, Any]) -> None:
        """Record that a partition of a run is in every store; safe to repeat."""
        with Session(self._engine) as session:
            session.merge(
                _PartitionRow(run_id=run_id, number=number, counts=dict(counts), finished_at=_now())
            )
            session.commit()

    def partitions_done(self, run_id: str) -> dict[int, Mapping[str, Any]]:
        """Return the counts of the partitions that a run which resumes need not do again."""
        query = select(_PartitionRow).where(_PartitionRow.run_id == run_id)
        with Session(self._engine) as session:
            return {row.number: row.counts for row in session.scalars(query)}

    def forget_partitions(self, run_id: str) -> None:
        """Let the run's next attempt do every partition again: a store lost what it was given."""
        with Session(self._engine) as session:
            session.execute(delete(_PartitionRow).where(_PartitionRow.run_id == run_id))
            session.commit()

    def runs(self, space: int | None = None) -> list[Run]:
        """Return the runs of one space, or of all, oldest first."""
        query = select(_RunRow).order_by(_RunRow.started_at)
        if space is not None:
            query = query.where(_RunRow.space == space)
        with Session(self._engine) as session:
            return [_run(row) for row in session.scalars(query)]

    def last_start(self, view: str, *, from_history: bool = False) -> datetime | None:
        """Return when the newest committed run of a view and kind began; None: there is none.

        A raw row that was written from then on may not have been seen by a run of this kind. A run
        over history writes offline only, so it says nothing about what is online.
        """
        query = (
            select(_RunRow)
            .where(_RunRow.view == view, _RunRow.state == "committed")
            .order_by(_RunRow.started_at.desc())
        )
        with Session(self._engine) as session:
            for row in session.scalars(query):
                if bool(row.plan.get("from_history")) == from_history:
                    return _utc(row.started_at)
        return None

    @staticmethod
    def _run_row(session: Session, view: str, key: str) -> _RunRow | None:
        return session.scalar(select(_RunRow).where(_RunRow.view == view, _RunRow.key == key))


def _wait_for_writers(connection: Any, _record: object) -> None:
    """Let a second SQLite process wait for the first one's transaction."""
    connection.execute("PRAGMA busy_timeout = 30000")


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _utc(moment: datetime) -> datetime:
    # SQLite drops the time zone; everything in the ledger is written in UTC.
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _space(row: _SpaceRow) -> Space:
    return Space(
        number=row.number,
        encoder_version=row.encoder_version,
        artifact_url=row.artifact_url,
        state=row.state,
        created_at=_utc(row.created_at),
        facts=row.facts,
    )


def _run(row: _RunRow) -> Run:
    return Run(
        run_id=row.run_id,
        view=row.view,
        space=row.space,
        key=row.key,
        state=row.state,
        plan=row.plan,
        counts=row.counts,
        error=row.error,
        started_at=_utc(row.started_at),
        finished_at=None if row.finished_at is None else _utc(row.finished_at),
    )
