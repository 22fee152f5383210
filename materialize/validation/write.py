"""Writing the clean and rejected tables."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import duckdb

from materialize.validation.parsed import vector
from materialize.validation.sources import POSITION, SourceTable, literal, quoted
from transforms.clean import CleanTables
from transforms.dataset import Dataset

__all__ = ["write_clean", "write_rejected"]

_POS = quoted(POSITION)
_PARQUET = "(FORMAT parquet, COMPRESSION zstd)"


def write_clean(
    con: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    clean: CleanTables,
    step: Callable[[str], None],
) -> tuple[dict[str, int], tuple[datetime | None, datetime | None]]:
    """Write ``events``, ``users`` and ``items`` under ``clean.folder``, which must not exist.

    Equal input gives equal files: events keep the order of the source, users and items are sorted.

    Returns
    -------
    rows : dict of str to int
        Rows written for each table.
    span : (datetime, datetime)
        First and last event.
    """
    step("write events")
    written = {
        "events": _copy(
            con,
            f"SELECT user_id, item_id, ts, weight, session, service, context FROM {_events(con)}",
            clean.folder / "events" / "part-0.parquet",
        )
    }
    events = f"read_parquet({literal(clean.events)})"
    span = con.execute(f"SELECT min(ts), max(ts) FROM {events}").fetchone() or (None, None)
    step("write users")
    written["users"] = _copy(
        con, _users(con, dataset, events), clean.folder / "users" / "part-0.parquet"
    )
    step("write items")
    written["items"] = _copy(
        con, _items(dataset, events, clean), clean.folder / "items" / "part-0.parquet"
    )
    return written, (span[0], span[1])


def write_rejected(
    con: duckdb.DuckDBPyConnection, tables: dict[str, SourceTable], folder: Path
) -> None:
    """Write the rejected rows of each table that has some: its own columns, then ``reason``.

    A column of the user that is called ``reason`` becomes ``reason_given``.
    """
    for name, table in tables.items():
        if _count(con, f"rejected_{name}") == 0:
            continue
        taken = {column.lower(): column for column in table.columns}
        given = "reason_given"
        while given in taken:
            given += "_"
        renamed = f"RENAME ({quoted(taken['reason'])} AS {given})" if "reason" in taken else ""
        _copy(
            con,
            f"SELECT s.* EXCLUDE ({_POS}), r.reason FROM ("
            f"SELECT * {renamed}, {table.position} FROM {table.sql}) s "
            f"JOIN rejected_{name} r USING ({_POS}) ORDER BY {_POS}",
            folder / name / "part-0.parquet",
        )


def _events(con: duckdb.DuckDBPyConnection) -> str:
    """Return the kept events in the order of the source.

    A scan keeps that order, a join does not: only where rows were rejected must they be sorted.
    """
    if _count(con, "rejected_events") == 0:
        return "parsed_events"
    return f"parsed_events ANTI JOIN rejected_events USING ({_POS}) ORDER BY {_POS}"


def _users(con: duckdb.DuckDBPyConnection, dataset: Dataset, events: str) -> str:
    """Return the users of the table and of the events, the former with what is known of them."""
    known = "u.onboarding"
    joins = ""
    if _count(con, "duckdb_tables() WHERE table_name = 'picks'"):
        known = "CASE WHEN u.user_id IS NULL THEN NULL ELSE coalesce(p.known, []) END"
        joins = f"LEFT JOIN picks p ON p.{_POS} = u.{_POS}"
    categories = len(dataset.users.categories) if dataset.users else 0
    numbers = len(dataset.users.numbers) if dataset.users else 0
    return (
        "SELECT coalesce(u.user_id, f.user_id) AS user_id, "
        f"coalesce(u.signed_up_at, f.first_event, (SELECT min(ts) FROM {events})) AS signed_up_at, "
        f"coalesce(u.categories, [{', '.join(['$$$$'] * categories)}]::VARCHAR[]) AS categories, "
        f"coalesce(u.numbers, [{', '.join(['$$NaN$$'] * numbers)}]::FLOAT[]) AS numbers, "
        f"coalesce({known}, []) AS onboarding "
        f"FROM (SELECT * FROM parsed_users ANTI JOIN rejected_users USING ({_POS})) u {joins} "
        f"FULL JOIN (SELECT user_id, min(ts) AS first_event FROM {events} GROUP BY 1) f "
        "ON f.user_id = u.user_id ORDER BY 1"
    )


def _items(dataset: Dataset, events: str, clean: CleanTables) -> str:
    """Return the items of the table; without one, every item that a user met or picked."""
    if dataset.items is not None:
        vectors = "".join(f", {vector(name)}" for name in dataset.items.vectors)
        return (
            f"SELECT item_id, text, tags{vectors} "
            f"FROM parsed_items ANTI JOIN rejected_items USING ({_POS}) ORDER BY item_id"
        )
    return (
        "SELECT item_id, '' AS text, []::VARCHAR[] AS tags FROM ("
        f"SELECT item_id FROM {events} UNION "
        f"SELECT unnest(onboarding) FROM read_parquet({literal(clean.users)})) ORDER BY item_id"
    )


def _count(con: duckdb.DuckDBPyConnection, source: str) -> int:
    row = con.execute(f"SELECT count(*) FROM {source}").fetchone()
    return 0 if row is None else int(row[0])


def _copy(con: duckdb.DuckDBPyConnection, select: str, path: Path) -> int:
    path.parent.mkdir(parents=True)
    row = con.execute(f"COPY ({select}) TO {literal(str(path))} {_PARQUET}").fetchone()
    return 0 if row is None else int(row[0])
