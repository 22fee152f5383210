"""The point-in-time source against a row-by-row reference."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.errors import DataFault
from materialize import exchange as exchange_module
from materialize.exchange import Exchange
from materialize.source import RawSource, RawView

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
INSTANT = pa.timestamp("us", tz="UTC")

Row = tuple[int, int, int, float]  # user, event hour, created hour, value


@pytest.fixture(scope="module", autouse=True)
def _small_steps() -> Iterator[None]:
    """Let a handful of rows make many reads, stretches and pieces."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "_READ_ROWS": 3,
            "_STRETCH_ROWS": 5,
            "_PIECE_BYTES": 100,
            "_PART_BYTES": 0,
        }.items():
            patch.setattr(exchange_module, name, value)
        yield


def _write(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "user_id": pa.array([r[0] for r in rows], pa.int64()),
            "value": pa.array([[r[3], r[3] + 0.5] for r in rows], pa.list_(pa.float32())),
            "event_timestamp": pa.array([_at(r[1]) for r in rows], INSTANT),
            "created_timestamp": pa.array([_at(r[2]) for r in rows], INSTANT),
        }
    )
    half = len(rows) // 2
    pq.write_table(table[:half], folder / "a.parquet", row_group_size=4)
    pq.write_table(table[half:], folder / "b.parquet", row_group_size=4)


def _at(hour: int) -> dt.datetime:
    return EPOCH + dt.timedelta(hours=hour)


def _source(root: Path, views: dict[str, list[Row]], **options: Any) -> RawSource:
    raw = []
    for name, rows in views.items():
        _write(root / name, rows)
        raw.append(RawView(name, root / name, ("value",), "event_timestamp", "created_timestamp"))
    return RawSource(raw, memory_limit_mb=256, spill=root / "spill", **options)


def _read(source: RawSource) -> dict[tuple[int, dt.datetime], list[float | None]]:
    found: dict[tuple[int, dt.datetime], list[float | None]] = {}
    for batch in source.batches(batch_rows=3):
        for row in batch.to_pylist():
            key = (row["user_id"], row["event_timestamp"])
            assert key not in found
            found[key] = [
                None if row[f"{v.name}__value"] is None else row[f"{v.name}__value"][0]
                for v in source.views
            ]
    return found


def _reference(
    views: dict[str, list[Row]],
    start: int | None,
    since: int | None,
    end: int,
    history: bool,
) -> dict[tuple[int, dt.datetime], list[float | None]]:
    """For each moment of a user: each view's newest row at it, created last on a tie."""
    moments: dict[int, set[int]] = {}
    new: dict[int, int] = {}  # user -> earliest moment of a new row
    for rows in views.values():
        for user, hour, created, _ in rows:
            if hour >= end:
                continue
            moments.setdefault(user, set()).add(hour)
            late = start is not None and since is not None and created >= since
            if start is None or hour >= start or late:
                new[user] = min(hour, new.get(user, hour))
    moments = {user: {h for h in moments[user] if h >= first} for user, first in new.items()}
    answer = {}
    for user, hours in moments.items():
        for hour in hours if history else {max(hours)}:
            values: list[float | None] = []
            for rows in views.values():
                known = [r for r in rows if r[0] == user and r[1] <= hour]
                best = max(known, key=lambda r: (r[1], r[2]), default=None)
                values.append(None if best is None else float(np.float32(best[3])))
            answer[user, _at(hour)] = values
    return answer


_ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 30), st.integers(0, 99)),
    min_size=1,
    max_size=25,
    unique_by=lambda r: (r[0], r[1], r[2]),
)


