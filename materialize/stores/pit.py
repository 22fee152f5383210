"""Point-in-time joins in DuckDB: each entity row gets the newest row that was there at its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from encoder.errors import DataFault
from materialize.stores.parquet_sql import ROW, UNKNOWN, microseconds, name, scan

__all__ = ["CreatedFilter", "History", "join"]

CreatedFilter = Literal["off", "pushed", "all"]
"""Rows of which files count only from their created timestamp on."""

_PAIRED = 16
"""Up to so many entity rows of a key (or of a key and bucket) are compared with each of its rows:
so many comparisons a row of the history at most, and no sort."""
_NEAR_ROWS, _NEAR_RATIO = 1_000_000, 4
"""The nearest rows are sought first from so many rows on, and so many an entity row: below, the
sort of an ASOF join takes no time worth saving."""
_NEAR_BUCKET = 4
"""Rows of a key that a bucket holds, about."""


@dataclass(frozen=True)
class History:
    """The rows of one feature view, and how to read them.

    Attributes
    ----------
    view : str
        For messages.
    files : tuple of Path
        The files that are exempt under the filter ``"pushed"`` stand first.
    exempt : int
        Their number.
    keys : mapping of str to str
        Column of the files -> column of the entity rows; empty for a view without entities.
    timestamp, created : str, str or None
        Columns of the files.
    fields : mapping of str to str
        Column of the result -> column of the files.
    types : mapping of str to str
        DuckDB type of each column of the files, see `column_types`.
    ttl_us : int
        Microseconds after which a row holds no more (it still holds at exactly that age);
        0: never.
    """

    view: str
    files: tuple[Path, ...]
    exempt: int
    keys: Mapping[str, str]
    timestamp: str
    created: str | None
    fields: Mapping[str, str]
    types: Mapping[str, str]
    ttl_us: int


def join(
    db: duckdb.DuckDBPyConnection, spine: pa.Table, history: History, created: CreatedFilter
) -> pa.Table:
    """Return the history's fields for each entity row, in the order of the entity rows.

    Parameters
    ----------
    db : duckdb connection
        Its zone is UTC; temporary tables ``entities``, ``matched`` and
        ``late`` are replaced.
    spine : pyarrow.Table
        ``row`` int64 0..n-1, ``moment`` int64 (us since the epoch, null: never), and the entity
        columns that ``history.keys`` names.
    history : History
    created : {"off", "pushed", "all"}

    Returns
    -------
    pyarrow.Table
        One column a field and one row an entity row; null where no row holds at the moment.

    Raises
    ------
    DataFault
        A column that the feature view names is not in the files.

    Notes
    -----
    The match reads keys and times alone; the fields are read once, for the rows that matched. An
    ASOF join finds the newest event, or, in a history that is long beside the entity rows and where
    these are spread, a hash join on key and time bucket, which sorts nothing. Entity rows whose
    newest event was created after their moment, or is not near, are matched again. Rows that share
    an event time show in the number of rows that come back; then, and only then, all rows are
    matched exactly, by `_exact`.
    """
    _check_columns(history)
    db.register("spine", spine)
    db.execute(f"CREATE OR REPLACE TEMP TABLE entities AS {_entities(history)}")
    equal = " AND ".join(f"m.k{i} = h.k{i}" for i in range(len(history.keys) or 1))
    fields = [f"{name(source)} AS f{i}" for i, source in enumerate(history.fields.values())]
    wanted = ", ".join(f"h.f{i}" for i in range(len(fields)))
    rows = _rows(history, created)
    # Without a file whose created times count, every row is known from its event time on.
    filtered = {"off": False, "pushed": history.exempt < len(history.files), "all": True}[created]
    filtered = filtered and history.created is not None

    buckets = _buckets(db, rows, spine.num_rows)
    if buckets:
        _nearest(db, rows, equal, *buckets)
    else:
        later = "h.ts IS NOT NULL AND coalesce(h.known > m.moment, true)" if filtered else "false"
        known = ["known"] if filtered else []
        db.execute(
            f"CREATE OR REPLACE TEMP TABLE matched AS SELECT m.*, h.ts, {later} AS open "
            f"FROM entities m ASOF LEFT JOIN ({rows.select('ts', *known)}) h "
            f"ON {equal} AND m.moment >= h.ts"
        )
    _look_further_back(db, rows, equal)
    if history.ttl_us:
        db.execute(f"UPDATE matched SET ts = NULL WHERE moment - ts > {history.ttl_us}")
    table = db.sql(
        f"SELECT {wanted} FROM matched m LEFT JOIN ({rows.select('ts', *fields)}) h "
        f"ON {equal} AND m.ts = h.ts ORDER BY m.row"
    ).to_arrow_table()
    if table.num_rows != spine.num_rows:  # more: no entity row is lost by a left join
        del table
        fresh = f"newest.ts >= moment - {history.ttl_us}" if history.ttl_us else "true"
        newest = "max({'ts': ts, 'cr': cr, 'rid': rid})"
        table = db.sql(
            f"WITH best AS ({_exact(rows, equal, 'matched', newest, 'ts', 'cr', 'rid')}), "
            f"m AS (SELECT row, CASE WHEN {fresh} THEN newest.rid END AS rid FROM best) "
            f"SELECT {wanted} FROM m LEFT JOIN ({rows.select('rid', *fields)}) h "
            "ON m.rid = h.rid ORDER BY m.row"
        ).to_arrow_table()
    return table.rename_columns(list(history.fields))


def _buckets(db: duckdb.DuckDBPyConnection, rows: _Rows, asked: int) -> tuple[int, int] | None:
    """Return the history's first event time and how wide the buckets of `_nearest` are (us).

    None where an ASOF join takes less time, or as much.
    """
    (total,) = db.sql(f"SELECT count(*) FROM {rows.source}").fetchall()[0]
    if total < _NEAR_ROWS or total < _NEAR_RATIO * asked:
        return None
    keys, first, last = db.sql(
        f"SELECT approx_count_distinct(({rows.key_names})), min(ts), max(ts) "
        f"FROM ({rows.select('ts')})"
    ).fetchall()[0]
    if first is None:
        return None
    width = _NEAR_BUCKET * (last - first) * keys // total
    if not 0 < 2 * width <= last - first:  # so few rows a key that the buckets leave none out
        return None
    (most,) = db.sql(
        "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM entities "
        f"GROUP BY {rows.key_names}, moment // {width})"
    ).fetchall()[0]
    # Crowded entity rows would be compared with the same rows over and over.
    return (first, width) if most <= _PAIRED else None


def _nearest(
    db: duckdb.DuckDBPyConnection, rows: _Rows, equal: str, first: int, width: int
) -> None:
    """Make table ``matched`` from the rows in the bucket of each moment and in the one before.

    Rows of other buckets are older than these, so that the newest known row among these is the
    newest known of all. Where there is none, the entity row stays open.
    """
    near = (
        "SELECT m.row, max(h.ts) AS ts FROM ("
        f"SELECT *, unnest([moment // {width}, moment // {width} - 1]) AS bucket FROM entities) m "
        f"JOIN (SELECT *, ts // {width} AS bucket FROM ({rows.select('ts', 'known')})) h "
        f"ON {equal} AND m.bucket = h.bucket AND h.known <= m.moment GROUP BY m.row"
    )
    db.execute(
        "CREATE OR REPLACE TEMP TABLE matched AS "
        f"SELECT m.*, n.ts, n.ts IS NULL AND m.moment >= {first} AS open "
        f"FROM entities m LEFT JOIN ({near}) n ON m.row = n.row"
    )


def _look_further_back(db: duckdb.DuckDBPyConnection, rows: _Rows, equal: str) -> None:
    """Give the entity rows that are open the newest row that was known at their moment."""
    db.execute("CREATE OR REPLACE TEMP TABLE late AS SELECT * FROM matched WHERE open")
    most = db.sql(
        f"SELECT max(n) FROM (SELECT count(*) AS n FROM late GROUP BY {rows.key_names})"
    ).fetchall()[0][0]
    if most is None:
        return
    if most <= _PAIRED:
        best = (
            "SELECT l.row, p.newest FROM late l LEFT JOIN (SELECT m.row, max(h.ts) AS newest "
            f"FROM late m JOIN ({rows.select('ts', 'known')}) h ON {equal} "
            "AND h.known <= m.moment GROUP BY m.row) p ON l.row = p.row"
        )
    else:
        best = _exact(rows, equal, "late", "max(ts)", "ts")
    db.execute(f"UPDATE matched SET ts = newest FROM ({best}) best WHERE matched.row = best.row")


def _exact(rows: _Rows, equal: str, asked: str, newest: str, *wanted: str) -> str:
    """Return a query: row and moment of each row of table ``asked``, and ``newest`` at its moment.

    ``newest`` is a maximum over the columns ``wanted`` of the rows that are known by then.
    """
    keys = rows.key_names
    # With rows ordered by the moment from which they can be known, the newest event known so far
    # is a running maximum, and what an entity row sees is that maximum at its own moment.
    return (
        f"WITH h AS (SELECT {keys}, known, {newest} OVER ("
        f"PARTITION BY {keys} ORDER BY known RANGE UNBOUNDED PRECEDING) AS newest "
        f"FROM ({rows.select('known', *wanted)}) h SEMI JOIN {asked} m ON {equal} "
        "WHERE known IS NOT NULL) "
        f"SELECT m.row, m.moment, h.newest FROM {asked} m ASOF LEFT JOIN h "
        f"ON {equal} AND m.moment >= h.known"
    )


@dataclass(frozen=True)
class _Rows:
    """The history as SQL: ``k0..`` and any of ts, cr, known (us), rid, and fields."""

    keys: tuple[str, ...]
    columns: Mapping[str, str]
    source: str

    @property
    def key_names(self) -> str:
        return ", ".join(part.rpartition(" AS ")[2] for part in self.keys)

    def select(self, *wanted: str) -> str:
        columns = ", ".join(self.columns.get(column, column) for column in wanted)
        return f"SELECT {', '.join(self.keys)}, {columns} FROM {self.source}"


def _rows(history: History, created: CreatedFilter) -> _Rows:
    types = history.types
    ts = microseconds(history.timestamp, types)
    cr = microseconds(history.created, types) if history.created else "NULL::BIGINT"
    known = ts
    if created != "off" and history.created:
        # `greatest` passes over nulls, but a row of unknown creation was known at no known moment.
        known = f"CASE WHEN {cr} IS NOT NULL THEN greatest({ts}, {cr}) END"
        if created == "pushed" and history.exempt:
            known = f"CASE WHEN file_index < {history.exempt} THEN {ts} ELSE {known} END"
    keys = tuple(f"{name(key)} AS k{i}" for i, key in enumerate(history.keys)) or ("0 AS k0",)
    columns = {
        "ts": f"{ts} AS ts",
        "cr": f"coalesce({cr}, {UNKNOWN}) AS cr",
        "known": f"{known} AS known",
        "rid": ROW,
    }
    return _Rows(keys, columns, scan(history.files))


def _entities(history: History) -> str:
    keys = [f"{name(column)} AS k{i}" for i, column in enumerate(history.keys.values())]
    return f"SELECT row, moment, {', '.join(keys) or '0 AS k0'} FROM spine"


def _check_columns(history: History) -> None:
    wanted = [*history.keys, history.timestamp, *history.fields.values()]
    if history.created:
        wanted.append(history.created)
    missing = sorted({column for column in wanted if column not in history.types})
    if missing:
        raise DataFault(
            f"The files of view {history.view!r} have no column {', '.join(map(repr, missing))}. "
            f"Columns: {', '.join(sorted(history.types))}."
        )
