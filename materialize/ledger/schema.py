"""Which revision a ledger is of, and its tables in an empty database; needs no Alembic."""

from __future__ import annotations

from sqlalchemy import insert, inspect, select, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from encoder.errors import LedgerConflict
from materialize.ledger.tables import VERSION, Base, SpaceRow

__all__ = ["BEFORE_ALEMBIC", "HEAD", "REVISIONS", "lock_schema", "read_revision", "require_head"]

REVISIONS = ("0001", "0002")
"""All revisions of `migrations`, oldest first; kept here so that opening needs no Alembic."""

HEAD = REVISIONS[-1]
BEFORE_ALEMBIC = "0001"
"""Revision of a ledger that was made before its tables were numbered."""

_LOCK = 0x70616C61746531
"""Key of PostgreSQL's advisory lock while tables are made: no row is there yet to be locked."""


def read_revision(connection: Connection) -> str | None:
    """Return a ledger's revision, or None for a database without one."""
    tables = inspect(connection)
    # Asked for first: another process may make all tables, this one and the version's, between the
    # two questions, and a new ledger must not be taken for one from before its revisions had names.
    older = tables.has_table(SpaceRow.__tablename__)
    if tables.has_table(VERSION.name):
        found: str | None = connection.execute(select(VERSION.c.version_num)).scalar()
        if found is not None:
            return found
    return BEFORE_ALEMBIC if older else None


def require_head(engine: Engine, writer: Engine) -> None:
    """Make an empty database's tables; refuse a ledger of another revision.

    Parameters
    ----------
    engine, writer : Engine
        The same database, for reading and for writing.

    Raises
    ------
    LedgerConflict
        The ledger is of an older or a newer revision; the message says what to do.
    """
    if _at_head(engine):
        return
    with engine.connect() as connection:
        found = read_revision(connection)
    if found is None:
        found = _create(writer)
    if found == HEAD:
        return
    if found in REVISIONS:
        raise LedgerConflict(
            f"The ledger is of revision {found}, this Palate works with {HEAD}. Make a copy of its "
            "database, then run `palate ledger upgrade`."
        )
    raise LedgerConflict(
        f"The ledger is of revision {found!r}, this Palate knows none after {HEAD}. "
        "Install a newer Palate."
    )


def lock_schema(connection: Connection) -> None:
    """Let no other process make or change tables until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def _at_head(engine: Engine) -> bool:
    try:
        with engine.connect() as connection:
            return connection.execute(select(VERSION.c.version_num)).scalar() == HEAD
    except DBAPIError:  # no such table, most often; a database that is not there fails again later
        return False


def _create(writer: Engine) -> str | None:
    with writer.begin() as connection:
        lock_schema(connection)
        found = read_revision(connection)
        if found is not None:
            return found  # another process was first
        Base.metadata.create_all(connection)
        VERSION.create(connection, checkfirst=True)
        connection.execute(insert(VERSION).values(version_num=HEAD))
        return HEAD
