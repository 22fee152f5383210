"""Faults that the files and columns themselves have, found without reading the rows' meaning."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb

from materialize.validation.report import Fault
from materialize.validation.sources import (
    Kind,
    SourceTable,
    accepts,
    id_type,
    is_integer_time,
    is_naive_time,
    literal,
    matching_files,
    open_table,
    quoted,
)
from transforms.dataset import Dataset, EventsTable, ItemsTable, TimeColumn, UsersTable

__all__ = ["Role", "roles_of", "structure_faults"]

_EXPECTED: dict[Kind, str] = {
    "id": "integers or strings (a float loses digits above 2**53)",
    "key": "integers or strings",
    "time": "timestamps, dates, or integers with a unit",
    "number": "numbers",
    "category": "strings, numbers or booleans",
    "tags": "strings, integers, or lists of them",
    "ids": "lists of integers or strings",
    "vector": "lists of numbers",
}
_RESERVED = ("file_index", "file_row_number")


@dataclass(frozen=True)
class Role:
    """What a column is for: the field of dataset.yaml that names it, and how it is read."""

    field: str
    column: str
    kind: Kind
    time: TimeColumn | None = None


def roles_of(table: EventsTable | UsersTable | ItemsTable) -> tuple[Role, ...]:
    """Return every column that dataset.yaml names for a table, in the YAML's order."""
    if isinstance(table, EventsTable):
        roles = [
            Role("events.user", table.user, "id"),
            Role("events.item", table.item, "id"),
            Role("events.timestamp", table.timestamp.column, "time", table.timestamp),
        ]
        optional: tuple[tuple[str, str | None, Kind], ...] = (
            ("events.weight", table.weight, "number"),
            ("events.session", table.session, "key"),
            ("events.service", table.service, "category"),
        )
        roles += [Role(field, column, kind) for field, column, kind in optional if column]
        roles += [Role("events.context", column, "category") for column in table.context]
    elif isinstance(table, UsersTable):
        roles = [Role("users.user", table.user, "id")]
        if table.signed_up_at:
            column = table.signed_up_at.column
            roles.append(Role("users.signed_up_at", column, "time", table.signed_up_at))
        roles += [Role("users.categories", column, "category") for column in table.categories]
        roles += [Role("users.numbers", column, "number") for column in table.numbers]
        if table.onboarding:
            roles.append(Role("users.onboarding", table.onboarding, "ids"))
    else:
        roles = [Role("items.item", table.item, "id")]
        roles += [Role("items.text", column, "category") for column in table.text]
        if table.tags:
            roles.append(Role("items.tags", table.tags.column, "tags"))
        roles += [
            Role(f"items.vectors.{name}", column, "vector")
            for name, column in table.vectors.items()
        ]
    return tuple(roles)


def structure_faults(
    con: duckdb.DuckDBPyConnection, dataset: Dataset
) -> tuple[dict[str, SourceTable], list[Fault]]:
    """Open the tables and check files, columns and types.

    Returns
    -------
    tables : dict of str to SourceTable
        Those whose rows can be read: no fault concerns them alone.
    faults : list of Fault
        All fatal, in the order events, users, items; then ids that do not match across tables.
    """
    sound: dict[str, SourceTable] = {}
    faults: list[Fault] = []
    for name, config in _given(dataset):
        table = _open(con, name, config.path)
        if isinstance(table, Fault):
            faults.append(table)
            continue
        found = [f for role in roles_of(config) for f in _role_faults(con, name, table, role)]
        found += [
            Fault(
                "reserved_column",
                "fatal",
                name,
                column,
                table.rows,
                (),
                f"no column named {' or '.join(_RESERVED)} (the names number the rows)",
                "Rename the column.",
            )
            for column in table.columns
            if column.lower() in _RESERVED
        ]
        if not found:
            sound[name] = table
        faults += found
    faults += _mismatches(con, dataset, sound)
    return sound, faults


def _given(dataset: Dataset) -> Iterator[tuple[str, EventsTable | UsersTable | ItemsTable]]:
    yield "events", dataset.events
    if dataset.users is not None:
        yield "users", dataset.users
    if dataset.items is not None:
        yield "items", dataset.items


def _open(con: duckdb.DuckDBPyConnection, name: str, path: str) -> SourceTable | Fault:
    unset = sorted(set(re.findall(r"\$\{(\w+)\}", path)))
    if unset:
        return Fault(
            "missing_file",
            "fatal",
            name,
            "path",
            1,
            (repr(path),),
            f"the environment variable {', '.join(unset)} set",
            f"Set {', '.join(unset)} to the folder that holds the data.",
        )
    files = matching_files(path)
    if not files:
        where = Path(path).absolute()
        return Fault(
            "missing_file",
            "fatal",
            name,
            "path",
            1,
            (repr(path),),
            f"a Parquet file, a folder with *.parquet files, or a glob that matches some: {where}",
            f"Correct {name}.path in dataset.yaml or put the file there.",
        )
    try:
        return open_table(con, files)
    except duckdb.Error as exc:
        return Fault(
            "unreadable_file",
            "fatal",
            name,
            "path",
            len(files),
            files[:5],
            "Parquet files that share one schema",
            f"Write the file again. DuckDB says: {str(exc).splitlines()[0]}",
        )


