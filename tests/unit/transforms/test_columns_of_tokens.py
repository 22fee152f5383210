"""Feast's lists of token ids give the column that Arrow's give, or an error naming the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.columns import RawBatch, TokenColumn, batch_from_arrow
from encoder.errors import MalformedInput
from tests.tokens import MOST, SCHEMA, TOKENS, token_lists
from transforms.columns import batch_from_feast
from transforms.faults import blank_rows


def _inputs(rows: Any) -> dict[str, list[Any]]:
    """Return what Feast hands over, every column but the tokens' present."""
    n = len(rows)
    return {
        "user_id": [f"user-{row}" for row in range(n)],
        TOKENS: list(rows),
        "user_texts__texts_count": [[1.0]] * n,
        "user_texts__texts_as_of": [5] * n,
        "user_texts__texts_modality": [SCHEMA.modality_version] * n,
    }


def _tokens(batch: RawBatch) -> TokenColumn:
    column = batch.columns[TOKENS]
    assert isinstance(column, TokenColumn)
    return column


def _read(rows: Any) -> TokenColumn:
    return _tokens(batch_from_feast(_inputs(rows), SCHEMA))


@given(token_lists(), st.data())
def test_lists_of_any_form_are_those_of_arrow(
    rows: list[list[int] | None], data: st.DataObject
) -> None:
    """Python's lists and tuples, numpy's arrays, and lists of numpy's and of float's integers."""
    forms: list[Any] = [
        list,
        tuple,
        lambda row: np.array(row, np.int32),
        lambda row: np.array(row, np.int64),
        lambda row: np.array(row, np.float64),
        lambda row: [np.int64(one) for one in row],
        lambda row: [float(one) for one in row],
    ]
    given = [None if row is None else data.draw(st.sampled_from(forms))(row) for row in rows]
    table = pa.table({TOKENS: pa.array(rows, pa.list_(pa.int32()))})
    arrow = batch_from_arrow(table, {}, {}, (), token_columns={TOKENS: MOST})
    found, expected = _read(given), _tokens(arrow)
    assert found.values.dtype == np.int32
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.valid, expected.valid)


def test_a_batch_is_as_wide_as_its_longest_list() -> None:
    assert _read([[3], None, [1, 2, 300], []]).values.tolist() == [
        [3, 0, 0],
        [0, 0, 0],
        [1, 2, 300],
        [0, 0, 0],
    ]
    assert _read([None, []]).values.shape == (2, 0)
    assert _read([]).values.shape == (0, 0)


_FAULTS: dict[str, tuple[Any, str]] = {
    "too long": (list(range(MOST + 1)), "13 values were given, an array of at most 12 is"),
    "a long array": (np.arange(MOST + 1), "13 values were given, an array of at most 12 is"),
    "a number": (3, "3 was given, an array of at most 12 is"),
    "a text": ("12", "'12' was given, an array of at most 12 is"),
    "bytes": (b"12", "b'12' was given, an array of at most 12 is"),
    "a bool among them": ([1, True], "the element True was given, a token id"),
    "bools": (np.array([True]), "the element True was given, a token id"),
    "a digit as text": ([1, "2"], "the element '2' was given, a token id"),
    "a fraction": ([1, 2.5], "the element 2.5 was given, a token id"),
    "an array of fractions": (np.array([1, 2.5], np.float32), "the element 2.5 was given, a token"),
    "NaN": ([float("nan")], "the element nan was given, a token id"),
    "infinity": ([float("inf")], "the element inf was given, a token id"),
    "a null": ([1, None], "the element None was given, a token id"),
    "a list": ([[1]], "the element [1] was given, a token id"),
    "a matrix": (np.array([[1, 2]]), "the element [1, 2] was given, a token id"),
    "negative": ([1, -1], "the element -1 was given, a token id"),
    "a negative float": ([-1.0], "the element -1.0 was given, a token id"),
    "beyond int32": ([2**31], "the element 2147483648 was given, a token id"),
    "an array beyond int32": (np.array([2**31]), "the element 2147483648 was given, a token id"),
    "beyond int64": ([2**64], "the element 18446744073709551616 was given, a token id"),
    "a float beyond int32": ([2.0**31], "the element 2147483648.0 was given, a token id"),
}


@pytest.mark.parametrize("name", _FAULTS)
def test_a_fault_names_user_column_and_what_was_given(name: str) -> None:
    value, message = _FAULTS[name]
    with pytest.raises(MalformedInput) as raised:
        _read([None, [1, 2], value])
    told = str(raised.value)
    assert told.startswith(f"User user-2, column '{TOKENS}': {message}")
    assert told.endswith("Rebuild the raw features with the layout this encoder was trained on.")
    if "a token id" in message:
        assert "a token id, a whole number from 0 to 2147483647, is expected." in told
    exc = raised.value
    assert (exc.user, exc.row, exc.column) == ("user-2", 2, TOKENS)


@given(
    st.lists(st.one_of(st.lists(st.integers(0, 9), max_size=3), st.sampled_from(sorted(_FAULTS))))
)
def test_rows_at_fault_are_told_and_null_and_the_others_stay(rows: list[Any]) -> None:
    errors: dict[int, Any] = {}
    given = [_FAULTS[row][0] if isinstance(row, str) else row for row in rows]
    batch = batch_from_feast(_inputs(given), SCHEMA, errors)
    sound = {number: row for number, row in enumerate(rows) if not isinstance(row, str)}
    assert set(errors) == set(range(len(rows))) - set(sound)
    for row, error in errors.items():
        assert f"User user-{row}, column '{TOKENS}': {_FAULTS[rows[row]][1]}" in str(error)
    for column in batch.columns.values():
        assert np.flatnonzero(column.valid).tolist() == list(sound)
    for number, values in enumerate(_tokens(batch).values.tolist()):
        row = sound.get(number, [])
        assert values == row + [0] * (len(values) - len(row))


def test_a_blanked_row_has_no_token() -> None:
    batch = batch_from_feast(_inputs([[1, 2], [3], [4, 5]]), SCHEMA)
    found = _tokens(blank_rows(batch, [1, 2]))
    assert found.values.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert (found.values.dtype.name, found.valid.tolist()) == ("int32", [True, False, False])
    assert _tokens(batch).values.tolist() == [[1, 2], [3, 0], [4, 5]]
