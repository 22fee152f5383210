"""SQL that reads a view's Parquet files in DuckDB: scans, times as microseconds, pulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import duckdb

from transforms.engine import quoted

__all__ = [
    "ROW",
    "UNKNOWN",
    "column_types",
    "microseconds",
    "name",
    "newest_rows",
    "rows_between",
    "scan",
]

ROW = "file_index::BIGINT * 1099511627776 + file_row_number AS rid"
"""Number of a row of `scan`; room for 2**40 rows a file."""
UNKNOWN = -(2**62)
"""Created timestamp of a row that has none: every known one is newer."""


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
        See `materialize.stores.pit.History`.
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
        f"{{'ts': {microseconds(times[0], types)}, 'cr': coalesce({created}, {UNKNOWN}), "
        "'rid': rid}"
    )
    return (
        f"WITH best AS (SELECT max({choice}).rid AS rid FROM (SELECT *, {ROW} FROM {scan(files)} "
        f"WHERE {_between(times[0], types, start, end)}) GROUP BY {grouped}) "
        f"SELECT {_listed(columns, times, types)} FROM (SELECT *, {ROW} FROM {scan(files)}) "
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
