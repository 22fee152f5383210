"""How the ledger talks to its database, and the one kind of transaction that changes it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, select, text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from encoder.errors import LedgerConflict, TransientError
from materialize.ledger.schema import HEAD, require_head
from materialize.ledger.tables import VERSION

__all__ = ["WAIT_SECONDS", "Connected", "make_engine", "now", "writing"]

WAIT_SECONDS = 30
"""How long a change waits for another process's."""

_BEGIN = "palate_begin"
"""Execution option: the statement that begins a transaction on SQLite."""


class Connected:
    """Connections to one ledger; its parts read and write through them.

    See `Ledger` for the parameters.
    """

    def __init__(self, url: str, *, pooled: bool = False) -> None:
        self._engine = make_engine(url, pooled=pooled)
        self._writer = writing(self._engine)
        # A single SELECT needs no transaction around it, which would be two round trips more.
        self._single = self._engine.execution_options(
            **(
                {_BEGIN: None}
                if self._engine.dialect.name == "sqlite"
                else {"isolation_level": "AUTOCOMMIT"}
            )
        )
        try:
            require_head(self._engine, self._writer)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close the connections that a pooled ledger keeps; the next call opens new ones."""
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """Yield a session for reading."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """Yield a session for what concerns one run alone; commits at the end."""
        with Session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def _change(self) -> Iterator[Session]:
        """Yield a session for a change of a state, pin or pointer; commits at the end.

        Changes come one after the other: each locks the row that names the schema's revision, and
        what it reads then is what the last change left. On SQLite BEGIN IMMEDIATE does the same.

        Raises
        ------
        LedgerConflict
            The ledger was upgraded since it was opened.
        TransientError
            Another process's change took longer than `WAIT_SECONDS`.
        """
        with Session(self._writer) as session, session.begin():
            _take_turn(session.connection)
            yield session


def make_engine(url: str, *, pooled: bool = False) -> Engine:
    """Return an engine for a ledger's URL; makes a SQLite file's folder."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")  # the driver that Feast installs
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {} if pooled else {"poolclass": NullPool}
    if not sqlite:
        # A server may be set to another one, under which a change that waited for its turn would
        # still see the ledger as it was before it waited.
        options["isolation_level"] = "READ COMMITTED"
    engine = create_engine(parsed, **options)
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    if pooled:
        _forget_in_children(engine)
    return engine


def writing(engine: Engine) -> Engine:
    """Return the engine for transactions that write, with the same connections."""
    # A transaction that reads first and then writes fails at once on SQLite when another wrote in
    # between; one that begins as a writer waits for the other instead.
    return engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})


def now() -> datetime:
    """Return the present moment in UTC."""
    return datetime.now(timezone.utc)


def _take_turn(connect: Any) -> None:
    try:
        connection: Connection = connect()
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'"))
        found = connection.execute(select(VERSION.c.version_num).with_for_update()).scalar()
    except OperationalError as exc:
        if not any(word in str(exc.orig) for word in ("locked", "lock timeout")):
            raise
        raise TransientError(
            f"Another process has been changing the ledger for {WAIT_SECONDS} s. "
            "Run the command again when it is done."
        ) from exc
    if found != HEAD:
        raise LedgerConflict(
            f"The ledger was upgraded to revision {found!r} while this process had it open at "
            f"{HEAD!r}. Start it again with the Palate that upgraded it."
        )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # sqlite3 would begin transactions by itself, before the first write only.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get(_BEGIN, "BEGIN")
    if begin is not None:
        connection.exec_driver_sql(begin)


def _forget_in_children(engine: Engine) -> None:
    """Make a forked process open connections of its own.

    Two processes on one connection would get each other's answers, that is, another's pin.
    """
    reference = weakref.ref(engine)

    def forget() -> None:
        kept = reference()
        if kept is not None:
            kept.dispose(close=False)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)
