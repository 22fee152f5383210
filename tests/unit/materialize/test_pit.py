"""Point-in-time joins of large random histories, whichever way they are searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from materialize.stores import pit
from materialize.stores.parquet_sql import column_types
from transforms.engine import bounded_connection

ROWS, ASKED, KEYS = 20_000, 2_000, 40
INSTANT = pa.timestamp("us", "UTC")
# Before 1970 as well: buckets of negative times are cut towards zero.
FIRST, LAST = -40 * 86_400_000_000, 60 * 86_400_000_000


@pytest.fixture
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with bounded_connection(512) as connection:
        connection.execute("SET threads = 1")
        yield connection


def _history(folder: Path, rng: np.random.Generator) -> dict[str, npt.NDArray[np.int64]]:
    columns = {
        "a": rng.integers(0, KEYS // 4, ROWS),
        "b": rng.integers(0, 4, ROWS),
        "ts": rng.permutation(np.arange(FIRST, LAST, (LAST - FIRST) // ROWS)[:ROWS]),
    }
    columns["created"] = columns["ts"] + rng.integers(0, 5 * 86_400_000_000, ROWS)
    columns["value"] = np.arange(ROWS)
    table = pa.table(
        {
            name: pa.array(values).cast(INSTANT) if name in {"ts", "created"} else values
            for name, values in columns.items()
        }
    )
    pq.write_table(table, folder / "rows.parquet", row_group_size=5_000)
    return columns


def _search(
    columns: dict[str, npt.NDArray[np.int64]], spine: pa.Table, *, created: bool, ttl_us: int
) -> list[int | None]:
    found: list[int | None] = []
    asked = zip(*(spine.column(n).to_pylist() for n in ("key_a", "key_b", "moment")), strict=True)
    for a, b, moment in asked:
        seen = (columns["a"] == a) & (columns["b"] == b) & (columns["ts"] <= moment)
        if created:
            seen &= columns["created"] <= moment
        newest = max(np.flatnonzero(seen), key=lambda row: columns["ts"][row], default=None)
        fresh = newest is not None and (not ttl_us or moment - columns["ts"][newest] <= ttl_us)
        found.append(int(columns["value"][newest]) if fresh else None)
    return found


@pytest.mark.parametrize("created", ["all", "off"])
@pytest.mark.parametrize("way", ["near", "asof"])
@pytest.mark.parametrize("ttl_us", [0, 86_400_000_000])
def test_two_keys_and_any_way_of_searching_find_the_same(
    db: duckdb.DuckDBPyConnection, tmp_path: Path, created: pit.CreatedFilter, way: str, ttl_us: int
) -> None:
    rng = np.random.default_rng(5)
    columns = _history(tmp_path, rng)
    spine = pa.table(
        {
            "row": np.arange(ASKED),
            "moment": rng.integers(FIRST - 10**9, LAST, ASKED),
            "key_a": rng.integers(0, KEYS // 4 + 1, ASKED),
            "key_b": rng.integers(0, 4, ASKED),
        }
    )
    files = (tmp_path / "rows.parquet",)
    history = pit.History(
        view="v",
        files=files,
        exempt=0,
        keys={"a": "key_a", "b": "key_b"},
        timestamp="ts",
        created="created",
        fields={"value": "value"},
        types=column_types(db, files),
        ttl_us=ttl_us,
    )
    limits = {"_NEAR_ROWS": 0 if way == "near" else ROWS + 1, "_NEAR_RATIO": 0}
    with (
        mock.patch.multiple(pit, **limits),
        mock.patch.object(pit, "_nearest", wraps=pit._nearest) as nearest,
    ):
        found = pit.join(db, spine, history, created)
    assert nearest.called == (way == "near")
    assert found["value"].to_pylist() == _search(
        columns, spine, created=created == "all", ttl_us=ttl_us
    )


@pytest.mark.parametrize(
    ("moments", "keys"),
    [
        (np.full(100, LAST), np.zeros(100, np.int64)),
        (np.arange(LAST, LAST + 90), np.arange(90) % 2),
    ],
    ids=["one moment", "one bucket"],
)
def test_entity_rows_that_crowd_in_one_bucket_are_not_compared_with_its_rows(
    db: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    moments: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int64],
) -> None:
    """Skewed entity rows would cost one comparison each with all of a key's near rows."""
    _history(tmp_path, np.random.default_rng(6))
    files = (tmp_path / "rows.parquet",)
    spine = pa.table({"row": np.arange(len(keys)), "moment": moments, "key_a": keys})
    history = pit.History(
        view="v",
        files=files,
        exempt=0,
        keys={"a": "key_a"},
        timestamp="ts",
        created=None,
        fields={"value": "value"},
        types=column_types(db, files),
        ttl_us=0,
    )
    with (
        mock.patch.multiple(pit, _NEAR_ROWS=0, _NEAR_RATIO=0),
        mock.patch.object(pit, "_nearest", wraps=pit._nearest) as nearest,
    ):
        found = pit.join(db, spine, history, "off")
    assert not nearest.called
    assert found.column("value").null_count == 0
