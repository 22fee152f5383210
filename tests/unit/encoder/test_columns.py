"""Arrow tables as raw batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from encoder.columns import batch_from_arrow
from encoder.errors import MalformedInput


def _table(**columns: pa.Array) -> pa.Table:
    return pa.table(columns)


def test_null_lists_are_absent_users_and_null_strings_are_missing() -> None:
    table = _table(
        user_id=pa.array([7, 8, 9]),
        a=pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64())),
        t=pa.array([["x", None], ["", "y"], None], pa.list_(pa.string())),
        s=pa.array(["m", None, "m"]),
    )
    batch = batch_from_arrow(table, {"a": 2}, {"t": 2}, ["s"], "user_id")
    assert batch.users == ("7", "8", "9")
    assert batch.columns["a"].values.dtype == np.float32
    assert batch.columns["a"].values.tolist() == [[1, 2], [0, 0], [3, 4]]
    assert batch.columns["a"].valid.tolist() == [True, False, True]
    assert batch.columns["t"].values.tolist() == [["x", ""], ["", "y"], ["", ""]]
    assert batch.columns["s"].values.tolist() == ["m", "", "m"]
    assert batch.columns["s"].valid.tolist() == [True, False, True]


def test_timestamps_become_microseconds_whatever_their_unit() -> None:
    for unit in ("s", "ms", "us", "ns"):
        table = _table(s=pa.array([1], pa.timestamp("s", "UTC")).cast(pa.timestamp(unit, "UTC")))
        assert batch_from_arrow(table, {}, {}, ["s"]).columns["s"].values.tolist() == [1_000_000]


def test_chunks_and_slices_do_not_move_rows() -> None:
    column = pa.array([[float(k)] for k in range(10)], pa.list_(pa.float32()))
    table = pa.concat_tables([_table(a=column[:3]), _table(a=column[3:])])
    values = batch_from_arrow(table.slice(2, 5), {"a": 1}, {}, []).columns["a"].values
    assert values[:, 0].tolist() == [2, 3, 4, 5, 6]


def test_fixed_size_lists_with_nulls_keep_their_rows() -> None:
    column = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    values = batch_from_arrow(_table(a=column), {"a": 2}, {}, []).columns["a"].values
    assert values.tolist() == [[1, 2], [0, 0], [3, 4]]


def test_another_width_names_row_and_column() -> None:
    table = _table(a=pa.array([None, [1.0, 2.0], [1.0]], pa.list_(pa.float32())))
    with pytest.raises(MalformedInput, match="Row 2, column 'a': a list of 1 values") as caught:
        batch_from_arrow(table, {"a": 2}, {}, [])
    assert (caught.value.row, caught.value.column) == (2, "a")
