"""Bringing a ledger to the newest revision with Alembic; only `palate ledger` loads this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select
from sqlalchemy.engine import Connection, make_url

from encoder.errors import LedgerConflict
from materialize.ledger.connection import make_engine, writing
from materialize.ledger.schema import HEAD, REVISIONS, lock_schema, read_revision
from materialize.ledger.tables import VERSION

__all__ = ["Migration", "SchemaStatus", "scripts", "status", "upgrade"]

FOLDER = Path(__file__).resolve().parent / "migrations"


@dataclass(frozen=True)
class Migration:
    """One step from a revision to the next."""

    revision: str
    what: str


@dataclass(frozen=True)
class SchemaStatus:
    """Where a ledger's tables stand."""

    database: str
    """Its URL, without the password."""
    revision: str | None
    """None: the database holds no ledger; opening it makes one at the newest revision."""
    newest: str
    pending: tuple[Migration, ...]


def scripts() -> ScriptDirectory:
    """Return the migrations that ship with Palate."""
    return ScriptDirectory(str(FOLDER))


def status(url: str) -> SchemaStatus:
    """Return a ledger's revision and what an upgrade would do; changes nothing.

    Raises
    ------
    LedgerConflict
        The ledger is of a revision that this Palate does not know.
    """
    shown = make_url(url)
    # To look at a SQLite file that is not there would make it.
    if shown.get_backend_name() == "sqlite" and not Path(shown.database or "").exists():
        return _status(url, None)
    engine = make_engine(url)
    with engine.connect() as connection:
        return _status(url, read_revision(connection))


def upgrade(url: str) -> SchemaStatus:
    """Bring a ledger to the newest revision in one transaction; return where it stood before.

    Safe to repeat and beside other processes: a change of the ledger that is under way is waited
    for, and processes that have it open are refused their next change.

    Raises
    ------
    LedgerConflict
        The ledger is of a revision that this Palate does not know, or is too old to upgrade.
    """
    with writing(make_engine(url)).begin() as connection:
        lock_schema(connection)
        before = _status(url, read_revision(connection))
        if before.pending or before.revision is None:
            _run(connection)
        return before


def _status(url: str, revision: str | None) -> SchemaStatus:
    if revision is not None and revision not in REVISIONS:
        raise LedgerConflict(
            f"The ledger is of revision {revision!r}, this Palate knows none after {HEAD}. "
            "Install a newer Palate."
        )
    ahead = REVISIONS[0 if revision is None else REVISIONS.index(revision) + 1 :]
    found = scripts()
    steps = []
    for name in ahead:
        script = found.get_revision(name)
        steps.append(Migration(name, script.doc.strip()))
    shown = make_url(url).render_as_string(hide_password=True)
    return SchemaStatus(shown, revision, HEAD, tuple(steps))


def _run(connection: Connection) -> None:
    tables = inspect(connection)
    if tables.has_table("runs") and "view" not in {c["name"] for c in tables.get_columns("runs")}:
        raise LedgerConflict(
            "The ledger's table `runs` has no column `view`: it was made by a trial version before "
            "the first release. Move its database away and train again."
        )
    if tables.has_table(VERSION.name):
        # Changes of the ledger lock this row, so none is under way from here on.
        connection.execute(select(VERSION.c.version_num).with_for_update())
    directory = scripts()

    def steps(revision: Any, _context: MigrationContext) -> Sequence[Any]:
        return directory._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), directory, fn=steps) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