@settings(max_examples=25)
@given(
    a=_ROWS,
    b=_ROWS,
    start=st.none() | st.integers(0, 8),
    since=st.none() | st.integers(0, 30),
    end=st.integers(0, 14),
    history=st.booleans(),
    partitions=st.integers(1, 4),
)
def test_every_row_holds_what_was_known_at_its_moment(
    tmp_path_factory: pytest.TempPathFactory,
    a: list[Row],
    b: list[Row],
    start: int | None,
    since: int | None,
    end: int,
    history: bool,
    partitions: int,
) -> None:
    views = {"one": a, "two": b}
    folder = tmp_path_factory.mktemp("views")
    source = _source(
        folder,
        views,
        start=None if start is None else _at(start),
        created_since=None if since is None else _at(since),
        end=_at(end),
        history=history,
    )
    expected = _reference(views, start, since, end, history)
    assert source.count() == len(expected)
    assert _read(source) == expected

    exchange = Exchange(source, folder / "exchange", partitions)
    exchange.build(progress=False)
    parts = [_read(exchange.partition(n)) for n in range(partitions)]
    users = [{user for user, _ in part} for part in parts]
    assert sum(map(len, users)) == len(set().union(*users)), "a user is in two partitions"
    assert {key: row for part in parts for key, row in part.items()} == expected


def test_all_rows_come_in_order_when_asked(tmp_path: Path) -> None:
    rows = [(u, h, h, float(u + h)) for u in range(40) for h in range(5)]
    source = _source(tmp_path, {"one": rows}, end=_at(5), history=True)
    keys = [
        (r["user_id"], r["event_timestamp"])
        for batch in source.batches(ordered=True)
        for r in batch.to_pylist()
    ]
    assert keys == sorted(keys)
    assert len(keys) == 200


def test_fingerprint_follows_rows_and_range(tmp_path: Path) -> None:
    rows = [(1, 0, 0, 1.0), (2, 1, 1, 2.0)]
    source = _source(tmp_path, {"one": rows}, end=_at(5))
    before = source.fingerprint
    assert before == source.fingerprint

    def until(hour: int) -> str:
        spill = tmp_path / "spill"
        return RawSource(source.views, end=_at(hour), memory_limit_mb=256, spill=spill).fingerprint

    assert until(6) == before, "no raw row lies between: the same rows would come"
    assert until(1) != before, "the row at hour 1 would not come"
    pq.write_table(pq.read_table(tmp_path / "one" / "a.parquet"), tmp_path / "one" / "c.parquet")
    assert source.fingerprint != before


def test_a_row_that_stands_twice_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, {"one": [(1, 0, 0, 1.0), (1, 0, 0, 2.0)]}, end=_at(5))
    with pytest.raises(DataFault, match="holds a user twice"):
        list(source.batches())


def _twenty(root: Path) -> RawSource:
    rows = [(u, h, h, float(u)) for u in range(20) for h in range(3)]
    return _source(root, {"one": rows, "two": rows[:5]}, end=_at(9))


