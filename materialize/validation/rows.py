"""Faults of single rows: which to reject, which to keep and count, which to stop at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import duckdb

from materialize.validation.parsed import raw_vector, vector
from materialize.validation.report import Fault, TableCounts
from materialize.validation.sources import POSITION, SourceTable, quoted
from transforms.dataset import Dataset, ItemsTable

__all__ = ["check_rows"]

_EARLIEST = "TIMESTAMPTZ '1900-01-01 00:00:00+00'"
_POS = quoted(POSITION)
_REJECTED = "The rows went to rejected/."


@dataclass(frozen=True)
class _Check:
    """A condition on a parsed row ``e`` (and the rows joined to it) that marks a fault."""

    code: str
    column: str
    condition: str
    expected: str
    outcome: Literal["rejected", "kept", "fatal"] = "rejected"
    advice: str = _REJECTED


@dataclass(frozen=True)
class _Table:
    """What is checked in one table: row by row in order, then for repeated keys."""

    name: str
    source: SourceTable
    checks: tuple[_Check, ...]
    key: tuple[str, ...]
    key_columns: tuple[str, ...]
    joins: str = ""


def check_rows(
    con: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    tables: dict[str, SourceTable],
    now: datetime,
    *,
    cross: bool,
    step: Callable[[str], None],
) -> tuple[dict[str, TableCounts], list[Fault]]:
    """Find the faulty rows of all sound tables.

    Creates the temporary tables ``rejected_{events,users,items}`` (position, reason), and
    ``picks`` (position of a user, known onboarding items) where they can be checked.

    Parameters
    ----------
    cross : bool
        Compare tables with each other; False after a structural fault, when the ids of one table
        may be missing or of another type.
    step : callable
        Told the name of each step as it begins.

    Returns
    -------
    counts : dict of str to TableCounts
        Of the sound tables.
    faults : list of Fault
        Fatal and tolerable ones, in the order events, users, items.
    """
    counts: dict[str, TableCounts] = {}
    found: dict[str, list[Fault]] = {"events": [], "users": [], "items": []}
    for name in found:
        con.execute(f"CREATE TEMP TABLE rejected_{name} ({_POS} BIGINT, reason VARCHAR)")
    if "items" in tables and dataset.items is not None:
        step("check items")
        checked = _items(con, dataset.items, tables["items"])
        counts["items"], found["items"] = _find(con, checked)
    if "users" in tables:
        step("check users")
        checked = _users(con, dataset, tables, now, cross=cross)
        counts["users"], found["users"] = _find(con, checked)
    if "events" in tables:
        step("check events")
        checked = _events(con, dataset, tables, now, cross=cross)
        counts["events"], found["events"] = _find(con, checked)
        if counts["events"].kept == 0:
            found["events"].insert(0, _no_events(counts["events"], found["events"]))
    return counts, [fault for faults in found.values() for fault in faults]


def _items(con: duckdb.DuckDBPyConnection, config: ItemsTable, source: SourceTable) -> _Table:
    checks = [_null_id(config.item, "item_id")]
    for name, column in config.vectors.items():
        usual = con.execute(
            f"SELECT len({vector(name)}) FROM parsed_items WHERE {vector(name)} IS NOT NULL "
            "GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
        ).fetchone()
        width = usual[0] if usual else 0
        checks += [
            _Check(
                "vector_width",
                column,
                f"len(e.{vector(name)}) <> {width}",
                f"vectors of one width (most rows have {width} numbers)",
                "fatal",
                "Make the vectors again with one model.",
            ),
            _Check(
                "vector_not_finite",
                column,
                f"len(e.{raw_vector(name)}) > 0 AND e.{vector(name)} IS NULL",
                "finite 32-bit numbers, none null",
                "kept",
                "The items were kept without this vector.",
            ),
        ]
    return _Table("items", source, tuple(checks), ("item_id",), (config.item,))


def _users(
    con: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    tables: dict[str, SourceTable],
    now: datetime,
    *,
    cross: bool,
) -> _Table:
    config = dataset.users
    if config is None:
        raise ValueError("A data set without users table was given, one with it is expected.")
    checks = [_null_id(config.user, "user_id")]
    if config.signed_up_at is not None:
        checks += _time_bounds(config.signed_up_at.column, "signed_up_at", now)
    joins = ""
    if config.onboarding is not None and cross and "items" in tables:
        con.execute(
            "CREATE TEMP TABLE picks AS "
            f"SELECT {_POS}, list(pick ORDER BY place) AS known FROM ("
            f"SELECT {_POS}, unnest(onboarding) AS pick, "
            "generate_subscripts(onboarding, 1) AS place FROM parsed_users) p "
            f"SEMI JOIN ({_kept('items')}) i ON i.item_id = p.pick GROUP BY {_POS}"
        )
        joins = f"LEFT JOIN picks p ON p.{_POS} = e.{_POS}"
        checks.append(
            _Check(
                "unknown_onboarding_item",
                config.onboarding,
                "len(e.onboarding) > coalesce(len(p.known), 0)",
                "ids that the items table has",
                "kept",
                "The users were kept, the unknown picks left out.",
            )
        )
    return _Table("users", tables["users"], tuple(checks), ("user_id",), (config.user,), joins)


def _events(
    con: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    tables: dict[str, SourceTable],
    now: datetime,
    *,
    cross: bool,
) -> _Table:
    config = dataset.events
    time = config.timestamp.column
    checks = [
        _null_id(config.user, "user_id"),
        _null_id(config.item, "item_id"),
        _Check("null_timestamp", time, "e.ts IS NULL", "a timestamp in every row"),
        *_time_bounds(time, "ts", now),
    ]
    joins = ""
    if config.weight is not None:
        checks.append(
            _Check(
                "invalid_weight",
                config.weight,
                "NOT coalesce(e.weight > 0 AND isfinite(e.weight), false)",
                "a positive, finite 32-bit number",
            )
        )
    if cross and "items" in tables:
        con.execute(f"CREATE TEMP TABLE known_items AS SELECT item_id FROM ({_kept('items')})")
        joins += " LEFT JOIN known_items i ON i.item_id = e.item_id"
        checks.append(
            _Check(
                "unknown_item", config.item, "i.item_id IS NULL", "an id that the items table has"
            )
        )
    if cross and "users" in tables:
        con.execute(
            f"CREATE TEMP TABLE known_users AS SELECT user_id, signed_up_at FROM ({_kept('users')})"
        )
        joins += " LEFT JOIN known_users u ON u.user_id = e.user_id"
        checks += [
            _Check(
                "event_before_sign_up",
                time,
                "e.ts < u.signed_up_at",
                "an event at or after the user's sign-up",
            ),
            _Check(
                "unknown_user",
                config.user,
                "u.user_id IS NULL",
                "an id that the users table has",
                "kept",
                "The events were kept; their users have no demographics.",
            ),
        ]
    key_columns = (config.user, config.item, time)
    key = ("user_id", "item_id", "ts")
    return _Table("events", tables["events"], tuple(checks), key, key_columns, joins)


def _null_id(column: str, parsed: str) -> _Check:
    expected = "an id in every row: not null, not empty, an integer within 64 bits"
    return _Check("null_id", column, f"e.{parsed} IS NULL", expected)


def _time_bounds(column: str, parsed: str, now: datetime) -> tuple[_Check, _Check]:
    moment = f"TIMESTAMPTZ '{now.isoformat()}'"
    return (
        _Check(
            "timestamp_in_future",
            column,
            f"e.{parsed} > {moment}",
            f"a timestamp up to {now.isoformat()} (check the unit or the clock)",
        ),
        _Check(
            "timestamp_out_of_range",
            column,
            f"e.{parsed} < {_EARLIEST}",
            "a timestamp after the year 1900 (check the unit)",
        ),
    )


def _kept(name: str) -> str:
    return f"SELECT * FROM parsed_{name} ANTI JOIN rejected_{name} USING ({_POS})"


def _find(con: duckdb.DuckDBPyConnection, table: _Table) -> tuple[TableCounts, list[Fault]]:
    """Fill ``rejected_<table>`` and return the counts and faults of one table."""
    duplicate = _Check(
        "duplicate",
        ", ".join(table.key_columns),
        "",
        f"each {' + '.join(table.key_columns)} once",
        advice="The first row of each was kept, the others went to rejected/.",
    )
    checks = (*table.checks, duplicate)
    cases = " ".join(f"WHEN {c.condition} THEN {k}" for k, c in enumerate(table.checks))
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE faulty AS SELECT {_POS}, fault FROM ("
        f"SELECT e.{_POS}, CASE {cases} END AS fault FROM parsed_{table.name} e {table.joins}"
        ") WHERE fault IS NOT NULL"
    )
    _reject(con, table.name, table.checks, range(len(table.checks)))
    if _mark_duplicates(con, table, len(table.checks)):
        _reject(con, table.name, checks, [len(table.checks)])
        # A row is counted once: as rejected, not as kept with a remark.
        con.execute(
            f"DELETE FROM faulty f USING rejected_{table.name} r "
            f"WHERE f.{_POS} = r.{_POS} AND f.fault <> {len(table.checks)} "
            f"AND r.reason = 'duplicate'"
        )
    counted = con.execute("SELECT fault, count(*) FROM faulty GROUP BY 1 ORDER BY 1").fetchall()
    examples = _examples(con, table, checks, [fault for fault, _ in counted])
    faults = []
    rejected = 0
    for index, count in counted:
        check = checks[index]
        rejected += count if check.outcome == "rejected" else 0
        faults.append(
            Fault(
                check.code,
                "fatal" if check.outcome == "fatal" else "tolerable",
                table.name,
                check.column,
                count,
                examples[index],
                check.expected,
                check.advice,
            )
        )
    rows = table.source.rows
    return TableCounts(rows, rows - rejected, rejected), faults


def _reject(
    con: duckdb.DuckDBPyConnection, name: str, checks: Sequence[_Check], indices: Sequence[int]
) -> None:
    """Copy the marks of those checks that reject a row into ``rejected_<name>``."""
    reasons = " ".join(
        f"WHEN {k} THEN '{checks[k].code}'" for k in indices if checks[k].outcome == "rejected"
    )
    con.execute(
        f"INSERT INTO rejected_{name} SELECT {_POS}, reason FROM ("
        f"SELECT {_POS}, CASE fault {reasons} END AS reason FROM faulty) WHERE reason IS NOT NULL"
    )


def _mark_duplicates(con: duckdb.DuckDBPyConnection, table: _Table, index: int) -> bool:
    """Mark every row but the first of each repeated key; return whether there was one."""
    keys = ", ".join(table.key)
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE repeated AS SELECT {keys}, min({_POS}) AS first "
        f"FROM ({_kept(table.name)}) GROUP BY {keys} HAVING count(*) > 1"
    )
    row = con.execute("SELECT count(*) FROM repeated").fetchone()
    if row is None or row[0] == 0:
        return False
    con.execute(
        f"INSERT INTO faulty SELECT e.{_POS}, {index} FROM ({_kept(table.name)}) e "
        f"JOIN repeated r USING ({keys}) WHERE e.{_POS} <> r.first"
    )
    return True


def _examples(
    con: duckdb.DuckDBPyConnection,
    table: _Table,
    checks: Sequence[_Check],
    indices: Sequence[int],
) -> dict[int, tuple[str, ...]]:
    """Return for each fault its first five rows, as place and values."""
    places = {
        index: [
            row[0]
            for row in con.execute(
                f"SELECT {_POS} FROM faulty WHERE fault = {index} ORDER BY 1 LIMIT 5"
            ).fetchall()
        ]
        for index in indices
    }
    wanted = sorted({place for rows in places.values() for place in rows})
    if not wanted:
        return {}
    shown = list(table.key_columns)
    shown += [checks[k].column for k in indices if checks[k].column in table.source.columns]
    columns = list(dict.fromkeys(shown))
    selected = ", ".join(f"CAST({quoted(column)} AS VARCHAR)" for column in columns)
    rows = con.execute(
        f"SELECT * FROM (SELECT {table.source.position}, {selected} FROM {table.source.sql}) "
        f"WHERE {_POS} IN ({', '.join(map(str, wanted))})"
    ).fetchall()
    values = {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}

    def show(place: int, check: _Check) -> str:
        own = [*table.key_columns] + [check.column] * (check.column in table.source.columns)
        cells = (f"{c}={_short(values[place][c])}" for c in dict.fromkeys(own))
        return f"{table.source.place(place)}: {', '.join(cells)}"

    return {k: tuple(show(place, checks[k]) for place in rows) for k, rows in places.items()}


def _short(value: str | None) -> str:
    return "null" if value is None else repr(value if len(value) <= 60 else value[:57] + "...")


def _no_events(counts: TableCounts, faults: Sequence[Fault]) -> Fault:
    reasons = tuple(f"{f.code} {f.count:,}" for f in faults if f.severity == "tolerable")[:5]
    return Fault(
        "zero_events",
        "fatal",
        "events",
        "path",
        counts.rows_in,
        reasons or ("the table is empty",),
        f"at least one usable event; {counts.rows_in:,} rows were read and all rejected",
        "Correct the reasons shown as examples, in the data or in dataset.yaml.",
    )
