"""The point-in-time source against a row-by-row reference."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.errors import DataFault
from materialize.source import RawSource, RawView

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
INSTANT = pa.timestamp("us", tz="UTC")

Row = tuple[int, int, int, float]  # user, event hour, created hour, value


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
    pq.write_table(table[:half], folder / "a.parquet")
    pq.write_table(table[half:], folder / "b.parquet")


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
    for partition in range(source.partitions):
        for batch in source.batches(partition, batch_rows=3):
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
    partitions=st.integers(1, 3),
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
    source = _source(
        tmp_path_factory.mktemp("views"),
        views,
        start=None if start is None else _at(start),
        created_since=None if since is None else _at(since),
        end=_at(end),
        history=history,
    )
    source._partitions = partitions
    expected = _reference(views, start, since, end, history)
    assert source.count() == len(expected)
    assert _read(source) == expected


def test_all_partitions_together_are_all_rows_in_order_when_asked(tmp_path: Path) -> None:
    rows = [(u, h, h, float(u + h)) for u in range(40) for h in range(5)]
    source = _source(tmp_path, {"one": rows}, end=_at(5), history=True)
    keys = [
        (r["user_id"], r["event_timestamp"])
        for batch in source.batches(None, ordered=True)
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
        list(source.batches(None))