def test_partitions_are_kept_when_a_run_resumes(tmp_path: Path) -> None:
    source, folder = _twenty(tmp_path), tmp_path / "exchange"
    Exchange(source, folder, 4).build(progress=False)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}
    assert before
    Exchange(source, folder, 4).build(progress=False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")} == before


def test_an_exchange_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    source, folder = _twenty(tmp_path), tmp_path / "exchange"
    half = folder.with_name("exchange.tmp") / "one"
    half.mkdir(parents=True)
    (half / "000000.arrow").write_bytes(b"cut short")
    exchange = Exchange(source, folder, 4)
    exchange.build(progress=False)
    assert sum(len(_read(exchange.partition(n))) for n in range(4)) == 20
    assert not half.exists()


def test_only_rows_that_can_matter_are_written(tmp_path: Path) -> None:
    source, folder = _twenty(tmp_path), tmp_path / "exchange"
    Exchange(source, folder, 4).build(progress=False)
    rows = 0
    for piece in (folder / "one").iterdir():
        with pa.ipc.open_file(piece) as file:
            assert file.num_record_batches == 4
            rows += file.read_all().num_rows
    assert rows == 20, "of 60"


def test_a_single_partition_writes_nothing(tmp_path: Path) -> None:
    source, folder = _twenty(tmp_path), tmp_path / "exchange"
    exchange = Exchange(source, folder, 1)
    exchange.build(progress=False)
    assert len(_read(exchange.partition(0))) == 20
    assert not folder.exists()


def test_a_row_that_stands_twice_is_refused_in_its_partition(tmp_path: Path) -> None:
    rows = [(u, 0, 0, 1.0) for u in range(9)]
    source = _source(tmp_path, {"one": [*rows, (1, 0, 0, 2.0)]}, end=_at(5))
    exchange = Exchange(source, tmp_path / "exchange", 3)
    exchange.build(progress=False)
    parts = [exchange.partition(number).batches() for number in range(3)]
    with pytest.raises(DataFault, match="holds a user twice"):
        list(chain(*parts))


def test_a_row_without_a_created_time_counts(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    table = pa.table(
        {
            "user_id": pa.array([1, 2], pa.int64()),
            "value": pa.array([[1.0], [2.0]], pa.list_(pa.float32())),
            "event_timestamp": pa.array([_at(0), _at(1)], INSTANT),
            "created_timestamp": pa.array([None, _at(1)], INSTANT),
        }
    )
    pq.write_table(table, folder / "a.parquet")
    view = RawView("one", folder, ("value",), "event_timestamp", "created_timestamp")
    source = RawSource([view], end=_at(5), memory_limit_mb=256, spill=tmp_path / "spill")
    expected = {(1, _at(0)): [1.0], (2, _at(1)): [2.0]}
    assert _read(source) == expected
    exchange = Exchange(source, tmp_path / "exchange", 2)
    exchange.build(progress=False)
    assert _read(exchange.partition(0)) | _read(exchange.partition(1)) == expected


def test_event_time_may_stand_for_created_time(tmp_path: Path) -> None:
    rows = [(u, u, 99, float(u)) for u in range(6)]
    source = _source(tmp_path, {"one": rows}, end=_at(9))
    view = RawView("one", source.views[0].folder, ("value",), "event_timestamp", "event_timestamp")
    source = RawSource([view], end=_at(9), memory_limit_mb=256, spill=tmp_path / "spill")
    exchange = Exchange(source, tmp_path / "exchange", 3)
    exchange.build(progress=False)
    assert sum(len(_read(exchange.partition(n))) for n in range(3)) == 6


def test_a_file_without_a_column_is_named(tmp_path: Path) -> None:
    source = _source(tmp_path, {"one": [(u, 0, 0, 1.0) for u in range(9)]}, end=_at(5))
    path = tmp_path / "one" / "b.parquet"
    columns = pq.read_table(path)
    exchange = Exchange(source, tmp_path / "exchange", 3)
    pq.write_table(columns.drop_columns("value"), path)
    with pytest.raises(DataFault, match=r"b\.parquet lacks the columns value of view 'one'"):
        exchange.build(progress=False)


def test_types_that_arrow_alone_knows_become_plain_ones(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    moments = [_at(h) for h in range(4)]
    words = pa.array(["a", "b", "a", "c"])
    table = pa.table(
        {
            "user_id": pa.array(["u", "v", "w", "x"], pa.large_string()),
            "value": pa.array([[1.0], [2.0], None, [4.0]], pa.large_list(pa.float32())),
            "word": words.dictionary_encode(),
            "event_timestamp": pa.array(moments, pa.timestamp("ns", "UTC")),
            "created_timestamp": pa.array(moments, pa.timestamp("ms", "Asia/Kathmandu")),
        }
    )
    pq.write_table(table, folder / "a.parquet")
    view = RawView("one", folder, ("value", "word"), "event_timestamp", "created_timestamp")
    source = RawSource([view], end=_at(9), memory_limit_mb=256, spill=tmp_path / "spill")
    exchange = Exchange(source, tmp_path / "exchange", 2)
    exchange.build(progress=False)
    tables = [pa.Table.from_batches(exchange.partition(n).batches()) for n in range(2)]
    found = pa.concat_tables(tables).sort_by("user_id")
    whole = pa.Table.from_batches(source.batches()).sort_by("user_id")
    assert found.to_pylist() == whole.to_pylist()
    assert found.schema.types == [
        *(pa.string(), pa.timestamp("us", "UTC"), pa.list_(pa.float32()), pa.string())
    ]
