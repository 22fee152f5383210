"""Point-in-time joins in DuckDB: each entity row gets the newest row that was there at its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from encoder.errors import DataFault
from transforms.engine import quoted

__all__ = ["CreatedFilter", "History", "column_types", "join", "newest_rows", "rows_between"]

CreatedFilter = Literal["off", "pushed", "all"]
"""Rows of which files count only from their created timestamp on."""

_ROW = "file_index::BIGINT * 1099511627776 + file_row_number AS rid"  # 2**40 rows a file
_UNKNOWN = -(2**62)
"""Created timestamp of a row that has none: every known one is newer."""
_PAIRED = 16
"""With no more late entity rows than this a key, each is compared with the key's whole history:
that takes at most as many comparisons a history row, and no sort."""


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
        Its zone is UTC; temporary tables ``matched`` and ``late`` are replaced.
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
    The match reads keys and times alone; the fields are read once, for the rows that matched. The
    match finds the newest event; where that was created after the entity row's moment, those entity
    rows alone are matched again. Rows that share an event time show in the number of rows that come
    back; then, and only then, all rows are matched exactly, by `_exact`.
    """
    _check_columns(history)
    db.register("spine", spine)
    equal = " AND ".join(f"m.k{i} = h.k{i}" for i in range(len(history.keys) or 1))
    fields = [f"{name(source)} AS f{i}" for i, source in enumerate(history.fields.values())]
    wanted = ", ".join(f"h.f{i}" for i in range(len(fields)))
    rows = _rows(history, created)
    # Without a file whose created times count, every row is known from its event time on.
    filtered = {"off": False, "pushed": history.exempt < len(history.files), "all": True}[created]
    filtered = filtered and history.created is not None

    known = ["known"] if filtered else []
    db.execute(
        f"CREATE OR REPLACE TEMP TABLE matched AS SELECT m.*, h.ts{', h.known' * filtered} "
        f"FROM ({_entities(history)}) m ASOF LEFT JOIN ({rows.select('ts', *known)}) h "
        f"ON {equal} AND m.moment >= h.ts"
    )
    if filtered:
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


def _look_further_back(db: duckdb.DuckDBPyConnection, rows: _Rows, equal: str) -> None:
    """Give the entity rows whose newest event was created too late the newest one that was not."""
    db.execute(
        "CREATE OR REPLACE TEMP TABLE late AS SELECT * FROM matched "
        "WHERE ts IS NOT NULL AND coalesce(known > moment, true)"
    )
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
        "cr": f"coalesce({cr}, {_UNKNOWN}) AS cr",
        "known": f"{known} AS known",
        "rid": _ROW,
    }
    return _Rows(keys, columns, scan(history.files))


def _entities(history: History) -> str:
    keys = [f"{name(column)} AS k{i}" for i, column in enumerate(history.keys.values())]
    return f"SELECT row, moment, {', '.join(keys) or '0 AS k0'} FROM spine"


def rows_between(
    files: Sequence[Path],
    types: Mapping[str, str],
    columns: Sequence[str],
    times: Sequence[str],
    start: datetime | None,
    end: datetime | None,
) -> str:
    """Return a query for all rows whose event time lies in ``[start, end]``.

    Parameters
    ----------
    files, types
        See `History`.
    columns : sequence of str
        Of the files, in the result's order.
    times : sequence of str
        Those of ``columns`` that hold times, the event time first; they come as microseconds, UTC.
    start, end : datetime or None
        Both inclusive; a naive one is local time, as it is for stock Feast.
    """
    return f"SELECT {_listed(columns, times, types)} FROM {scan(files)} WHERE " + _between(
        times[0], types, start, end
    )


def newest_rows(
    files: Sequence[Path],
    types: Mapping[str, str],
    columns: Sequence[str],
    times: Sequence[str],
    keys: Sequence[str],
    start: datetime | None,
    end: datetime | None,
) -> str:
    """Return a query for each key's newest row in ``[start, end]``; ties by created time.

    Parameters are those of `rows_between`, and ``keys``, columns of the files; without any there is
    one row in all. The choice reads keys and times alone.
    """
    grouped = ", ".join(name(key) for key in keys) or "()"
    created = microseconds(times[1], types) if len(times) > 1 else "NULL::BIGINT"
    choice = (
        f"{{'ts': {microseconds(times[0], types)}, 'cr': coalesce({created}, {_UNKNOWN}), "
        "'rid': rid}"
    )
    return (
        f"WITH best AS (SELECT max({choice}).rid AS rid FROM (SELECT *, {_ROW} FROM {scan(files)} "
        f"WHERE {_between(times[0], types, start, end)}) GROUP BY {grouped}) "
        f"SELECT {_listed(columns, times, types)} FROM (SELECT *, {_ROW} FROM {scan(files)}) "
        "SEMI JOIN best USING (rid)"
    )


def _listed(columns: Sequence[str], times: Sequence[str], types: Mapping[str, str]) -> str:
    return ", ".join(
        f"make_timestamp({microseconds(column, types)}) AT TIME ZONE 'UTC' AS {name(column)}"
        if column in times
        else name(column)
        for column in columns
    )


def _between(
    column: str, types: Mapping[str, str], start: datetime | None, end: datetime | None
) -> str:
    """Return SQL for ``start <= column <= end``."""
    # The bare column where DuckDB can compare it, so that it skips row groups by their statistics.
    native = "NS" not in types[column]
    moment = name(column) if native else microseconds(column, types)
    parts = ["true"]
    for operator, bound in ((">=", start), ("<=", end)):
        if bound is not None:
            utc = bound.astimezone(timezone.utc)
            us = (utc - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
            literal = f"TIMESTAMPTZ '{utc.isoformat()}'" if native else str(us)
            parts.append(f"{moment} {operator} {literal}")
    return " AND ".join(parts)


def microseconds(column: str, types: Mapping[str, str]) -> str:
    """Return SQL for a time column as microseconds since the epoch (floored), naive read as UTC.

    DuckDB 2.0 neither casts a nanosecond timestamp with time zone nor takes its ``epoch_us``.
    """
    kind = types[column]
    if "NS" in kind:
        ns = f"epoch_ns({name(column)})"
        return f"(({ns} - (({ns} % 1000) + 1000) % 1000) // 1000)"
    return f"epoch_us({name(column)})"


def scan(files: Sequence[Path]) -> str:
    """Return the table function that reads exactly these files, in this order.

    Files are matched by column name, and what an older file lacks is null; ``key=value`` in a path
    is a name, not a column.
    """
    paths = ", ".join(quoted(path) for path in files)
    return f"read_parquet([{paths}], union_by_name=true, hive_partitioning=false)"


def column_types(db: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> dict[str, str]:
    """Return column -> DuckDB type of the files taken together."""
    return {row[0]: row[1] for row in db.sql(f"DESCRIBE SELECT * FROM {scan(files)}").fetchall()}


def name(identifier: str) -> str:
    """Return a quoted SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


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
