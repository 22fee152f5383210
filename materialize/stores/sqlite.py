"""SQLite as online store: Arrow in, compare-and-set in one transaction."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig

from materialize.stores.base import AtomicOnlineStore, WithoutVectorSearch
from materialize.stores.rows import EncodedRows

__all__ = ["PalateSqliteOnlineStore", "PalateSqliteOnlineStoreConfig"]

_BUSY_SECONDS = 30.0
_QUARTER = 900
"""Seconds; no zone changes its offset within a quarter of an hour."""

# Feast keeps whole seconds, read as local time. Our columns keep microseconds, and the whole
# seconds they were written with: where these differ from Feast's, stock Feast wrote the row last.
_OWN = ("palate_event_us", "palate_created_us", "palate_event_ts")

_ROWS_PER_STATEMENT = 50
"""Stepping a statement costs more than binding a row to it (measured: 1.7 times the rows/s)."""
_CACHE_KIB = 65_536
"""Pages that a write keeps in memory; SQLite's own 2 MiB do not hold the inner index pages."""

_WRITE = """
INSERT INTO {table} (entity_key, feature_name, value, value_text, event_ts, created_ts,
                     palate_event_us, palate_created_us, palate_event_ts)
VALUES {rows}
ON CONFLICT (entity_key, feature_name) DO UPDATE SET
    value = excluded.value, value_text = excluded.value_text,
    event_ts = excluded.event_ts, created_ts = excluded.created_ts,
    palate_event_us = excluded.palate_event_us, palate_created_us = excluded.palate_created_us,
    palate_event_ts = excluded.palate_event_ts
WHERE CASE WHEN palate_event_ts IS event_ts
    THEN excluded.palate_event_us > palate_event_us
        OR (excluded.palate_event_us = palate_event_us
            AND (palate_created_us IS NULL OR excluded.palate_created_us >= palate_created_us))
    ELSE excluded.event_ts > event_ts
        OR (excluded.event_ts = event_ts
            AND (created_ts IS NULL OR excluded.created_ts >= created_ts)) END
"""
_PARAMETERS = 7
"""Of a row: key, value, text, Feast's event and created time, ours; the feature is ``?1``."""


class PalateSqliteOnlineStoreConfig(WithoutVectorSearch, SqliteOnlineStoreConfig):
    """Feast's SQLite settings, without vector search."""

    type: str = "materialize.stores.sqlite.PalateSqliteOnlineStore"  # type: ignore[assignment]
    """Online store type selector."""


class PalateSqliteOnlineStore(AtomicOnlineStore, SqliteOnlineStore):
    """Feast's SQLite layout with three columns more, in write-ahead mode.

    State: writes have a connection of their own, used by one thread at a time, so that readers
    see whole transactions only.
    """

    rows_per_write = 100_000
    """Rows of one transaction: the more, the fewer times a page of an index is written."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._prepared: set[str] = set()

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        fresh = self._conn is None
        connection: sqlite3.Connection = super()._get_conn(config)
        if fresh:
            _configure(connection)
        return connection

    def _write_encoded(self, config: RepoConfig, view: FeatureView, rows: EncodedRows) -> int:
        table = compute_table_id(
            config.project, view, config.registry.enable_online_feature_view_versioning
        )
        # In the order of both indices, so that neighbours are written to one page.
        rows = rows.sorted_by_key()
        event, created = _feast_seconds(rows.event_us), _feast_seconds(rows.created_us)
        moments = (
            event,
            _where(rows.has_created, created),
            rows.event_us.tolist(),
            _where(rows.has_created, rows.created_us.tolist()),
        )
        changed = 0
        with self._lock:
            connection = self._writing(config, table)
            connection.execute("BEGIN IMMEDIATE")
            try:
                for name, values, texts in zip(rows.names, rows.values, rows.texts, strict=True):
                    columns = (rows.keys, values, texts, *moments)
                    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
                        parameters = _parameters(name, columns, start)
                        statement = _statement(table, len(parameters) // len(columns))
                        changed += connection.execute(statement, parameters).rowcount
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        return changed // len(rows.names)

    def _writing(self, config: RepoConfig, table: str) -> sqlite3.Connection:
        if self._writer is None:
            self._get_conn(config)  # creates the folder
            self._writer = sqlite3.connect(
                self._get_db_path(config), isolation_level=None, check_same_thread=False
            )
            _configure(self._writer)
            self._writer.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if table not in self._prepared:
            _add_columns(self._writer, table)
            self._prepared.add(table)
        return self._writer

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Create and drop tables as Feast does; a table made anew gets our columns again."""
        super().update(
            config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial
        )
        # Feast leaves its transaction open when it created nothing but rows of the schema.
        self._get_conn(config).commit()
        self._prepared.clear()

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Close the writing connection, then remove the file."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._prepared.clear()
        super().teardown(config, tables, entities)


@lru_cache(maxsize=256)
def _statement(table: str, n_rows: int) -> str:
    """Return the compare-and-set of so many rows of one feature."""
    rows = []
    for first in range(2, 2 + _PARAMETERS * n_rows, _PARAMETERS):
        key, value, text, event, created, event_us, created_us = range(first, first + _PARAMETERS)
        rows.append(
            f"(?{key}, ?1, ?{value}, ?{text}, ?{event}, ?{created}, "
            f"?{event_us}, ?{created_us}, ?{event})"
        )
    return _WRITE.format(table=_quoted(table), rows=", ".join(rows))


def _parameters(name: str, columns: Sequence[list[Any]], start: int) -> list[Any]:
    """Return the feature and, row by row, the columns of the statement that begins at a row."""
    stop = min(start + _ROWS_PER_STATEMENT, len(columns[0]))
    parameters: list[Any] = [name] * (1 + len(columns) * (stop - start))
    for place, column in enumerate(columns, 1):
        parameters[place :: len(columns)] = column[start:stop]
    return parameters


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA journal_mode = WAL")
    # In WAL mode NORMAL keeps the database consistent; a power cut may undo the last commits.
    connection.execute("PRAGMA synchronous = NORMAL")


def _add_columns(connection: sqlite3.Connection, table: str) -> None:
    """Give a table that stock Feast created our columns; safe when another process does too."""
    connection.execute("BEGIN IMMEDIATE")
    present = {row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")}
    for name in _OWN:
        if present and name not in present:
            connection.execute(f"ALTER TABLE {_quoted(table)} ADD COLUMN {name} INTEGER")
    connection.execute("COMMIT")


def _feast_seconds(moments_us: npt.NDArray[np.int64]) -> list[int]:
    """Return what Feast writes: whole seconds of the UTC clock reading taken for local time."""
    seconds = moments_us // 1_000_000
    quarters, which = np.unique(seconds // _QUARTER, return_inverse=True)
    start = datetime(1970, 1, 1)
    offsets = [
        int((start + timedelta(seconds=q * _QUARTER)).timestamp()) - q * _QUARTER
        for q in quarters.tolist()
    ]
    whole: list[int] = (seconds + np.array(offsets, np.int64)[which]).tolist()
    return whole


def _where(present: npt.NDArray[np.bool_], values: list[int]) -> list[Any]:
    if present.all():
        return values
    return [v if there else None for v, there in zip(values, present.tolist(), strict=True)]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
