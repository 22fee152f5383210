"""Raw rows with lists of token ids, from an online store's bytes to the batch of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from encoder.columns import RawBatch, TokenColumn, raw_batch
from materialize.reader.fields import Found
from materialize.reader.raw import RawFields, parse_raw, take_rows
from materialize.stores.stored_columns import schema_columns
from materialize.stores.values import value_bytes
from materialize.stores.wire import Faults, Place, Stored
from tests.tokens import MOST, SCHEMA, TOKENS, token_lists

_KINDS = {
    TOKENS: ("INT32_LIST", pa.list_(pa.int32())),
    "user_texts__texts_count": ("FLOAT_LIST", pa.list_(pa.float32())),
    "user_texts__texts_as_of": ("INT64", pa.int64()),
    "user_texts__texts_modality": ("STRING", pa.string()),
}
_RAW = RawFields.of(SCHEMA)


def _table(rows: list[list[int] | None]) -> pa.Table:
    """Return raw rows in which a user without tokens has no other feature of the view."""
    columns: dict[str, list[Any]] = {
        TOKENS: rows,
        "user_texts__texts_count": [None if row is None else [float(len(row))] for row in rows],
        "user_texts__texts_as_of": [None if row is None else 5 for row in rows],
        "user_texts__texts_modality": [
            None if row is None else SCHEMA.modality_version for row in rows
        ],
    }
    arrays = {name: pa.array(column, _KINDS[name][1]) for name, column in columns.items()}
    return pa.table({"user_id": [str(row) for row in range(len(rows))], **arrays})


def _stored(table: pa.Table) -> dict[str, Stored]:
    return {
        name: value_bytes(table.column(name).combine_chunks(), kind)
        for name, (kind, _) in _KINDS.items()
    }


def _of_reader(stored: Mapping[str, Stored], faults: Faults) -> RawBatch:
    """Return what the reader makes of stored bytes."""
    n = len(stored[TOKENS])
    columns = [stored[f"{view}__{field}"] for view, field in _RAW.places]
    return parse_raw(Found(columns), _RAW, [str(user) for user in range(n)], faults)


def _of_stream(stored: Mapping[str, Stored], faults: Faults) -> RawBatch:
    """Return what on-demand reads and the stream make of them."""
    users = tuple(str(user) for user in range(len(stored[TOKENS])))
    columns = {}
    for name, parse, width in schema_columns(SCHEMA):
        view, field = name.split("__")
        columns[name] = parse(stored[name], Place(view, field, users), width, faults)
    return RawBatch(columns, len(users), users)


_READS = pytest.mark.parametrize("read", [_of_reader, _of_stream])


@_READS
@given(token_lists())
def test_the_batch_of_a_store_is_that_of_arrow(read: Any, rows: list[list[int] | None]) -> None:
    table = _table(rows)
    faults: Faults = {}
    found, expected = read(_stored(table), faults), raw_batch(table, SCHEMA, "user_id")
    assert faults == {}
    assert (found.n_rows, found.users) == (expected.n_rows, expected.users)
    assert found.columns.keys() == expected.columns.keys() == set(SCHEMA.columns)
    for name, want in expected.columns.items():
        have = found.columns[name]
        assert (type(have), have.values.dtype) == (type(want), want.values.dtype)
        np.testing.assert_array_equal(have.values, want.values)
        np.testing.assert_array_equal(have.valid, want.valid)


@_READS
def test_a_damaged_list_is_null_and_told_and_the_others_stay(read: Any) -> None:
    stored = _stored(_table([[1, 2], list(range(MOST + 1)), [300], [4]]))
    stored[TOKENS] = [*stored[TOKENS][:2], (stored[TOKENS][2] or b"")[:-1], stored[TOKENS][3]]
    faults: Faults = {}
    column = read(stored, faults).columns[TOKENS]
    assert column.values.tolist() == [[1, 2], [0, 0], [0, 0], [4, 0]]
    assert column.valid.tolist() == [True, False, False, True]
    assert sorted(faults) == [1, 2]
    assert "user_texts:texts_tokens of user 1 is a list of 13 token ids; " in str(faults[1])
    assert "user 2 is 5 bytes that are no value; a list of at most 12 token" in str(faults[2])


def test_some_rows_keep_their_lists() -> None:
    batch = _of_reader(_stored(_table([[1, 2], None, [300]])), {})
    taken = take_rows(batch, np.array([1, 2, 2]))
    column = taken.columns[TOKENS]
    assert isinstance(column, TokenColumn)
    assert column.values.tolist() == [[0, 0], [300, 0], [300, 0]]
    assert (column.values.dtype.name, column.valid.tolist()) == ("int32", [False, True, True])
    assert taken.users == ("1", "2", "2")
