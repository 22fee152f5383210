"""Every fault has its code, count, examples and message; fatal ones leave nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from materialize.validate import FatalFaults, Fault
from tests.unit.materialize.raw_tables import (
    DAY,
    NOW,
    STAMP,
    T0,
    UTC,
    Raw,
    changed,
    events,
    snapshot,
)

NAIVE = pa.timestamp("us")
Spoil = Callable[[Raw], None]


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path / "raw")


def put(table: str, column: str, values: Any) -> Spoil:
    """Return a change that replaces one column."""
    return lambda raw: getattr(raw, table).__setitem__(column, values)


def says(table: str, **fields: Any) -> Spoil:
    """Return a change to dataset.yaml."""
    return lambda raw: raw.says[table].update(fields)


def without(table: str, column: str) -> Spoil:
    return lambda raw: getattr(raw, table).pop(column)


def no_file(table: str) -> Spoil:
    return lambda raw: setattr(raw, table, None)


def garbage(raw: Raw) -> None:
    raw.write()
    (raw.root / "items.parquet").write_bytes(b"no parquet at all")
    raw.items = None


def emptied(raw: Raw) -> None:
    raw.events = {name: values[:0] for name, values in events().items()}


FATAL: dict[str, tuple[Spoil, str, str, str, int, str, str]] = {
    # name: (change, code, table, column, count, an example, words of the message)
    "missing file": (
        no_file("items"), "missing_file", "items", "path", 1,
        "items.parquet", r"expected: a Parquet file, a folder.*or a glob",
    ),
    "unset variable": (
        says("events", path="${NOWHERE_SET}/e.parquet"), "missing_file", "events", "path", 1,
        "'${NOWHERE_SET}/e.parquet'", r"the environment variable NOWHERE_SET set",
    ),
    "unreadable file": (
        garbage, "unreadable_file", "items", "path", 1,
        "items.parquet", r"Parquet files that share one schema",
    ),
    "missing column": (
        without("events", "weight"), "missing_column", "events", "weight", 6,
        "", r"the column 'weight'; the table has 'user', 'item', 'at', 'device'",
    ),
    "misspelt column": (
        says("users", numbers=["agee"]), "missing_column", "users", "agee", 4,
        "", r"Correct users\.numbers in dataset\.yaml: 'age' comes close",
    ),
    "string weight": (
        put("events", "weight", pa.array(["1", "x", "1", "1", "1", None])),
        "wrong_type", "events", "weight", 5, "x", r"expected: numbers; the column is VARCHAR",
    ),
    "float ids": (
        put("events", "user", pa.array([1.5, 1, 2, 2, 3, 3])),
        "wrong_type", "events", "user", 6, "1.5", r"integers or strings .*the column is DOUBLE",
    ),
    "float list of picks": (
        put("users", "picks", pa.array([[1.0], None, [], []])),
        "wrong_type", "users", "picks", 3, "[1.0]", r"lists of integers or strings",
    ),
    "text where a vector belongs": (
        put("items", "audio", pa.array(["a", "b", "c", "d"])),
        "wrong_type", "items", "audio", 4, "a", r"lists of numbers; the column is VARCHAR",
    ),
    "timestamp in words": (
        put("events", "at", pa.array(["yesterday"] * 6)),
        "wrong_type", "events", "at", 6, "yesterday", r"timestamps, dates, or integers with a unit",
    ),
    "timestamp without zone": (
        put("events", "at", pa.array([datetime(2024, 3, 1)] * 6, NAIVE)),
        "timestamp_without_time_zone", "events", "at", 6, "2024-03-01 00:00:00",
        r"(?s)timestamps with a time zone; .*\{column: at, timezone: UTC\}",
    ),
    "sign-up without zone": (
        put("users", "joined", pa.array([T0.date()] * 4)),
        "timestamp_without_time_zone", "users", "joined", 4, "2024-03-01",
        r"users\.signed_up_at in dataset\.yaml as \{column: joined, timezone: UTC\}",
    ),
    "integer timestamp without unit": (
        put("events", "at", pa.array([1_709_290_800] * 6)),
        "timestamp_without_unit", "events", "at", 6, "1709290800",
        r"s, ms or us since 1970-01-01 UTC",
    ),
    "unknown zone": (
        says("events", timestamp={"column": "at", "timezone": "Mars/Phobos"}),
        "unknown_time_zone", "events", "at", 1, "'Mars/Phobos'", r"an IANA time zone such as UTC",
    ),
    "user ids of another type": (
        put("users", "uid", pa.array(["u1", "u2", "u3", "u4"])),
        "id_type_mismatch", "users", "uid", 4, "users 'u1'",
        r"the type of events\.user \(int64\); the column holds string",
    ),
    "item ids of another type": (
        put("items", "iid", pa.array(["a", "b", "c", "d"])),
        "id_type_mismatch", "items", "iid", 4, "items 'a'", r"all integers or all strings",
    ),
    "picks of another type": (
        put("users", "picks", pa.array([["a"], None, [], []])),
        "id_type_mismatch", "users", "picks", 3, "users '[a]'",
        r"the type of events\.item \(int64\)",
    ),
    "vectors of two widths": (
        put("items", "audio", pa.array([[1.0, 2.0], [1.0], [3.0, 4.0], None])),
        "vector_width", "items", "audio", 1, "items.parquet row 1: iid='11', audio='[1.0]'",
        r"vectors of one width \(most rows have 2 numbers\)",
    ),
    "reserved column": (
        put("events", "file_row_number", pa.array(range(6))),
        "reserved_column", "events", "file_row_number", 6, "", r"Rename the column",
    ),
    "no rows": (
        emptied, "zero_events", "events", "path", 0,
        "the table is empty", r"at least one usable event",
    ),
    "no usable rows": (
        put("events", "weight", pa.array([0.0] * 6)),
        "zero_events", "events", "path", 6, "invalid_weight 6",
        r"6 rows were read and all rejected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FATAL)
def test_fatal_fault_is_raised_with_count_and_example(raw: Raw, name: str) -> None:
    spoil, code, table, column, count, example, words = FATAL[name]
    spoil(raw)
    with pytest.raises(FatalFaults, match=words) as caught:
        raw.validate()
    (fault,) = caught.value.faults
    assert (fault.code, fault.severity) == (code, "fatal")
    assert (fault.table, fault.column, fault.count) == (table, column, count)
    assert example in "; ".join(fault.examples)
    message = str(caught.value)
    assert f"[{code}] {table}.{column}: count {count:,}" in message
    assert "Nothing was written" in message
    assert not raw.out.exists()


@pytest.mark.parametrize("name", FATAL)
def test_fatal_fault_keeps_the_former_clean_tables(raw: Raw, name: str) -> None:
    former = Raw(raw.root)
    former.validate()
    before = snapshot(raw.out)
    for path in raw.root.glob("*.parquet"):
        path.unlink()
    FATAL[name][0](raw)
    with pytest.raises(FatalFaults):
        raw.validate()
    assert snapshot(raw.out) == before
    former.clean.require()


def test_all_fatal_faults_are_reported_together(raw: Raw) -> None:
    for name in (
        "string weight",
        "sign-up without zone",
        "misspelt column",
        "vectors of two widths",
    ):
        FATAL[name][0](raw)
    raw.says["events"]["context"] = ["device", "shop"]
    with pytest.raises(FatalFaults, match=r"Data set 'tiny' cannot be used: 5 fatal") as caught:
        raw.validate()
    assert [(f.code, f.column) for f in caught.value.faults] == [
        ("wrong_type", "weight"),
        ("missing_column", "shop"),
        ("timestamp_without_time_zone", "joined"),
        ("missing_column", "agee"),
        ("vector_width", "audio"),
    ]


def test_zero_events_are_found_beside_a_fault_of_another_table(raw: Raw) -> None:
    emptied(raw)
    FATAL["missing file"][0](raw)
    with pytest.raises(FatalFaults) as caught:
        raw.validate()
    assert [f.code for f in caught.value.faults] == ["missing_file", "zero_events"]


def repeated(raw: Raw) -> None:
    raw.events = {name: pa.concat_arrays([v, v[1:3]]) for name, v in events().items()}


TOLERABLE: dict[str, tuple[Spoil, str, str, str, str, list[int]]] = {
    # name: (change, code, table, column, an example, rows that are rejected)
    "null user id": (
        put("events", "user", changed(events()["user"], {1: None, 4: None})),
        "null_id", "events", "user", "row 1: user=null, item='11'", [1, 4],
    ),
    "null item id": (
        put("events", "item", changed(events()["item"], {5: None})),
        "null_id", "events", "item", "row 5: user='3', item=null", [5],
    ),
    "null timestamp": (
        put("events", "at", changed(events()["at"], {2: None})),
        "null_timestamp", "events", "at", "row 2: user='2', item='10', at=null", [2],
    ),
    "timestamp in the future": (
        put("events", "at", changed(events()["at"], {0: NOW + DAY})),
        "timestamp_in_future", "events", "at", "at='2024-06-02 00:00:00+00'", [0],
    ),
    "timestamp long ago": (
        put("events", "at", changed(events()["at"], {3: datetime(1850, 1, 1, tzinfo=UTC)})),
        "timestamp_out_of_range", "events", "at", "at='1850-01-01 00:00:00+00'", [3],
    ),
    "event before sign-up": (
        put("users", "joined", pa.array([T0 - DAY, T0 + 2.5 * DAY, T0, T0], STAMP)),
        "event_before_sign_up", "events", "at", "row 2: user='2', item='10'", [2],
    ),
    "unknown item": (
        put("events", "item", changed(events()["item"], {4: 99})),
        "unknown_item", "events", "item", "row 4: user='3', item='99'", [4],
    ),
    "user that is not in the table": (
        put("events", "user", changed(events()["user"], {4: 77, 5: 77})),
        "unknown_user", "events", "user", "row 4: user='77'", [],
    ),
    "zero, negative, null, infinite and NaN weights": (
        put("events", "weight", pa.array([0.0, -1.0, None, float("inf"), float("nan"), 1.0])),
        "invalid_weight", "events", "weight", "row 2: user='2', item='10', at=", [0, 1, 2, 3, 4],
    ),
    "weight beyond 32 bits": (
        put("events", "weight", pa.array([1e300, 1e-300, 1.0, 1.0, 1.0, 1.0])),
        "invalid_weight", "events", "weight", "weight='1e+300'", [0, 1],
    ),
    "repeated event": (
        repeated,
        "duplicate", "events", "user, item, at", "row 6: user='1', item='11'", [6, 7],
    ),
    "repeated user": (
        put("users", "uid", pa.array([1, 2, 3, 3])),
        "duplicate", "users", "uid", "row 3: uid='3'", [3],
    ),
    "null user row": (
        put("users", "uid", pa.array([1, 2, 3, None])),
        "null_id", "users", "uid", "row 3: uid=null", [3],
    ),
    "sign-up in the future": (
        put("users", "joined", pa.array([T0 - DAY, T0 - DAY, T0 - DAY, NOW + DAY], STAMP)),
        "timestamp_in_future", "users", "joined", "row 3: uid='4', joined='2024-06-02", [3],
    ),
    "repeated item": (
        put("items", "iid", pa.array([10, 11, 12, 10])),
        "duplicate", "items", "iid", "row 3: iid='10'", [3],
    ),
    "null item row": (
        put("items", "iid", pa.array([10, 11, 12, None])),
        "null_id", "items", "iid", "row 3: iid=null", [3],
    ),
    "pick that is no item": (
        put("users", "picks", pa.array([[10, 99], [98], [], []])),
        "unknown_onboarding_item", "users", "picks", "row 0: uid='1', picks='[10, 99]'", [],
    ),
    "vector with NaN": (
        put("items", "audio", pa.array([[1.0, float("nan")], [1.0, 2.0], [3.0, None], None])),
        "vector_not_finite", "items", "audio", "row 0: iid='10', audio='[1.0, nan]'", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLERABLE)
def test_tolerable_fault_is_counted_shown_and_rejected(raw: Raw, name: str) -> None:
    spoil, code, table, column, example, rejected = TOLERABLE[name]
    spoil(raw)
    report = raw.validate()
    (fault,) = report.faults
    assert (fault.code, fault.severity) == (code, "tolerable")
    assert (fault.table, fault.column) == (table, column)
    assert any(example in shown for shown in fault.examples), fault.examples
    assert f"[{code}] {table}.{column}: count {fault.count:,}" in "\n".join(report.as_table())
    given = pa.table(getattr(raw, table)).to_pylist()
    counts = report.tables[table]
    assert (counts.rows_in, counts.rejected) == (len(given), len(rejected))
    assert counts.kept == len(given) - len(rejected)
    if rejected:
        assert fault.count == len(rejected)
        assert "rejected/" in fault.advice
        # repr, because NaN differs from itself.
        expected = [repr({**given[k], "reason": code}) for k in rejected]
        assert list(map(plain, raw.rows(table, "rejected"))) == list(map(plain, expected))
    else:
        assert "kept" in fault.advice
        assert not (raw.out / "rejected" / table).exists()


def plain(row: Any) -> str:
    """Return a row as text in which all UTC clocks look alike."""
    return re.sub(r"tzinfo=[^)]*\)?\)", "tzinfo=UTC)", row if isinstance(row, str) else repr(row))


def test_warnings_change_nothing_but_what_they_say(raw: Raw) -> None:
    for name in ("pick that is no item", "vector with NaN", "user that is not in the table"):
        TOLERABLE[name][0](raw)
    report = raw.validate()
    assert {f.code: f.count for f in report.faults} == {
        "unknown_user": 2,
        "unknown_onboarding_item": 2,
        "vector_not_finite": 2,
    }
    people = {row["user_id"]: row for row in raw.rows("users")}
    assert (people[1]["onboarding"], people[2]["onboarding"]) == ([10], [])
    assert report.tables["users"].added == 1
    assert people[77]["categories"] == [""]
    assert people[77]["signed_up_at"] == T0 + 4 * DAY
    assert [row["vec_audio"] for row in raw.rows("items")] == [None, [1.0, 2.0], None, None]


def test_a_row_with_several_faults_is_rejected_once_for_the_first(raw: Raw) -> None:
    raw.events["user"] = changed(raw.events["user"], {0: None})
    raw.events["item"] = changed(raw.events["item"], {0: 99})
    raw.events["weight"] = changed(raw.events["weight"], {0: -1.0, 1: -1.0})
    report = raw.validate()
    assert [(f.code, f.count) for f in report.faults] == [("null_id", 1), ("invalid_weight", 1)]
    assert report.tables["events"].rejected == 2


def test_a_repeated_event_of_an_unknown_user_is_counted_once(raw: Raw) -> None:
    raw.drop("items")
    raw.events = {n: pa.concat_arrays([v[:1], v[:1], v[1:]]) for n, v in events().items()}
    raw.users["uid"] = pa.array([5, 6, 7, 8])
    report = raw.validate()
    assert {f.code: f.count for f in report.faults} == {"duplicate": 1, "unknown_user": 6}


def test_examples_are_at_most_five(raw: Raw) -> None:
    raw.says["events"].pop("weight")
    raw.events = {n: pa.concat_arrays([v] * 3) for n, v in events().items()}
    (fault,) = raw.validate().faults
    assert fault.count == 12
    assert len(fault.examples) == 5


def test_fault_says_what_was_given_expected_and_done() -> None:
    fault = Fault("c", "fatal", "events", "x", 1234, ("a", "b"), "numbers", "Cast it.")
    assert str(fault).split("\n") == [
        "[c] events.x: count 1,234; examples: a; b",
        "    expected: numbers",
        "    Cast it.",
    ]