def _role_faults(
    con: duckdb.DuckDBPyConnection, name: str, table: SourceTable, role: Role
) -> Iterator[Fault]:
    type_ = table.columns.get(role.column)
    if type_ is None:
        near = difflib.get_close_matches(role.column, table.columns, 1, cutoff=0.5)
        yield Fault(
            "missing_column",
            "fatal",
            name,
            role.column,
            table.rows,
            (),
            f"the column {role.column!r}; the table has {', '.join(map(repr, table.columns))}",
            f"Correct {role.field} in dataset.yaml"
            + (f": {near[0]!r} comes close." if near else "."),
        )
    elif not accepts(role.kind, type_):
        yield Fault(
            "wrong_type",
            "fatal",
            name,
            role.column,
            *_values(con, table, role.column),
            f"{_EXPECTED[role.kind]}; the column is {type_}",
            f"Cast the column, or name another under {role.field} in dataset.yaml.",
        )
    elif role.time is not None:
        yield from _time_faults(con, name, table, role, role.time)


def _time_faults(
    con: duckdb.DuckDBPyConnection, name: str, table: SourceTable, role: Role, time: TimeColumn
) -> Iterator[Fault]:
    type_ = table.columns[time.column]
    field = f"{role.field} in dataset.yaml"
    if is_integer_time(type_) and time.unit is None:
        yield Fault(
            "timestamp_without_unit",
            "fatal",
            name,
            time.column,
            *_values(con, table, time.column),
            f"a unit of the integers (column is {type_}): s, ms or us since 1970-01-01 UTC",
            f"Write {field} as {{column: {time.column}, unit: s}}.",
        )
    elif is_naive_time(type_) and time.timezone is None:
        yield Fault(
            "timestamp_without_time_zone",
            "fatal",
            name,
            time.column,
            *_values(con, table, time.column),
            f"timestamps with a time zone; the column is {type_}",
            f"Write {field} as {{column: {time.column}, timezone: UTC}}, or the IANA zone that "
            "the clock showed.",
        )
    elif time.timezone is not None and not _zone_known(con, time.timezone):
        yield Fault(
            "unknown_time_zone",
            "fatal",
            name,
            time.column,
            1,
            (repr(time.timezone),),
            "an IANA time zone such as UTC or Europe/Rome",
            f"Correct the timezone of {field}.",
        )


def _zone_known(con: duckdb.DuckDBPyConnection, zone: str) -> bool:
    found = con.execute("SELECT count(*) FROM pg_timezone_names() WHERE name = ?", [zone])
    row = found.fetchone()
    return row is not None and row[0] > 0


def _values(
    con: duckdb.DuckDBPyConnection, table: SourceTable, column: str
) -> tuple[int, tuple[str, ...]]:
    """Return how many values a column has, and the first distinct ones as SQL prints them."""
    name = quoted(column)
    counted = con.execute(f"SELECT count({name}) FROM {table.sql}").fetchone()
    shown = con.execute(
        f"SELECT DISTINCT v FROM (SELECT CAST({name} AS VARCHAR) AS v FROM {table.sql} "
        f"WHERE {name} IS NOT NULL LIMIT 1000) ORDER BY v LIMIT 5"
    ).fetchall()
    return (counted[0] if counted else 0), tuple(row[0][:80] for row in shown)


def _mismatches(
    con: duckdb.DuckDBPyConnection, dataset: Dataset, sound: dict[str, SourceTable]
) -> Iterator[Fault]:
    """Yield a fault for each id column whose type is not that of the events'."""
    if "events" not in sound:
        return
    pairs: list[tuple[str, str, str]] = []
    if dataset.users is not None and "users" in sound:
        pairs.append((dataset.events.user, "users", dataset.users.user))
        if dataset.users.onboarding is not None:
            pairs.append((dataset.events.item, "users", dataset.users.onboarding))
    if dataset.items is not None and "items" in sound:
        pairs.append((dataset.events.item, "items", dataset.items.item))
    for own, other_table, other in pairs:
        events, table = sound["events"], sound[other_table]
        ours, theirs = id_type(events.columns[own]), id_type(table.columns[other])
        if ours is None or theirs is None or ours == theirs:
            continue
        count, values = _values(con, table, other)
        examples = tuple(f"events {literal(v)}" for v in _values(con, events, own)[1][:2])
        yield Fault(
            "id_type_mismatch",
            "fatal",
            other_table,
            other,
            count,
            examples + tuple(f"{other_table} {literal(v)}" for v in values[:3]),
            f"the type of events.{own} ({ours}); the column holds {theirs}",
            "Write both columns with one type: all integers or all strings.",
        )
